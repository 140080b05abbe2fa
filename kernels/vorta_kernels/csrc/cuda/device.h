// The few operations of a GPU that C++ has no words for, and the launch. `simt.h` has the same for a CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define VORTA_BOTH __host__ __device__ inline
#else
#define VORTA_BOTH inline
#endif

namespace vorta {

// float8_e4m3fn's exponent and mantissa in fp16's place are the number times 2^-8, subnormals too. NaN (0x7f) becomes
// 480, which quantisation never makes. Of a register of four: the two low ones, and the two high ones.
VORTA_BOTH uint32_t e4m3_low_bits(uint32_t codes) {
  const uint32_t spread = (codes & 0xff) << 8 | (codes & 0xff00) << 16;
  return (spread & 0x80008000u) | (spread & 0x7f007f00u) >> 1;
}
VORTA_BOTH uint32_t e4m3_high_bits(uint32_t codes) { return e4m3_low_bits(codes >> 16); }

constexpr uint32_t kTwo256 = 0x5c005c00u;  // Two fp16 of 256, which makes up for the 2^-8.

}  // namespace vorta

#ifndef __CUDACC__

#include "simt.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>

namespace vorta {

// --- The host's side ---

// Whether kernels may overlap as below: not where the environment has VORTA_CUDA_OVERLAP=0.
inline bool may_overlap() {
  static const char* const value = std::getenv("VORTA_CUDA_OVERLAP");
  return value == nullptr || std::strcmp(value, "0") != 0;
}

// Launches on a stream and returns the launch's error. From compute capability 9.0 on the kernel may start before the
// one in front of it in the stream has ended, and so must call wait_for_previous_kernel, in every thread, before it
// touches what another kernel writes or reads. Only the weights of a product are read earlier: nothing writes them
// while a model runs, and whoever makes them waits for the device.
template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, int block, size_t shared_bytes, cudaStream_t stream,
                   A... arguments) {
  int device, major;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess && shared_bytes > 48 * 1024)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(block);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = major >= 9 && may_overlap() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

// Of the current device; 1 where the driver does not say, and then the launch fails and says why.
inline int multiprocessors() {
  int device, count;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return count;
}

// --- The order of kernels in a stream ---

// Returns when the kernels in front in the stream have ended and their writes can be seen.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel in the stream may take what this one leaves free of the GPU; it waits as above for the results.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- Memory ---

extern __shared__ uint4 dynamic_shared_vectors[];

__device__ __forceinline__ char* dynamic_shared() { return reinterpret_cast<char*>(dynamic_shared_vectors); }

// Copies 16 bytes to shared memory, or writes zeros there without a read; past L1.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool is_real) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(is_real ? 16 : 0)
               : "memory");
}

// The same through L1, for what several blocks of a multiprocessor read.
__device__ __forceinline__ void copy_async_shared_by_blocks(void* shared, const void* global, bool is_real) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(is_real ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// All of this thread's groups but the newest `kLeft` have arrived; others see them behind a barrier.
template <int kLeft>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// The warp's lanes see each other's writes.
__device__ __forceinline__ void synchronise_warp() { __syncwarp(); }

// A barrier of `count` threads, whole warps; `barrier` is 1 to 15.
__device__ __forceinline__ void synchronise_threads(int barrier, int count) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ int shuffle_up(int value, int distance) {
  const int other = __shfl_up_sync(~0u, value, distance);
  return static_cast<int>(threadIdx.x % 32) >= distance ? other : value;
}

// --- Numbers ---

using bf16 = __nv_bfloat16;
using fp16 = __half;

__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(fp16 value) { return __half2float(value); }

template <typename T>
__device__ T from_float(float value);
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ fp16 from_float<fp16>(float value) {
  return __float2half_rn(value);
}

// One of the two numbers in a register.
template <typename T>
__device__ __forceinline__ T part_of(uint32_t pair, int index) {
  const uint16_t bits = static_cast<uint16_t>(pair >> (16 * index));
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// (word & mask) | bits in one instruction, which the compiler does not find where both are constants.
__device__ __forceinline__ uint32_t and_or(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
  return result;
}

template <typename T>
__device__ uint32_t subtract_pairs(uint32_t a, uint32_t b);
template <>
__device__ __forceinline__ uint32_t subtract_pairs<fp16>(uint32_t a, uint32_t b) {
  uint32_t difference;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  return difference;
}
template <>
__device__ __forceinline__ uint32_t subtract_pairs<bf16>(uint32_t a, uint32_t b) {
  // a * 1 - b: compute capability 8 has no subtraction of bf16.
  uint32_t difference;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(a), "r"(0x3f803f80u), "r"(b ^ 0x80008000u));
  return difference;
}

// Four float8_e4m3fn, the lowest byte first, as two registers of fp16; exact.
__device__ __forceinline__ uint2 e4m3_to_fp16(uint32_t codes) {
  uint2 wide;
#if __CUDA_ARCH__ >= 890
  asm("{\n"
      ".reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n"
      "}"
      : "=r"(wide.x), "=r"(wide.y)
      : "r"(codes));
#else
  asm("mul.f16x2 %0, %1, %2;" : "=r"(wide.x) : "r"(e4m3_low_bits(codes)), "r"(kTwo256));
  asm("mul.f16x2 %0, %1, %2;" : "=r"(wide.y) : "r"(e4m3_high_bits(codes)), "r"(kTwo256));
#endif
  return wide;
}

// C += A B on tensor cores: A 16 x 16 by rows, B 16 x 8 by columns, of T; C 16 x 8 of float. `simt.h` says which lane
// holds which elements.
template <typename T>
__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<fp16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_add<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace vorta

#endif

#define VORTA_EXPORT extern "C" __attribute__((visibility("default")))
