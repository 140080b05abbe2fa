#include "tile_gemm.h"

#if VORTA_AMX

#include <algorithm>
#include <cstring>
#include <vector>

#include "vec.h"

namespace vorta {
namespace {

constexpr int64_t kFewestRows = 9;
constexpr int64_t kLine = 64;
constexpr int64_t kAheadBytes = 4 << 10;  // how far ahead weights are asked for

// Inputs that one instruction takes.
inline int64_t inputs_of(const BlockWeights& weights) { return weights.block % 64 == 0 ? 64 : 32; }

// The codes of a block of 4 bits, one in a byte: eight inputs are in a line, the first four of them in the low halves.
inline void widen(const uint8_t* codes, int64_t block, uint8_t* to) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int64_t input = 0; input < block; input += 8) {
    const __m512i both = _mm512_loadu_si512(codes);
    _mm512_store_si512(to, _mm512_and_si512(both, mask));
    _mm512_store_si512(to + kLine, _mm512_and_si512(_mm512_srli_epi16(both, 4), mask));
    codes += kLine;
    to += 2 * kLine;
  }
}

// What a call works on.
struct Work {
  const int32_t* packed;
  const float* factors;
  const BlockWeights& weights;
  int64_t rows, num_blocks, inputs;
};

alignas(64) thread_local int32_t sums[4][kTileRows][kTile];

// Sums of one block for kGroups groups of rows and kTiles tiles of outputs, added to the rows' totals.
template <int kGroups, int kTiles, bool kFactorOfBlock>
inline void add_block(const Work& work, int64_t group, int64_t block, const uint8_t* const codes[2],
                      const Vec scales[2], Vec* totals) {
  const int64_t group_size = kTileRows * packed_row(work.weights), row_bytes = work.inputs;
  const int64_t steps = work.weights.block / work.inputs, step_bytes = kTileRows * work.inputs;
  const int32_t* starts[2];
  const int8_t* x[2];
  for (int g = 0; g < kGroups; ++g) {
    const int32_t* from = work.packed + (group + g) * group_size;
    starts[g] = from + block * kTileRows;
    x[g] = reinterpret_cast<const int8_t*>(from + work.num_blocks * kTileRows) + block * steps * step_bytes;
  }
  _tile_zero(0);
  if constexpr (kTiles > 1) _tile_zero(1);
  if constexpr (kGroups > 1) _tile_zero(2);
  if constexpr (kGroups > 1 && kTiles > 1) _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, x[0] + step * step_bytes, row_bytes);
    _tile_loadd(6, codes[0] + step * step_bytes, kLine);
    _tile_dpbsud(0, 4, 6);
    if constexpr (kTiles > 1) {
      _tile_loadd(7, codes[1] + step * step_bytes, kLine);
      _tile_dpbsud(1, 4, 7);
    }
    if constexpr (kGroups > 1) {
      _tile_loadd(5, x[1] + step * step_bytes, row_bytes);
      _tile_dpbsud(2, 5, 6);
      if constexpr (kTiles > 1) _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], kLine);
  if constexpr (kTiles > 1) _tile_stored(1, sums[1], kLine);
  if constexpr (kGroups > 1) _tile_stored(2, sums[2], kLine);
  if constexpr (kGroups > 1 && kTiles > 1) _tile_stored(3, sums[3], kLine);
  for (int g = 0; g < kGroups; ++g) {
    const int64_t first = (group + g) * kTileRows, count = std::min(kTileRows, work.rows - first);
    for (int64_t row = 0; row < count; ++row) {
      const __m512i start = _mm512_set1_epi32(starts[g][row]);
      for (int t = 0; t < kTiles; ++t) {
        const __m512i sum = _mm512_add_epi32(_mm512_load_si512(sums[2 * g + t][row]), start);
        const Vec value = reinterpret_cast<Vec>(_mm512_cvtepi32_ps(sum));
        Vec& total = totals[(first + row) * kTiles + t];
        const Vec factor =
            kFactorOfBlock ? scales[t] * work.factors[(first + row) * work.num_blocks + block] : scales[t];
        total = multiply_add(value, factor, total);
      }
    }
  }
}

template <int kTiles, bool kFactorOfBlock>
void multiply_tiles(const Work& work, int64_t tile, float* out, int64_t stride) {
  const BlockWeights& weights = work.weights;
  const int64_t groups = (work.rows + kTileRows - 1) / kTileRows;
  const int64_t block_bytes = weights.block * kTile * weights.bits / 8, tile_bytes = work.num_blocks * block_bytes;
  static thread_local std::vector<Vec> memory, wide;
  memory.assign(work.rows * kTiles, Vec{});
  if (weights.bits == 4) wide.resize(std::max<size_t>(wide.size(), 2 * weights.block / 4));
  Vec* totals = memory.data();
  const uint8_t* codes[2];
  Vec scales[2];
  for (int64_t block = 0; block < work.num_blocks; ++block) {
    for (int t = 0; t < kTiles; ++t) {
      const uint8_t* from = weights.codes + (tile + t) * tile_bytes + block * block_bytes;
      for (int64_t i = 0; i < block_bytes; i += kLine) __builtin_prefetch(from + kAheadBytes + i);
      scales[t] = load(weights.scales + ((tile + t) * work.num_blocks + block) * kTile);
      codes[t] = from;
      if (weights.bits == 4) {
        auto* to = reinterpret_cast<uint8_t*>(wide.data() + t * weights.block / 4);
        widen(from, weights.block, to);
        codes[t] = to;
      }
    }
    int64_t group = 0;
    for (; group + 2 <= groups; group += 2)
      add_block<2, kTiles, kFactorOfBlock>(work, group, block, codes, scales, totals);
    if (group < groups) add_block<1, kTiles, kFactorOfBlock>(work, group, block, codes, scales, totals);
  }
  for (int t = 0; t < kTiles; ++t) {
    const int64_t column = (tile + t) * kTile, width = std::min(kTile, weights.num_outputs - column);
    const Vec bias = weights.bias != nullptr ? load_part(weights.bias + column, width) : Vec{};
    for (int64_t row = 0; row < work.rows; ++row) {
      const Vec total = totals[row * kTiles + t];
      const Vec value = kFactorOfBlock ? total + bias : multiply_add(total, splat(work.factors[row]), bias);
      store_part(out + row * stride + t * kTile, value, width);
    }
  }
}

template <bool kFactorOfBlock>
void multiply_all(const Work& work, int64_t first, int64_t last, float* out, int64_t stride) {
  int64_t tile = first;
  for (; tile + 2 <= last; tile += 2)
    multiply_tiles<2, kFactorOfBlock>(work, tile, out + (tile - first) * kTile, stride);
  if (tile < last) multiply_tiles<1, kFactorOfBlock>(work, tile, out + (tile - first) * kTile, stride);
}

}  // namespace

bool on_tiles(int64_t rows, const BlockWeights& weights) {
  return rows >= kFewestRows && weights.block % 32 == 0 && has_tiles();
}

void pack_tile_rows(const int8_t* x, int64_t rows, const BlockWeights& weights, int32_t* packed) {
  const int64_t num_blocks = weights.num_inputs / weights.block, inputs = inputs_of(weights);
  const int32_t zero = 1 << (weights.bits - 1);
  for (int64_t first = 0; first < rows; first += kTileRows) {
    const int64_t count = std::min(kTileRows, rows - first);
    auto* to = reinterpret_cast<int8_t*>(packed + num_blocks * kTileRows);
    for (int64_t row = 0; row < kTileRows; ++row) {
      const int8_t* line = x + (first + row) * weights.num_inputs;
      for (int64_t block = 0; block < num_blocks; ++block)
        packed[block * kTileRows + row] =
            row < count ? -zero * sum_of_codes(line + block * weights.block, weights.block) : 0;
      for (int64_t input = 0; input < weights.num_inputs; input += inputs) {
        int8_t* place = to + input * kTileRows + row * inputs;
        if (row < count)
          std::memcpy(place, line + input, inputs);
        else
          std::memset(place, 0, inputs);
      }
    }
    packed += kTileRows * packed_row(weights);
  }
}

void multiply_on_tiles(const int32_t* packed, const float* factors, bool factor_of_block, int64_t rows,
                       const BlockWeights& weights, int64_t first, int64_t last, float* out, int64_t stride) {
  const Work work{packed, factors, weights, rows, weights.num_inputs / weights.block, inputs_of(weights)};
  const Tiles tiles(static_cast<int>(work.inputs));
  if (factor_of_block)
    multiply_all<true>(work, first, last, out, stride);
  else
    multiply_all<false>(work, first, last, out, stride);
}

}  // namespace vorta

#endif
