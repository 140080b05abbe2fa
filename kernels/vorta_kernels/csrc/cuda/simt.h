// A GPU of one thread at a time, so that a C++ compiler builds the kernels of this folder for a CPU and tests run them:
// the same sources, every block and thread of a launch. Nothing here is fast, and no GPU build sees this file.
//
// A block's threads are coroutines that run until they meet a barrier or an operation of the whole warp. Each round
// takes them in another order, so that a result that hangs on the order (a missing barrier) does not stay unseen.
// Shared memory begins as NaN. Asynchronous copies are mostly as late as they may be, their bytes there when they are
// waited for, and now and then early; what nobody waits for arrives at the end of its thread.
// An address sanitizer over this build sees accesses outside of what was allocated.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid argument" : "no error"; }

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                     size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t i = 0; i < height; i++)
    std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  return cudaSuccess;
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace vorta {
namespace simt {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kPayloadBytes = 64;

struct Copy {
  void* to;
  const void* from;  // null for zeros
};

enum class State { kReady, kAtBarrier, kAtNamedBarrier, kAtWarp, kDone };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  int index;
  State state;
  int barrier, barrier_count;  // Of a named barrier: its number and how many threads it is for.
  unsigned exchanges;
  alignas(16) char payload[2][kPayloadBytes];
  std::vector<std::vector<Copy>> copies;  // groups; the last is open
};

inline std::vector<Thread> threads;
inline Thread* current;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline std::vector<uint4> dynamic_shared;
inline uint32_t order_state = 1;

inline uint32_t random() {
  order_state ^= order_state << 13;
  order_state ^= order_state >> 17;
  order_state ^= order_state << 5;
  return order_state;
}

// The current thread's groups of copies arrive, but for the newest `left`.
inline void deliver(size_t left) {
  auto& groups = current->copies;
  while (groups.size() > left) {
    for (const Copy& copy : groups.front())
      copy.from ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
    groups.erase(groups.begin());
  }
}

inline void pause(State state) {
  current->state = state;
  swapcontext(&current->context, &scheduler);
}

inline void enter() {
  body();
  deliver(0);
  pause(State::kDone);
}

inline void stop(const char* why) {
  std::fprintf(stderr, "simt: %s\n", why);
  std::abort();
}

// Lets those go on that wait for a barrier which all have reached. Whoever has returned counts as there, as on a GPU.
inline bool release() {
  const int count = static_cast<int>(threads.size());
  bool is_any = false;
  for (int warp = 0; warp < count; warp += kWarp) {
    const int end = warp + kWarp < count ? warp + kWarp : count;
    bool is_full = true;
    for (int i = warp; i < end; i++) is_full &= threads[i].state == State::kAtWarp;
    for (int i = warp; is_full && i < end; i++) threads[i].state = State::kReady, is_any = true;
  }
  for (int i = 0; i < count; i++) {
    if (threads[i].state != State::kAtNamedBarrier) continue;
    const auto is_there = [&](const Thread& other) {
      return other.state == State::kAtNamedBarrier && other.barrier == threads[i].barrier;
    };
    const int barrier = threads[i].barrier;
    int arrived = 0;
    for (const Thread& other : threads) arrived += is_there(other);
    if (arrived != threads[i].barrier_count) continue;
    for (Thread& other : threads)
      if (other.state == State::kAtNamedBarrier && other.barrier == barrier) other.state = State::kReady;
    is_any = true;
  }
  if (is_any) return true;
  for (Thread& thread : threads)
    if (thread.state != State::kAtBarrier && thread.state != State::kDone) return false;
  for (Thread& thread : threads)
    if (thread.state == State::kAtBarrier) thread.state = State::kReady, is_any = true;
  return is_any;
}

inline void run_block(int count) {
  threads.resize(count);
  for (int i = 0; i < count; i++) {
    Thread& thread = threads[i];
    if (!thread.stack) thread.stack.reset(new char[kStackBytes]);
    thread.index = i;
    thread.state = State::kReady;
    thread.exchanges = 0;
    thread.copies.assign(1, {});
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
  do {
    // Any order: from a random thread on, up or down.
    const int first = static_cast<int>(random() % count);
    const bool is_up = random() & 1;
    for (int i = 0; i < count; i++) {
      Thread& thread = threads[is_up ? (first + i) % count : (first + count - i) % count];
      if (thread.state != State::kReady) continue;
      current = &thread;
      threadIdx = dim3(thread.index);
      if (thread.copies.size() > 1 && random() % 16 == 0) deliver(thread.copies.size() - 1);
      swapcontext(&scheduler, &thread.context);
    }
  } while (release());
  for (const Thread& thread : threads)
    if (thread.state != State::kDone) stop("threads wait for what others do not reach");
}

// What every lane of the warp gave; all 32 lanes must take part. The result holds until the lane's next exchange but
// one.
template <typename T>
struct Exchanged {
  const Thread* warp;
  unsigned slot;
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, warp[lane].payload[slot], sizeof value);
    return value;
  }
};

template <typename T>
Exchanged<T> exchange(const T& value) {
  static_assert(sizeof(T) <= kPayloadBytes, "too much for one exchange");
  const unsigned slot = current->exchanges++ & 1;
  std::memcpy(current->payload[slot], &value, sizeof value);
  const Thread* warp = &threads[current->index / kWarp * kWarp];
  pause(State::kAtWarp);
  return {warp, slot};
}

}  // namespace simt

template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, int block, size_t shared_bytes, cudaStream_t, A... arguments) {
  if (block % simt::kWarp) simt::stop("a block is no whole number of warps");
  simt::dynamic_shared.resize(shared_bytes / 16 + 1);
  simt::body = [=] { kernel(static_cast<P>(arguments)...); };
  blockDim = dim3(block);
  gridDim = grid;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        blockIdx = dim3(x, y, z);
        std::memset(simt::dynamic_shared.data(), 0xff, simt::dynamic_shared.size() * sizeof(uint4));
        simt::run_block(block);
      }
  return cudaSuccess;
}

inline int multiprocessors() { return 4; }

inline char* dynamic_shared() { return reinterpret_cast<char*>(simt::dynamic_shared.data()); }

// --- The operations of device.h ---

inline void synchronise_warp() { simt::exchange(0); }

inline void synchronise_threads(int barrier, int count) {
  simt::current->barrier = barrier;
  simt::current->barrier_count = count;
  simt::pause(simt::State::kAtNamedBarrier);
}

inline int shuffle_up(int value, int distance) {
  const int lane = simt::current->index % simt::kWarp;
  const auto all = simt::exchange(value);
  return lane >= distance ? all[lane - distance] : value;
}

inline void copy_async(void* shared, const void* global, bool is_real) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || (is_real && reinterpret_cast<uintptr_t>(global) % 16))
    simt::stop("a 16-byte copy is not aligned");
  simt::current->copies.back().push_back({shared, is_real ? global : nullptr});
}

inline void copy_async_shared_by_blocks(void* shared, const void* global, bool is_real) {
  copy_async(shared, global, is_real);
}

inline void copy_async_commit() { simt::current->copies.emplace_back(); }

// All groups but the newest `kLeft` have arrived.
template <int kLeft>
void copy_async_wait() {
  simt::deliver(kLeft + 1);  // The last one is open.
}

inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}
struct bf16 {
  uint16_t bits;
};
using fp16 = _Float16;

inline float to_float(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
inline float to_float(fp16 value) { return value; }

template <typename T>
T from_float(float value);
template <>
inline bf16 from_float<bf16>(float value) {
  if (std::isnan(value)) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
inline fp16 from_float<fp16>(float value) {
  return static_cast<fp16>(value);
}

template <typename T>
T part_of(uint32_t pair, int index) {
  const uint16_t bits = static_cast<uint16_t>(pair >> (16 * index));
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
uint32_t pair_of(float low, float high) {
  const T parts[2] = {from_float<T>(low), from_float<T>(high)};
  uint32_t pair;
  std::memcpy(&pair, parts, sizeof pair);
  return pair;
}

inline uint32_t and_or(uint32_t word, uint32_t mask, uint32_t bits) { return (word & mask) | bits; }

template <typename T>
uint32_t subtract_pairs(uint32_t a, uint32_t b) {
  return pair_of<T>(to_float(part_of<T>(a, 0)) - to_float(part_of<T>(b, 0)),
                    to_float(part_of<T>(a, 1)) - to_float(part_of<T>(b, 1)));
}

template <typename T>
uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  return pair_of<T>(to_float(part_of<T>(a, 0)) * to_float(part_of<T>(b, 0)),
                    to_float(part_of<T>(a, 1)) * to_float(part_of<T>(b, 1)));
}

// As compute capability 8.0 does it; later ones have an instruction.
inline uint2 e4m3_to_fp16(uint32_t codes) {
  return {multiply_pairs<fp16>(e4m3_low_bits(codes), kTwo256), multiply_pairs<fp16>(e4m3_high_bits(codes), kTwo256)};
}

// The fragments as in the PTX manual: with g = lane / 4 and t = lane % 4, A has (row, k) (g, 2t + i), (g + 8, 2t + i),
// (g, 2t + 8 + i), (g + 8, 2t + 8 + i); B has (k, column) (2t + i, g), (2t + 8 + i, g); C has (row, column) (g, 2t),
// (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const auto all = simt::exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int lane = simt::current->index % simt::kWarp, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) {
    const int row_half = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 16; k++) {
      const int k_half = k / 8, holder = k % 8 / 2;
      c[i] += to_float(part_of<T>(all[4 * g + holder].a[row_half + 2 * k_half], k % 2)) *
              to_float(part_of<T>(all[4 * column + holder].b[k_half], k % 2));
    }
  }
}

}  // namespace vorta

inline void __syncthreads() { vorta::simt::pause(vorta::simt::State::kAtBarrier); }
