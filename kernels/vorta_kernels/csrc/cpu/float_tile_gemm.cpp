#include "float_tile_gemm.h"

#if VORTA_AMX

#include <algorithm>

#include "gemm.h"
#include "scratch.h"
#include "vec.h"

namespace vorta {
namespace {

constexpr int kParts = 3;
constexpr int64_t kInputs = 32;            // that one instruction takes
constexpr int64_t kRows = 16;
constexpr int64_t kPart = kRows * kInputs;  // halves of a tile, rows or weights
constexpr int64_t kStep = kParts * kPart;
constexpr int64_t kLine = 64;
constexpr int64_t kRunSteps = 12;           // inputs are taken in runs of 384: 256 rows of one are 576 KiB in parts

inline int64_t steps_of(int64_t size) { return (size + kInputs - 1) / kInputs; }
inline int64_t groups_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

// The next part of numbers in the upper halves of the lanes; `rest` keeps what is left of them. Of the third part nothing
// is: 24 bits are all that a float has.
inline VecInt next_part(Vec& rest) {
  const VecInt rounded = reinterpret_cast<VecInt>(rest) + 0x8000;
  rest = rest - reinterpret_cast<Vec>(rounded & static_cast<int32_t>(0xffff0000));
  return rounded;
}

// One instruction each: sums of tile `sums` with the products of rows in tile 4 + g and weights in tile 6 + t.
template <int kGroups, int kTiles>
inline void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kTiles > 1) _tile_dpbf16ps(1, 4, 7);
  if constexpr (kGroups > 1) _tile_dpbf16ps(2, 5, 6);
  if constexpr (kGroups > 1 && kTiles > 1) _tile_dpbf16ps(3, 5, 7);
}

// Adds the products of a run of `steps` steps to the sums of kGroups groups of rows and kTiles tiles of outputs, which lie in
// lines `stride` bytes apart. The first run's are added to `starts`, [16] of each tile in one line.
template <int kGroups, int kTiles>
void add_run(const uint16_t* rows, const uint16_t* weights, int64_t steps, const float* const starts[4],
             int64_t start_stride, float* const sums[4], int64_t stride) {
  const uint16_t *next_rows = rows + steps * kStep, *next_weights = weights + steps * kStep;
  _tile_loadd(0, starts[0], start_stride);
  if constexpr (kTiles > 1) _tile_loadd(1, starts[1], start_stride);
  if constexpr (kGroups > 1) _tile_loadd(2, starts[2], start_stride);
  if constexpr (kGroups > 1 && kTiles > 1) _tile_loadd(3, starts[3], start_stride);
  const auto load_rows = [&](int64_t at) {
    _tile_loadd(4, rows + at, kLine);
    if constexpr (kGroups > 1) _tile_loadd(5, next_rows + at, kLine);
  };
  const auto load_weights = [&](int64_t at) {
    _tile_loadd(6, weights + at, kLine);
    if constexpr (kTiles > 1) _tile_loadd(7, next_weights + at, kLine);
  };
  for (int64_t step = 0; step < steps; ++step) {
    // The small products first. From one pair of parts to the next only one side changes.
    const int64_t at = step * kStep;
    load_rows(at + 2 * kPart);
    load_weights(at);
    add_products<kGroups, kTiles>();
    load_rows(at + kPart);
    add_products<kGroups, kTiles>();
    load_weights(at + kPart);
    add_products<kGroups, kTiles>();
    load_rows(at);
    add_products<kGroups, kTiles>();
    load_weights(at + 2 * kPart);
    add_products<kGroups, kTiles>();
    load_weights(at);
    add_products<kGroups, kTiles>();
  }
  _tile_stored(0, sums[0], stride);
  if constexpr (kTiles > 1) _tile_stored(1, sums[1], stride);
  if constexpr (kGroups > 1) _tile_stored(2, sums[2], stride);
  if constexpr (kGroups > 1 && kTiles > 1) _tile_stored(3, sums[3], stride);
}

// Adds a run to all rows' outputs of a tile, or of two. The parts are those of the run.
template <int kTiles>
void add_to_tiles(const uint16_t* row_parts, int64_t rows, const uint16_t* parts, int64_t steps, bool is_first,
                  const TileWeights& weights, int64_t tile, float* out) {
  constexpr int64_t kWidth = kTiles * kTile;
  alignas(64) float bias[2 * kTile] = {};
  alignas(64) float corner[2 * kRows * kWidth];  // sums of which some are of no row or no output
  const int64_t column = tile * kTile, width = std::min(kWidth, weights.num_outputs - column);
  if (weights.bias != nullptr) std::copy_n(weights.bias + column, width, bias);
  for (int64_t group = 0, groups = groups_of(rows); group < groups; group += 2) {
    const int64_t first = group * kRows, take = std::min<int64_t>(2, groups - group);
    const int64_t count = std::min(take * kRows, rows - first);
    float* to = out + first * weights.num_outputs + column;
    const bool is_whole = count == take * kRows && width == kWidth;
    float* place = is_whole ? to : corner;
    const int64_t stride = is_whole ? weights.num_outputs : kWidth;
    if (!is_whole && !is_first)
      for (int64_t row = 0; row < count; ++row) std::copy_n(to + row * weights.num_outputs, width, corner + row * kWidth);
    float* sums[4];
    const float* starts[4];
    for (int i = 0; i < 4; ++i) {
      sums[i] = place + i / 2 * kRows * stride + i % 2 * kTile;
      starts[i] = is_first ? bias + i % 2 * kTile : sums[i];
    }
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
    (take == 2 ? add_run<2, kTiles> : add_run<1, kTiles>)(row_parts + group * steps * kStep, parts, steps, starts,
                                                          is_first ? 0 : bytes, sums, bytes);
    if (!is_whole)
      for (int64_t row = 0; row < count; ++row) std::copy_n(corner + row * kWidth, width, to + row * weights.num_outputs);
  }
}

// A run of rows in parts.
void split_run(const float* x, int64_t rows, int64_t size, int64_t first_step, int64_t steps, uint16_t* parts) {
  alignas(64) uint16_t upper_halves[kInputs];
  for (int i = 0; i < kInputs; ++i) upper_halves[i] = static_cast<uint16_t>(2 * i + 1);
  const __m512i upper = _mm512_load_si512(upper_halves);
  for (int64_t row = 0; row < groups_of(rows) * kRows; ++row) {
    uint16_t* to = parts + row / kRows * steps * kStep + row % kRows * kInputs;
    for (int64_t step = first_step; step < first_step + steps; ++step, to += kStep) {
      const float* from = x + row * size + step * kInputs;
      const int64_t left = row < rows ? size - step * kInputs : 0;
      Vec first = left > 0 ? load_part(from, std::min<int64_t>(kLanes, left)) : Vec{};
      Vec second = left > kLanes ? load_part(from + kLanes, std::min<int64_t>(kLanes, left - kLanes)) : Vec{};
#pragma GCC unroll 3
      for (int part = 0; part < kParts; ++part) {
        const VecInt a = next_part(first), b = next_part(second);
        const __m512i both = _mm512_permutex2var_epi16(reinterpret_cast<__m512i>(a), upper, reinterpret_cast<__m512i>(b));
        _mm512_store_si512(to + part * kPart, both);
      }
    }
  }
}

// A run of a tile of weights in parts.
void split_tile(const TileWeights& weights, int64_t tile, int64_t first_step, int64_t steps, uint16_t* parts) {
  const int64_t size = weights.num_inputs;
  for (int64_t step = first_step; step < first_step + steps; ++step, parts += kStep) {
    const float* from = weights.values + (tile * size + step * kInputs) * kTile;
    for (int64_t line = 0; line < kRows; ++line, from += 2 * kTile) {
      const int64_t input = step * kInputs + 2 * line;
      Vec low = input < size ? load(from) : Vec{};
      Vec high = input + 1 < size ? load(from + kTile) : Vec{};
#pragma GCC unroll 3
      for (int part = 0; part < kParts; ++part) {
        const VecInt a = next_part(low), b = next_part(high);
        const VecInt pairs = ((a >> 16) & 0xffff) | (b & static_cast<int32_t>(0xffff0000));
        _mm512_store_si512(parts + part * kPart + line * kInputs, reinterpret_cast<__m512i>(pairs));
      }
    }
  }
}

}  // namespace

const uint16_t* split_rows(const float* x, int64_t rows, int64_t size) {
  const int64_t all = steps_of(size), per_step = groups_of(rows) * kStep;
  uint16_t* parts = scratch_of<5, uint16_t>(all * per_step);
  for (int64_t step = 0; step < all; step += kRunSteps)
    split_run(x, rows, size, step, std::min(kRunSteps, all - step), parts + step * per_step);
  return parts;
}

void multiply_on_tiles(const float* x, const uint16_t* row_parts, int64_t rows, const TileWeights& weights, int64_t first,
                       int64_t last, float* out) {
  const Tiles tiles;
  const int64_t all = steps_of(weights.num_inputs), per_step = groups_of(rows) * kStep;
  uint16_t* parts = scratch_of<6, uint16_t>(2 * kRunSteps * kStep);
  for (int64_t step = 0; step < all; step += kRunSteps) {
    const int64_t steps = std::min(kRunSteps, all - step);
    const uint16_t* run = row_parts + step * per_step;
    if (row_parts == nullptr) {
      uint16_t* to = scratch_of<7, uint16_t>(steps * per_step);
      split_run(x, rows, weights.num_inputs, step, steps, to);
      run = to;
    }
    for (int64_t tile = first; tile < last; tile += 2) {
      const bool are_two = tile + 1 < last;
      split_tile(weights, tile, step, steps, parts);
      if (are_two) split_tile(weights, tile + 1, step, steps, parts + steps * kStep);
      (are_two ? add_to_tiles<2> : add_to_tiles<1>)(run, rows, parts, steps, step == 0, weights, tile, out);
    }
  }
}

}  // namespace vorta

#endif
