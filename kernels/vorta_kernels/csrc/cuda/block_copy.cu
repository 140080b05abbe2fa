// K10, copies of cache blocks: block pairs[i, 0] to pairs[i, 1] in every layer of every tensor of the cache, in one
// launch; and their exchange with pinned host memory.
//
// Floor: a block's bytes twice (read, write) in each layer. A thread block moves up to 16 KiB of one (pair, layer,
// tensor): 256 threads with four 16-byte loads in flight each, 64 KiB a multiprocessor at four blocks. Where a block's
// size is no multiple of 16 bytes, source and target are not aligned alike, and words or bytes move instead.
// Exchange with the host is left to the copy engines, which run beside the kernels: one strided copy a pair and tensor
// does all layers.
#include "device.h"

namespace vorta {
namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;
constexpr int kMaxTensors = 4;  // K, V, and the scales of each.
constexpr int64_t kMaxPitch = 0x7fffffff;

struct Tensors {
  char* data[kMaxTensors];
  int64_t block_bytes[kMaxTensors];
};

// A block's share of a copy: vectors [part * kThreads * kInFlight, ...) of `count`.
template <typename Vector>
__device__ __forceinline__ void copy_part(const char* from, char* to, int64_t bytes, int64_t part) {
  const int64_t count = bytes / static_cast<int64_t>(sizeof(Vector));
  const Vector* source = reinterpret_cast<const Vector*>(from);
  Vector* target = reinterpret_cast<Vector*>(to);
  for (int64_t first = part * kThreads * kInFlight; first < count;
       first += static_cast<int64_t>(gridDim.z) * kThreads * kInFlight) {
    Vector values[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; i++) {
      const int64_t index = first + i * kThreads + threadIdx.x;
      if (index < count) values[i] = source[index];
    }
#pragma unroll
    for (int i = 0; i < kInFlight; i++) {
      const int64_t index = first + i * kThreads + threadIdx.x;
      if (index < count) target[index] = values[i];
    }
  }
}

// Grid: x the pair, y the layer of a tensor, z the part of a block.
__global__ void __launch_bounds__(kThreads)
    block_copy_kernel(Tensors tensors, int num_layers, int num_blocks, const int* pairs) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int source = pairs[2 * blockIdx.x], target = pairs[2 * blockIdx.x + 1];
  if (source < 0 || source >= num_blocks || target < 0 || target >= num_blocks) return;
  const int tensor = blockIdx.y / num_layers, layer = blockIdx.y % num_layers;
  // Chosen by comparison: an index that is not known to the compiler would put the arguments into local memory.
  char* data = tensors.data[0];
  int64_t bytes = tensors.block_bytes[0];
#pragma unroll
  for (int i = 1; i < kMaxTensors; i++)
    if (tensor == i) data = tensors.data[i], bytes = tensors.block_bytes[i];
  data += static_cast<int64_t>(layer) * num_blocks * bytes;
  const char* from = data + source * bytes;
  char* to = data + target * bytes;
  const uintptr_t alignment = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(bytes);
  if (alignment % 16 == 0)
    copy_part<uint4>(from, to, bytes, blockIdx.z);
  else if (alignment % 4 == 0)
    copy_part<uint32_t>(from, to, bytes, blockIdx.z);
  else
    copy_part<uint8_t>(from, to, bytes, blockIdx.z);
}

bool is_valid(int num_tensors, int num_layers, int num_blocks, int num_pairs) {
  return num_tensors >= 0 && num_tensors <= kMaxTensors && num_layers >= 0 && num_blocks >= 0 && num_pairs >= 0 &&
         static_cast<int64_t>(num_tensors) * num_layers <= 65535;
}

}  // namespace
}  // namespace vorta

// data[i] is tensor i, [num_layers, num_blocks, block_bytes[i]]; both arrays lie on the host. pairs int32 [num_pairs,
// 2] lies on the device; a pair that names no block is left out.
VORTA_EXPORT int vorta_block_copy(void* const* data, const int64_t* block_bytes, int num_tensors, int num_layers,
                                  int num_blocks, const int* pairs, int num_pairs, cudaStream_t stream) {
  using namespace vorta;
  if (!is_valid(num_tensors, num_layers, num_blocks, num_pairs)) return cudaErrorInvalidValue;
  if (num_tensors == 0 || num_layers == 0 || num_pairs == 0) return cudaSuccess;
  Tensors tensors = {};
  int64_t largest = 0;
  for (int i = 0; i < num_tensors; i++) {
    tensors.data[i] = static_cast<char*>(data[i]);
    tensors.block_bytes[i] = block_bytes[i];
    largest = block_bytes[i] > largest ? block_bytes[i] : largest;
  }
  const int64_t part = static_cast<int64_t>(kThreads) * kInFlight * 16;
  const int64_t parts = (largest + part - 1) / part;
  const dim3 grid(num_pairs, num_tensors * num_layers, static_cast<unsigned>(parts < 1 ? 1 : parts > 64 ? 64 : parts));
  return launch(block_copy_kernel, grid, kThreads, 0, stream, tensors, num_layers, num_blocks, pairs);
}

// Copies block pairs[i, 0] of `from` to block pairs[i, 1] of `to` in all layers, one of them pinned host memory:
// tensors [num_layers, from_blocks or to_blocks, block_bytes[i]]. All arrays lie on the host, pairs too, and are free
// on return.
VORTA_EXPORT int vorta_block_swap(const void* const* from, void* const* to, const int64_t* block_bytes, int num_tensors,
                                  int num_layers, int64_t from_blocks, int64_t to_blocks, const int* pairs,
                                  int num_pairs, int is_to_host, cudaStream_t stream) {
  using namespace vorta;
  if (num_tensors < 0 || num_layers < 0 || num_pairs < 0) return cudaErrorInvalidValue;
  const cudaMemcpyKind kind = is_to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
  for (int pair = 0; pair < num_pairs; pair++) {
    const int64_t source = pairs[2 * pair], target = pairs[2 * pair + 1];
    if (source < 0 || source >= from_blocks || target < 0 || target >= to_blocks) return cudaErrorInvalidValue;
    for (int i = 0; i < num_tensors; i++) {
      const int64_t bytes = block_bytes[i], from_pitch = from_blocks * bytes, to_pitch = to_blocks * bytes;
      const char* first = static_cast<const char*>(from[i]) + source * bytes;
      char* result = static_cast<char*>(to[i]) + target * bytes;
      if (from_pitch <= kMaxPitch && to_pitch <= kMaxPitch) {
        const cudaError_t error =
            cudaMemcpy2DAsync(result, to_pitch, first, from_pitch, bytes, num_layers, kind, stream);
        if (error != cudaSuccess) return error;
        continue;
      }
      for (int layer = 0; layer < num_layers; layer++) {
        const cudaError_t error =
            cudaMemcpyAsync(result + layer * to_pitch, first + layer * from_pitch, bytes, kind, stream);
        if (error != cudaSuccess) return error;
      }
    }
  }
  return cudaSuccess;
}
