// K6b, 16 bits by 4 bits for up to 32 rows: y [m, n] = x [m, k] times w [n, k] transposed, all 16-bit numbers bf16 or
// all fp16, w of 4 bits with a scale for each group of a row's elements. Sums in float32.
//
// Floor: n * k / 2 bytes of w, and its scales (3 % at groups of 128). The design is that of `skinny_linear.h`: tensor
// cores (w as A, x as B), asynchronous copies into a ring in shared memory, the sum in an order that suits the lanes.
//
// w is shuffled beforehand (`cuda_ops.int4_linear.shuffle_int4`) so that a lane's fragments of a tile of 16 outputs
// by 64 of k, four products, are 16 bytes in a row, and a warp's 512: a warp reads on through memory. Two such tiles
// a warp; one step of a block is 8 KiB of w, and four steps are on their way while one is worked on.
//
// x is the other half of the traffic from L2: 4 m / outputs of w's bytes. So kOutputWarps warps share each step of x
// through the ring (a barrier of these warps a step), 32 to 128 outputs a block, as many as leave no multiprocessor
// idle; the other warps split k. At 32 rows reading x from shared memory, once a warp, is what limits.
//
// With w this small the instructions count: the issue slots of a step at full bandwidth are about 200 a warp. Four bits
// become a 16-bit number by one and-or each pair (`Magic`), which leaves them too large by 136, 1032 or 1152. At up
// to 8 rows that is taken off the sum and not off each element: the sum starts at minus that number times x, by a
// product of its own that both tiles share. The scale multiplies the sum of 32 elements. All of this is exact but for
// the float32 of the sum.
#include "device.h"

namespace vorta {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTileOutputs = 16;
constexpr int kStep = 64;  // Of k.
constexpr int kHalf = 32;  // Of k: what one scale is for at least.
constexpr int kTiles = 2;  // Of a warp.
constexpr int kRing = 5;   // Steps.

// Of one step of a block, in 16-byte vectors: w, scales, and x for each of the warps that split k.
constexpr int kWeightVectors = kTiles * kThreads;
constexpr int kScaleVectors = kWarps * kTiles * 4;
VORTA_BOTH constexpr int input_vectors(int column_tiles, int output_warps) {
  return kWarps / output_warps * column_tiles * 2 * 32;
}
VORTA_BOTH constexpr int ring_vectors(int column_tiles, int output_warps) {
  return kWeightVectors + kScaleVectors + input_vectors(column_tiles, output_warps);
}
// Of a column of sums: four more than its outputs, so that the lanes of a warp write to 32 banks.
VORTA_BOTH constexpr int sums_pitch(int output_warps) { return kTiles * kTileOutputs * output_warps + 4; }

constexpr size_t shared_bytes(int column_tiles, int output_warps) {
  const size_t ring = static_cast<size_t>(kRing) * ring_vectors(column_tiles, output_warps) * sizeof(uint4);
  const size_t sums =
      static_cast<size_t>(kWarps / output_warps) * 8 * column_tiles * sums_pitch(output_warps) * sizeof(float);
  return ring > sums ? ring : sums;
}

// number / divisor by a multiplication with reciprocal_of(divisor), exact while their product is below 2^31.
constexpr int kMaxDepth = 1 << 20;  // Of k: then both are below 2^15.
VORTA_BOTH uint32_t reciprocal_of(uint32_t divisor) { return ((1u << 31) + divisor - 1) / divisor; }
VORTA_BOTH int quotient(uint32_t number, uint32_t reciprocal) {
  return static_cast<int>((static_cast<uint64_t>(number) * reciprocal) >> 31);
}

// Or-ed into the exponent of a 16-bit number, four bits v become kBase + v, and four bits more to the left (where
// fp16 has the room) kBase + 16 v. The elements of the fragment's upper rows are where they need no more, so that the
// scale of the lower rows makes up for the 16.
template <typename T>
struct Magic;
template <>
struct Magic<bf16> {
  static constexpr uint32_t kBase = 0x43004300;  // 128
  static constexpr uint32_t kUpper = 0x43084308, kLower = 0x43084308;  // 136: what stands for zero.
  static constexpr int kLowerShift = 4;
  static constexpr uint32_t kLowerMask = 0x000f000f;
  static constexpr float kLowerFactor = 1;
};
template <>
struct Magic<fp16> {
  static constexpr uint32_t kBase = 0x64006400;  // 1024
  static constexpr uint32_t kUpper = 0x64086408, kLower = 0x64806480;  // 1032 and 1152
  static constexpr int kLowerShift = 0;
  static constexpr uint32_t kLowerMask = 0x00f000f0;
  static constexpr float kLowerFactor = 1.0f / 16;
};
constexpr uint32_t kUpperMask = 0x000f000f, kSigns = 0x80008000;

// The eight elements of a word as the fragment of A, too large by what stands for zero: element i of a[j] is nibble j
// + 4 i.
template <typename T>
__device__ __forceinline__ void unpack(uint32_t word, uint32_t (&a)[4]) {
  a[0] = and_or(word, kUpperMask, Magic<T>::kBase);
  a[1] = and_or(word >> Magic<T>::kLowerShift, Magic<T>::kLowerMask, Magic<T>::kBase);
  a[2] = and_or(word >> 8, kUpperMask, Magic<T>::kBase);
  a[3] = and_or(word >> (8 + Magic<T>::kLowerShift), Magic<T>::kLowerMask, Magic<T>::kBase);
}

template <typename T>
__device__ __forceinline__ void subtract_zero(uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) a[i] = subtract_pairs<T>(a[i], i % 2 ? Magic<T>::kLower : Magic<T>::kUpper);
}

// Grid: x the tile of rows of x, y the tile of outputs. w [n / 16, k / 64, 32, 4] words and w_scale [n / 16, k /
// group, 16] as shuffle_int4 leaves them, n and k rounded up. k is a multiple of 32 and of group; group_reciprocal is
// that of group / 32.
template <typename T, int kColumnTiles, int kOutputWarps>
__global__ void __launch_bounds__(kThreads, kColumnTiles > 2 ? 1 : 2)
    int4_linear_kernel(const T* x, const uint4* w, const T* w_scale, int m, int n, int k, int groups,
                       uint32_t group_reciprocal, T* y) {
  constexpr int kColumns = 8 * kColumnTiles, kOutputs = kTiles * kTileOutputs * kOutputWarps;
  constexpr int kDepthWarps = kWarps / kOutputWarps;
  constexpr int kVectors = ring_vectors(kColumnTiles, kOutputWarps), kPitch = sums_pitch(kOutputWarps);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, quarter = lane % 4;
  const int output_warp = warp % kOutputWarps, depth_warp = warp / kOutputWarps;
  const int first_column = blockIdx.x * kColumns;
  const int first_tile = (blockIdx.y * kOutputWarps + output_warp) * kTiles;
  let_next_kernel_start();

  uint4* ring = reinterpret_cast<uint4*>(dynamic_shared());
  uint4* weight_ring = ring + warp * kTiles * 32 + lane;
  uint4* scale_ring = ring + kWeightVectors + warp * kTiles * 4;
  uint4* input_ring = ring + kWeightVectors + kScaleVectors + depth_warp * kColumnTiles * 2 * 32 + lane;

  const int all_tiles = (n + kTileOutputs - 1) / kTileOutputs, all_steps = (k + kStep - 1) / kStep;
  // A warp has the steps depth_warp, depth_warp + kDepthWarps and so on; all warps that share x have the same.
  const int steps = all_steps > depth_warp ? (all_steps - depth_warp + kDepthWarps - 1) / kDepthWarps : 0;

  // What a lane copies next, and up to which step or element of k there is any.
  int weight_step = depth_warp;
  const uint4* weight_from[kTiles];
  int weight_end[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++) {
    weight_from[tile] = w + (static_cast<int64_t>(first_tile + tile) * all_steps + depth_warp) * 32 + lane;
    weight_end[tile] = first_tile + tile < all_tiles ? all_steps : 0;
  }
  // Of scales, a lane's number says the tile, the half of the step and the half of the tile's 16 scales.
  const int scale_tile = first_tile + lane / 4;
  const T* scale_from = w_scale + static_cast<int64_t>(scale_tile) * groups * kTileOutputs + lane % 2 * 8;
  int scale_half = 2 * depth_warp + lane / 2 % 2;
  const int scale_end = scale_tile < all_tiles ? k / kHalf : 0;
  const auto copy_weights = [&](int slot) {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      copy_async(weight_ring + slot * kVectors + tile * 32, weight_from[tile], weight_step < weight_end[tile]);
      weight_from[tile] += kDepthWarps * 32;
    }
    weight_step += kDepthWarps;
    if (lane < kTiles * 4)
      copy_async(scale_ring + slot * kVectors + lane,
                 scale_from + quotient(scale_half, group_reciprocal) * kTileOutputs, scale_half < scale_end);
    scale_half += 2 * kDepthWarps;
  };
  // Of x, each of the warps that share it copies every kOutputWarps-th vector.
  int depth = depth_warp * kStep;
  constexpr int kCopies = (2 * kColumnTiles + kOutputWarps - 1) / kOutputWarps;
  const T* input_from[kCopies];
  int input_end[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; i++) {
    const int vector = output_warp + i * kOutputWarps;
    const int column = first_column + vector / 2 * 8 + row, offset = vector % 2 * kHalf + quarter * 8;
    input_from[i] = x + static_cast<int64_t>(column) * k + depth + offset;
    input_end[i] = column < m ? k - offset : 0;
  }
  const auto copy_inputs = [&](int slot) {
#pragma unroll
    for (int i = 0; i < kCopies; i++) {
      const int vector = output_warp + i * kOutputWarps;
      if (vector < 2 * kColumnTiles)
        copy_async(input_ring + slot * kVectors + vector * 32, input_from[i], depth < input_end[i]);
      input_from[i] += kDepthWarps * kStep;
    }
    depth += kDepthWarps * kStep;
  };

  // The first weights hang on no other kernel: they are on their way while the one in front ends.
#pragma unroll
  for (int i = 0; i < kRing - 1; i++) copy_weights(i);
  wait_for_previous_kernel();
#pragma unroll
  for (int i = 0; i < kRing - 1; i++) {
    copy_inputs(i);
    copy_async_commit();
  }

  // Minus what stands for zero, as the fragment of A: times x it is where the sums begin. With more rows of x this
  // costs more than to subtract it from w.
  constexpr bool kIsZeroSummed = kColumnTiles == 1;
  constexpr uint32_t kZeros[4] = {Magic<T>::kUpper ^ kSigns, Magic<T>::kLower ^ kSigns, Magic<T>::kUpper ^ kSigns,
                                  Magic<T>::kLower ^ kSigns};
  float totals[kTiles][kColumnTiles][4] = {};
  int slot = 0, free_slot = kRing - 1;
  for (int i = 0; i < steps; i++) {
    copy_async_wait<kRing - 2>();
    if constexpr (kOutputWarps == 1)
      synchronise_warp();
    else
      synchronise_threads(1 + depth_warp, kOutputWarps * 32);
    // All have read the slot before this one: it is free.
    copy_weights(free_slot);
    copy_inputs(free_slot);
    copy_async_commit();
    uint4 weights[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) weights[tile] = weight_ring[slot * kVectors + tile * 32];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint4 b[kColumnTiles];
#pragma unroll
      for (int c = 0; c < kColumnTiles; c++) b[c] = input_ring[slot * kVectors + (2 * c + half) * 32];
      float start[kColumnTiles][4] = {};
      if constexpr (kIsZeroSummed) {
        multiply_add<T>(start[0], kZeros, b[0].x, b[0].y);
        multiply_add<T>(start[0], kZeros, b[0].z, b[0].w);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        float sums[kColumnTiles][4];
#pragma unroll
        for (int c = 0; c < kColumnTiles; c++)
#pragma unroll
          for (int part = 0; part < 4; part++) sums[c][part] = start[c][part];
        uint32_t a[4];
        unpack<T>(half ? weights[tile].z : weights[tile].x, a);
        if constexpr (!kIsZeroSummed) subtract_zero<T>(a);
#pragma unroll
        for (int c = 0; c < kColumnTiles; c++) multiply_add<T>(sums[c], a, b[c].x, b[c].y);
        unpack<T>(half ? weights[tile].w : weights[tile].y, a);
        if constexpr (!kIsZeroSummed) subtract_zero<T>(a);
#pragma unroll
        for (int c = 0; c < kColumnTiles; c++) multiply_add<T>(sums[c], a, b[c].z, b[c].w);
        const uint4* vectors = scale_ring + slot * kVectors + tile * 4 + half * 2;
        const uint32_t scales = reinterpret_cast<const uint32_t*>(vectors)[row];
        const float upper = to_float(part_of<T>(scales, 0));
        const float lower = to_float(part_of<T>(scales, 1)) * Magic<T>::kLowerFactor;
#pragma unroll
        for (int c = 0; c < kColumnTiles; c++)
#pragma unroll
          for (int part = 0; part < 4; part++) totals[tile][c][part] += (part < 2 ? upper : lower) * sums[c][part];
      }
    }
    slot = slot + 1 < kRing ? slot + 1 : 0;
    free_slot = free_slot + 1 < kRing ? free_slot + 1 : 0;
  }

  // [warp that splits k][column][output], over the ring, into which zeros can still be on their way.
  float* sums = reinterpret_cast<float*>(dynamic_shared());
  copy_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
    for (int c = 0; c < kColumnTiles; c++)
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const int column = 8 * c + 2 * quarter + part % 2;
        const int output = (output_warp * kTiles + tile) * kTileOutputs + row + part / 2 * 8;
        sums[(depth_warp * kColumns + column) * kPitch + output] = totals[tile][c][part];
      }
  __syncthreads();
#pragma unroll 1
  for (int index = threadIdx.x; index < kOutputs * kColumns; index += kThreads) {
    const int output = index % kOutputs, column = index / kOutputs;
    const int to_output = blockIdx.y * kOutputs + output, to_column = first_column + column;
    if (to_output >= n || to_column >= m) continue;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kDepthWarps; i++) sum += sums[(i * kColumns + column) * kPitch + output];
    y[static_cast<int64_t>(to_column) * n + to_output] = from_float<T>(sum);
  }
}

template <typename T, int kColumnTiles, int kOutputWarps>
cudaError_t launch_int4(const void* x, const void* w, const void* w_scale, int m, int n, int k, int group, void* y,
                        cudaStream_t stream) {
  constexpr int kColumns = 8 * kColumnTiles, kOutputs = kTiles * kTileOutputs * kOutputWarps;
  const int64_t tiles = (static_cast<int64_t>(n) + kOutputs - 1) / kOutputs;
  if (tiles > 65535) return cudaErrorInvalidValue;
  const dim3 grid((m + kColumns - 1) / kColumns, static_cast<unsigned>(tiles));
  return launch(int4_linear_kernel<T, kColumnTiles, kOutputWarps>, grid, kThreads,
                shared_bytes(kColumnTiles, kOutputWarps), stream, static_cast<const T*>(x),
                static_cast<const uint4*>(w), static_cast<const T*>(w_scale), m, n, k, k / group,
                reciprocal_of(group / kHalf), static_cast<T*>(y));
}

// How many warps of a block share x. More rows of x need more, lest it fills the ring.
template <typename T>
cudaError_t int4_linear(const void* x, const void* w, const void* w_scale, int m, int n, int k, int group, void* y,
                        cudaStream_t stream) {
  const int enough = multiprocessors() * 3 / 4;
  const bool is_wide = m > 2 && n / 64 >= enough, is_widest = m > 2 && n / 128 >= enough;
  if (m > 16) return launch_int4<T, 4, 4>(x, w, w_scale, m, n, k, group, y, stream);
  if (m > 8)
    return is_widest ? launch_int4<T, 2, 4>(x, w, w_scale, m, n, k, group, y, stream)
                     : launch_int4<T, 2, 2>(x, w, w_scale, m, n, k, group, y, stream);
  if (is_widest) return launch_int4<T, 1, 4>(x, w, w_scale, m, n, k, group, y, stream);
  return is_wide ? launch_int4<T, 1, 2>(x, w, w_scale, m, n, k, group, y, stream)
                 : launch_int4<T, 1, 1>(x, w, w_scale, m, n, k, group, y, stream);
}

}  // namespace
}  // namespace vorta

// x [m, k], y [m, n] and the scales are bf16 or fp16; all pointers are aligned to 16 bytes. More than 32 rows of x
// read w again for every 32.
VORTA_EXPORT int vorta_int4_linear(const void* x, const void* w, const void* w_scale, int m, int n, int k, int group,
                                   int is_bf16, void* y, cudaStream_t stream) {
  using namespace vorta;
  if (m < 0 || n < 0 || k < 0 || k >= kMaxDepth || group < kHalf || group % kHalf || k % group)
    return cudaErrorInvalidValue;
  const auto address = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(w) |
                       reinterpret_cast<uintptr_t>(w_scale);
  if (address % 16) return cudaErrorInvalidValue;
  if (m == 0 || n == 0) return cudaSuccess;
  if (is_bf16) return int4_linear<bf16>(x, w, w_scale, m, n, k, group, y, stream);
  return int4_linear<fp16>(x, w, w_scale, m, n, k, group, y, stream);
}
