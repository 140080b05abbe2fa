// K1, batch packing: query_lens [num_seqs] -> cu_query_lens, and of each token its position, slot and sequence,
// padded to a bucket; and the gather of int32 rows that closes gaps in per-sequence state.
//
// Packing: 12 bytes written a token, so the launch itself is the floor. One kernel without a wait between blocks: every
// block scans the lengths for itself (4 bytes a sequence, from L2) into shared memory, then a thread a token finds its
// sequence by bisection there. The grid hangs on the bucket alone, so that a CUDA graph replays with other lengths.
//
// Gather: 8 bytes moved an element; 16-byte vectors where the rows allow, four in flight a thread.
#include "batch_pack.h"

namespace vorta {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxSeqs = 8192;  // Their starts are in 32 KiB of shared memory.
constexpr int kInFlight = 4;

// starts[i + 1] = the sum of lens[0 .. i], starts[0] = 0.
__device__ void scan(const int* lens, int count, int* starts) {
  __shared__ int warp_sums[kWarps];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  int before = 0;
  if (thread == 0) starts[0] = 0;
  for (int begin = 0; begin < count; begin += kThreads) {
    const int index = begin + thread;
    int sum = index < count ? lens[index] : 0;
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = shuffle_up(sum, distance);
      if (lane >= distance) sum += other;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    int total = 0;
    for (int i = 0; i < kWarps; i++) {
      if (i < warp) sum += warp_sums[i];
      total += warp_sums[i];
    }
    if (index < count) starts[index + 1] = before + sum;
    before += total;
    __syncthreads();  // warp_sums is written anew, and behind the last the starts are read.
  }
  if (count == 0) __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    batch_pack_kernel(const int* query_lens, const int* past_lens, const int* block_table, int num_seqs, int max_blocks,
                      int block_size, int num_tokens_padded, int* cu_query_lens, int* positions, int* slots,
                      int* sequence) {
  int* starts = reinterpret_cast<int*>(dynamic_shared());
  let_next_kernel_start();
  wait_for_previous_kernel();
  scan(query_lens, num_seqs, starts);
  if (blockIdx.x == 0)
    for (int i = threadIdx.x; i <= num_seqs; i += kThreads) cu_query_lens[i] = starts[i];
  const int token = blockIdx.x * kThreads + threadIdx.x;
  if (token >= num_tokens_padded) return;
  int owner = -1, position = 0, slot = -1;
  if (token < starts[num_seqs]) {
    owner = owner_of(starts, num_seqs, token);
    position = token - starts[owner] + past_lens[owner];
    slot = slot_of(block_table + static_cast<int64_t>(owner) * max_blocks, max_blocks, block_size, position);
  }
  positions[token] = position;
  slots[token] = slot;
  sequence[token] = owner;
}

// A block takes kThreads * kInFlight vectors of one row at most.
template <typename Vector>
__global__ void __launch_bounds__(kThreads)
    batch_compact_kernel(const Vector* state, const int* rows, int num_rows, int64_t width, Vector* result) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = rows[blockIdx.x];
  const bool is_real = row >= 0 && row < num_rows;
  const Vector* from = state + (is_real ? row : 0) * width;
  Vector* to = result + blockIdx.x * width;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * blockDim.x * kInFlight + threadIdx.x;
  Vector values[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; i++) {
    const int64_t index = first + i * static_cast<int64_t>(blockDim.x);
    values[i] = Vector{};
    if (is_real && index < width) values[i] = from[index];
  }
#pragma unroll
  for (int i = 0; i < kInFlight; i++) {
    const int64_t index = first + i * static_cast<int64_t>(blockDim.x);
    if (index < width) to[index] = values[i];
  }
}

template <typename Vector>
cudaError_t launch_compact(const void* state, const int* rows, int num_rows, int num_results, int64_t width,
                           void* result, cudaStream_t stream) {
  const int block = width >= kThreads ? kThreads : static_cast<int>((width + 31) / 32 * 32);
  const int64_t parts = (width + block * kInFlight - 1) / (block * kInFlight);
  if (parts > 65535) return cudaErrorInvalidValue;
  return launch(batch_compact_kernel<Vector>, dim3(num_results, static_cast<unsigned>(parts)), block, 0, stream,
                static_cast<const Vector*>(state), rows, num_rows, width, static_cast<Vector*>(result));
}

}  // namespace
}  // namespace vorta

// Everything int32: query_lens and past_lens [num_seqs], block_table [num_seqs, max_blocks], cu_query_lens
// [num_seqs + 1], the others [num_tokens_padded]. Tokens past num_tokens_padded are left out; cu_query_lens counts
// them.
VORTA_EXPORT int vorta_batch_pack(const int* query_lens, const int* past_lens, const int* block_table, int num_seqs,
                                  int max_blocks, int block_size, int num_tokens_padded, int* cu_query_lens,
                                  int* positions, int* slots, int* sequence, cudaStream_t stream) {
  using namespace vorta;
  if (num_seqs < 0 || num_seqs > kMaxSeqs || max_blocks < 0 || block_size < 1 || num_tokens_padded < 0)
    return cudaErrorInvalidValue;
  const int blocks = (num_tokens_padded + kThreads - 1) / kThreads;
  return launch(batch_pack_kernel, dim3(blocks ? blocks : 1), kThreads, (num_seqs + 1) * sizeof(int), stream,
                query_lens, past_lens, block_table, num_seqs, max_blocks, block_size, num_tokens_padded, cu_query_lens,
                positions, slots, sequence);
}

// state int32 [num_rows, width]; row i of result [num_results, width] is row rows[i] of it, or zeros where rows[i] is
// no row. result is other memory than state.
VORTA_EXPORT int vorta_batch_compact(const int* state, const int* rows, int num_rows, int num_results, int64_t width,
                                     int* result, cudaStream_t stream) {
  using namespace vorta;
  if (num_rows < 0 || num_results < 0 || width < 0) return cudaErrorInvalidValue;
  if (num_results == 0 || width == 0) return cudaSuccess;
  const auto address = reinterpret_cast<uintptr_t>(state) | reinterpret_cast<uintptr_t>(result);
  if (width % 4 == 0 && address % 16 == 0)
    return launch_compact<uint4>(state, rows, num_rows, num_results, width / 4, result, stream);
  return launch_compact<int>(state, rows, num_rows, num_results, width, result, stream);
}
