// y [m, n] = x [m, k] times w [n, k] transposed for a few rows of x, which is a read of w and little more: 8-bit or
// 16-bit elements, sums in float32.
//
// Floor: the bytes of w. To come near it takes bytes in flight: latency times bandwidth, 23 to 32 KiB a
// multiprocessor on an H200. Here a block of 8 warps has 24 KiB of w on the way (48 with two row tiles), and two to
// four blocks share a multiprocessor.
//
// A block makes 16 * kRowTiles outputs of 8 * kColumnTiles rows of x. Its warps split k: units of 128 bytes of a row (a
// line of L2), in turn, so that the block reads on along its rows and no warp is more than a unit behind. Products go
// to the tensor cores (mma m16n8k16, w as A, x as B): a multiply-add a weight and row would not keep up from some 4
// rows on.
//
// w and x reach a lane in the order in which they lie, so that nothing is shuffled: the sum is over k in any order,
// hence product j of a step takes what lane t has in its own 16 bytes for the fragment's k = 2t, 2t + 1, 2t + 8, 2t +
// 9, of w and x alike. They come by asynchronous 16-byte copies through a ring in shared memory, of which a lane
// reads what it copied itself: no barrier in the loop, and no registers for what is on the way. w goes past L1, x
// through it. float8 becomes fp16 behind the ring, exactly.
//
// At the end the warps' sums meet in shared memory and are added in the order of the warps: a result is always the
// same.
#pragma once

#include "device.h"

namespace vorta {

constexpr int kLinearThreads = 256;
constexpr int kLinearWarps = kLinearThreads / 32;
constexpr int kStepBytes = 64;  // Of a row: 16 bytes for each of the 4 lanes that share it. A unit is two steps.
constexpr int kRing = 4;        // Steps.

// Where a lane's 16 bytes of its warp's step lie in a row; past its end for the steps behind the warp's last.
VORTA_BOTH int step_offset(int warp, int step, int quarter) {
  return ((step / 2 * kLinearWarps + warp) * 2 + step % 2) * kStepBytes + quarter * 16;
}

// How many steps a warp has in a row, an even number; some bytes of the last two can be past its end.
VORTA_BOTH int steps_of(int warp, int row_bytes) {
  const int units = (row_bytes + 2 * kStepBytes - 1) / (2 * kStepBytes);
  return units > warp ? 2 * ((units - warp + kLinearWarps - 1) / kLinearWarps) : 0;
}

// What a lane multiplies of its 16 bytes: pairs 2j and 2j + 1 belong to product j.
struct Fp8 {
  using Number = fp16;
  static constexpr int kProducts = 4;
  static __device__ __forceinline__ void unpack(uint4 bytes, uint32_t (&pairs)[2 * kProducts]) {
    const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint2 wide = e4m3_to_fp16(words[i]);
      pairs[2 * i] = wide.x;
      pairs[2 * i + 1] = wide.y;
    }
  }
};

template <typename T>
struct Bits16 {
  using Number = T;
  static constexpr int kProducts = 2;
  static __device__ __forceinline__ void unpack(uint4 bytes, uint32_t (&pairs)[2 * kProducts]) {
    pairs[0] = bytes.x, pairs[1] = bytes.y, pairs[2] = bytes.z, pairs[3] = bytes.w;
  }
};
struct Bf16 : Bits16<bf16> {};
struct Fp16 : Bits16<fp16> {};

// Of a column of sums: four more than its outputs, so that the lanes of a warp write to 32 banks.
VORTA_BOTH constexpr int sums_pitch(int row_tiles) { return 16 * row_tiles + 4; }

constexpr size_t skinny_shared_bytes(int row_tiles, int column_tiles) {
  const size_t ring = static_cast<size_t>(kRing) * (2 * row_tiles + column_tiles) * kLinearThreads * sizeof(uint4);
  const size_t sums = static_cast<size_t>(kLinearWarps) * 8 * column_tiles * sums_pitch(row_tiles) * sizeof(float);
  return ring > sums ? ring : sums;
}

// Grid: x the tile of rows of x (blocks that share w run side by side), y the tile of outputs. `row_bytes` of x and w
// is a multiple of 16. The scales are null for none.
template <typename Format, typename Output, int kRowTiles, int kColumnTiles>
__global__ void __launch_bounds__(kLinearThreads, 2)
    skinny_linear_kernel(const char* x, const float* x_scale, const char* w, const float* w_scale, int m, int n,
                         int row_bytes, Output* y) {
  constexpr int kOutputs = 16 * kRowTiles, kColumns = 8 * kColumnTiles;
  constexpr int kPitch = sums_pitch(kRowTiles);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quarter = lane % 4;
  const int first_output = blockIdx.y * kOutputs, first_column = blockIdx.x * kColumns;
  let_next_kernel_start();

  // [kRing][w's vectors, then x's][thread]
  uint4* ring = reinterpret_cast<uint4*>(dynamic_shared());
  const auto slot = [&](int step, int vector) {
    return ring + (step % kRing * (2 * kRowTiles + kColumnTiles) + vector) * kLinearThreads + threadIdx.x;
  };

  // Rows past the end are read as the last one, and their sums are not stored; x's are zeros.
  const char* rows[2 * kRowTiles];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; i++) {
    const int row = first_output + 8 * i + group;
    rows[i] = w + static_cast<int64_t>(row < n ? row : n - 1) * row_bytes;
  }
  const char* columns[kColumnTiles];
  int column_bytes[kColumnTiles];
#pragma unroll
  for (int i = 0; i < kColumnTiles; i++) {
    const int column = first_column + 8 * i + group;
    columns[i] = x + static_cast<int64_t>(column) * row_bytes;
    column_bytes[i] = column < m ? row_bytes : 0;
  }
  const auto copy_weights = [&](int step) {
    const int at = step_offset(warp, step, quarter);
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; i++) copy_async(slot(step, i), rows[i] + at, at < row_bytes);
  };
  const auto copy_inputs = [&](int step) {
    const int at = step_offset(warp, step, quarter);
#pragma unroll
    for (int i = 0; i < kColumnTiles; i++)
      copy_async_shared_by_blocks(slot(step, 2 * kRowTiles + i), columns[i] + at, at < column_bytes[i]);
  };

  // The first weights hang on no other kernel: they are on their way while the one in front ends.
#pragma unroll
  for (int step = 0; step < kRing - 1; step++) copy_weights(step);
  wait_for_previous_kernel();
#pragma unroll
  for (int step = 0; step < kRing - 1; step++) {
    copy_inputs(step);
    copy_async_commit();
  }

  float totals[kRowTiles][kColumnTiles][4] = {};
  const int steps = steps_of(warp, row_bytes);
#pragma unroll 2
  for (int step = 0; step < steps; step++) {
    copy_async_wait<kRing - 2>();
    uint4 weights[2 * kRowTiles];
    uint32_t b[kColumnTiles][2 * Format::kProducts];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; i++) weights[i] = *slot(step, i);
#pragma unroll
    for (int i = 0; i < kColumnTiles; i++) Format::unpack(*slot(step, 2 * kRowTiles + i), b[i]);
    copy_weights(step + kRing - 1);  // Over what this lane read in the last turn.
    copy_inputs(step + kRing - 1);
    copy_async_commit();
#pragma unroll
    for (int r = 0; r < kRowTiles; r++) {
      uint32_t top[2 * Format::kProducts], bottom[2 * Format::kProducts];
      Format::unpack(weights[2 * r], top);
      Format::unpack(weights[2 * r + 1], bottom);
#pragma unroll
      for (int j = 0; j < Format::kProducts; j++) {
        const uint32_t a[4] = {top[2 * j], bottom[2 * j], top[2 * j + 1], bottom[2 * j + 1]};
#pragma unroll
        for (int i = 0; i < kColumnTiles; i++)
          multiply_add<typename Format::Number>(totals[r][i], a, b[i][2 * j], b[i][2 * j + 1]);
      }
    }
  }

  // [warp][column][output], over the ring, into which zeros can still be on their way.
  copy_async_wait<0>();
  float* sums = reinterpret_cast<float*>(dynamic_shared());
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRowTiles; r++)
#pragma unroll
    for (int i = 0; i < kColumnTiles; i++)
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const int column = 8 * i + 2 * quarter + part % 2, output = 16 * r + group + part / 2 * 8;
        sums[(warp * kColumns + column) * kPitch + output] = totals[r][i][part];
      }
  __syncthreads();
#pragma unroll 1
  for (int index = threadIdx.x; index < kOutputs * kColumns; index += kLinearThreads) {
    const int output = index % kOutputs, column = index / kOutputs;
    const int to_output = first_output + output, to_column = first_column + column;
    if (to_output >= n || to_column >= m) continue;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kLinearWarps; i++) sum += sums[(i * kColumns + column) * kPitch + output];
    if (w_scale) sum *= w_scale[to_output];
    if (x_scale) sum *= x_scale[to_column];
    y[static_cast<int64_t>(to_column) * n + to_output] = from_float<Output>(sum);
  }
}

template <typename Format, typename Output, int kRowTiles, int kColumnTiles>
cudaError_t launch_skinny(const void* x, const float* x_scale, const void* w, const float* w_scale, int m, int n,
                          int row_bytes, void* y, cudaStream_t stream) {
  const int64_t tiles = (static_cast<int64_t>(n) + 16 * kRowTiles - 1) / (16 * kRowTiles);
  if (tiles > 65535) return cudaErrorInvalidValue;
  const dim3 grid((m + 8 * kColumnTiles - 1) / (8 * kColumnTiles), static_cast<unsigned>(tiles));
  return launch(skinny_linear_kernel<Format, Output, kRowTiles, kColumnTiles>, grid, kLinearThreads,
                skinny_shared_bytes(kRowTiles, kColumnTiles), stream, static_cast<const char*>(x), x_scale,
                static_cast<const char*>(w), w_scale, m, n, row_bytes, static_cast<Output*>(y));
}

// More than 16 rows of x read w again for every 16, from L2 where it holds them. Two tiles of outputs a block halve the
// reads of x, which are half of w's bytes at 8 rows and as many at 16; but not where that leaves multiprocessors idle.
template <typename Format, typename Output>
cudaError_t skinny_linear(const void* x, const float* x_scale, const void* w, const float* w_scale, int m, int n,
                          int64_t row_bytes, void* y, cudaStream_t stream) {
  if (m < 0 || n < 0 || row_bytes < 0 || row_bytes % 16 || row_bytes >= 1 << 30) return cudaErrorInvalidValue;
  if ((reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(w)) % 16) return cudaErrorInvalidValue;
  if (m == 0 || n == 0) return cudaSuccess;
  const int bytes = static_cast<int>(row_bytes);
  const bool is_wide = m > 2 && n / 32 >= multiprocessors() * 3 / 4;
  if (m > 8)
    return is_wide ? launch_skinny<Format, Output, 2, 2>(x, x_scale, w, w_scale, m, n, bytes, y, stream)
                   : launch_skinny<Format, Output, 1, 2>(x, x_scale, w, w_scale, m, n, bytes, y, stream);
  return is_wide ? launch_skinny<Format, Output, 2, 1>(x, x_scale, w, w_scale, m, n, bytes, y, stream)
                 : launch_skinny<Format, Output, 1, 1>(x, x_scale, w, w_scale, m, n, bytes, y, stream);
}

}  // namespace vorta
