#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "tile_gemm.h"
#include "vec.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace vorta {
namespace {

// Sixteen 32-bit sums, one for each output of a tile. `add` takes the four unsigned codes of every output and four
// signed ones of a row.
#if defined(__AVX512VNNI__) && defined(__AVX512F__)

typedef int32_t Four __attribute__((may_alias, aligned(1)));

struct Codes {
  __m512i value;
};
struct Sums {
  __m512i value;
  explicit Sums(int32_t start) : value(_mm512_set1_epi32(start)) {}
  // By hand: the compiler makes three instructions of it, a load, a copy of the sums and the product.
  void add(Codes codes, const int8_t* x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(value) : "v"(codes.value), "m"(*reinterpret_cast<const Four*>(x)));
  }
  void add(const Sums& other) { value = _mm512_add_epi32(value, other.value); }
  Vec floats() const { return __builtin_convertvector(reinterpret_cast<VecInt>(value), Vec); }
};
inline Codes load_codes(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
inline Codes low_half(Codes codes) { return {_mm512_and_si512(codes.value, _mm512_set1_epi8(15))}; }
inline Codes high_half(Codes codes) {
  return {_mm512_and_si512(_mm512_srli_epi16(codes.value, 4), _mm512_set1_epi8(15))};
}
template <int kBits>
inline void add_codes(Sums& sums, Codes codes, const int8_t* x) {
  sums.add(codes, x);
}
constexpr int kMaxRows = 12;

#elif defined(__AVX2__)

struct Codes {
  __m256i first, second;
};
struct Sums {
  __m256i first, second;
  explicit Sums(int32_t start) : first(_mm256_set1_epi32(start)), second(first) {}
  void add(const Sums& other) {
    first = _mm256_add_epi32(first, other.first);
    second = _mm256_add_epi32(second, other.second);
  }
  Vec floats() const {
    Vec out;
    const __m256 a = _mm256_cvtepi32_ps(first), b = _mm256_cvtepi32_ps(second);
    std::memcpy(&out, &a, sizeof a);
    std::memcpy(reinterpret_cast<char*>(&out) + sizeof a, &b, sizeof b);
    return out;
  }
};
inline Codes load_codes(const uint8_t* from) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32))};
}
inline Codes low_half(Codes codes) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(codes.first, mask), _mm256_and_si256(codes.second, mask)};
}
inline Codes high_half(Codes codes) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(codes.first, 4), mask),
          _mm256_and_si256(_mm256_srli_epi16(codes.second, 4), mask)};
}
// Two products are added in 16 bits with saturation, which 4-bit codes cannot reach. Codes of 8 bits go in two parts,
// their upper seven bits and their lowest one: 2 * 127 * 127 fits.
template <int kBits>
inline __m256i dot(__m256i codes, __m256i x) {
  const __m256i ones = _mm256_set1_epi16(1);
  if (kBits == 4) return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones);
  const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(codes, 1), _mm256_set1_epi8(127));
  const __m256i lowest = _mm256_and_si256(codes, _mm256_set1_epi8(1));
  const __m256i twice = _mm256_madd_epi16(_mm256_maddubs_epi16(upper, x), _mm256_set1_epi16(2));
  return _mm256_add_epi32(twice, _mm256_madd_epi16(_mm256_maddubs_epi16(lowest, x), ones));
}
template <int kBits>
inline void add_codes(Sums& sums, Codes codes, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  const __m256i row = _mm256_set1_epi32(four);
  sums.first = _mm256_add_epi32(sums.first, dot<kBits>(codes.first, row));
  sums.second = _mm256_add_epi32(sums.second, dot<kBits>(codes.second, row));
}
constexpr int kMaxRows = 4;

#else

struct Codes {
  uint8_t value[4 * kTile];
};
struct Sums {
  int32_t value[kTile];
  explicit Sums(int32_t start) { std::fill(value, value + kTile, start); }
  void add(const Sums& other) {
    for (int i = 0; i < kTile; ++i) value[i] += other.value[i];
  }
  Vec floats() const {
    Vec out;
    for (int i = 0; i < kTile; ++i) out[i] = static_cast<float>(value[i]);
    return out;
  }
};
inline Codes load_codes(const uint8_t* from) {
  Codes codes;
  std::memcpy(codes.value, from, sizeof codes.value);
  return codes;
}
inline Codes low_half(Codes codes) {
  for (uint8_t& code : codes.value) code &= 15;
  return codes;
}
inline Codes high_half(Codes codes) {
  for (uint8_t& code : codes.value) code >>= 4;
  return codes;
}
template <int kBits>
inline void add_codes(Sums& sums, const Codes& codes, const int8_t* x) {
  for (int i = 0; i < kTile; ++i)
    for (int part = 0; part < 4; ++part) sums.value[i] += codes.value[4 * i + part] * x[part];
}
constexpr int kMaxRows = 4;

#endif

struct TwoCodes {
  Codes a, b;
};

// The codes of eight inputs: the first four and the last four.
template <int kBits>
inline TwoCodes next_codes(const uint8_t* from) {
  const Codes first = load_codes(from);
  if constexpr (kBits == 4) return {low_half(first), high_half(first)};
  return {first, load_codes(from + 4 * kTile)};
}

constexpr int64_t kLine = 64;
constexpr int64_t kNearBytes = 12 << 10;  // a tile that stays in the first cache beside its rows
constexpr int64_t kAheadBytes = 6 << 10;  // how far ahead one group of rows asks for what it reads once

// How many of the rows that are left are computed together: rather two halves than a full group and a few rows.
inline int64_t next_group(int64_t left) {
  if (left > kMaxRows && left < 2 * kMaxRows) return (left + 1) / 2;
  return std::min<int64_t>(left, kMaxRows);
}

inline int64_t num_groups(int64_t rows) { return (rows + kMaxRows - 1) / kMaxRows; }

// to[i, row] = the i-th four codes of each row.
void pack_fours(const int8_t* x, int64_t rows, int64_t fours, int32_t* to) {
  if (rows == 1) {
    std::memcpy(to, x, fours * 4);
    return;
  }
  int64_t i = 0;
  // All lanes are stored: those beyond the rows are overwritten by what follows, but for the last.
  for (; i + 2 * kTile <= fours; i += kTile) {
    Vec part[16];
    for (int64_t row = 0; row < 16; ++row) {
      part[row] = Vec{};
      if (row < rows) std::memcpy(&part[row], x + row * fours * 4 + i * 4, sizeof(Vec));
    }
    transpose(part);
    for (int64_t k = 0; k < kTile; ++k) std::memcpy(to + (i + k) * rows, &part[k], sizeof(Vec));
  }
  for (; i < fours; ++i)
    for (int64_t row = 0; row < rows; ++row) std::memcpy(to + i * rows + row, x + (row * fours + i) * 4, 4);
}

// One tile of outputs for a group of packed rows. Lines at `ahead` are asked for on the way, `share` bytes of every block's,
// into the second cache where a tile does not stay in the first.
template <int kRows, int kBits, bool kFactorOfBlock>
void multiply_group(const int32_t* packed, const float* factors, const BlockWeights& weights, int64_t tile,
                    const uint8_t* ahead, int64_t share, float* out, int64_t stride) {
  constexpr int64_t kStep = 8 * kTile * kBits / 8;  // bytes of a tile for eight inputs
  const int64_t num_blocks = weights.num_inputs / weights.block, block_bytes = weights.block / 8 * kStep;
  const uint8_t* codes = weights.codes + tile * num_blocks * block_bytes;
  const float* scales = weights.scales + tile * kTile * num_blocks;
  const int32_t* starts = packed;
  const int8_t* x = reinterpret_cast<const int8_t*>(packed + kRows * num_blocks);
  Vec totals[kRows];
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) totals[row] = Vec{};
  for (int64_t block = 0; block < num_blocks; ++block) {
    if (num_blocks * block_bytes > kNearBytes)
      for (int64_t i = 0; i < share; i += kLine) __builtin_prefetch(ahead + i, 0, 2);
    else
      for (int64_t i = 0; i < share; i += kLine) __builtin_prefetch(ahead + i);
    ahead += block_bytes;
    const uint8_t* end = codes + block_bytes;
    const Vec scale = load(scales + block * kTile);
    const auto add = [&](int row, const Sums& sums) {
      const Vec factor = kFactorOfBlock ? scale * factors[row * num_blocks + block] : scale;
      totals[row] = multiply_add(sums.floats(), factor, totals[row]);
    };
    if constexpr (kRows <= 4) {
      // Two chains of sums for each row, so that one need not wait for the other.
      Sums first[4] = {Sums(starts[0]), Sums(starts[kRows > 1 ? 1 : 0]), Sums(starts[kRows > 2 ? 2 : 0]),
                       Sums(starts[kRows > 3 ? 3 : 0])};
      Sums second[4] = {Sums(0), Sums(0), Sums(0), Sums(0)};
      do {
        const auto [a, b] = next_codes<kBits>(codes);
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) add_codes<kBits>(first[row], a, x + 4 * row);
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) add_codes<kBits>(second[row], b, x + 4 * (kRows + row));
        codes += kStep;
        x += 8 * kRows;
      } while (codes < end);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        first[row].add(second[row]);
        add(row, first[row]);
      }
    } else {
      const auto start = [&](int row) { return Sums(starts[row < kRows ? row : 0]); };
      Sums rows[12] = {start(0), start(1), start(2), start(3), start(4),  start(5),
                       start(6), start(7), start(8), start(9), start(10), start(11)};
#pragma GCC unroll 2
      for (int64_t step = weights.block / 8; step > 0; --step) {
        const auto [a, b] = next_codes<kBits>(codes);
#pragma GCC unroll 12
        for (int row = 0; row < kRows; ++row) add_codes<kBits>(rows[row], a, x + 4 * row);
#pragma GCC unroll 12
        for (int row = 0; row < kRows; ++row) add_codes<kBits>(rows[row], b, x + 4 * (kRows + row));
        codes += kStep;
        x += 8 * kRows;
      }
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) add(row, rows[row]);
    }
    starts += kRows;
  }
  const int64_t column = tile * kTile;
  const int64_t width = std::min(kTile, weights.num_outputs - column);
  const Vec bias = weights.bias != nullptr ? load_part(weights.bias + column, width) : Vec{};
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
    const Vec value = kFactorOfBlock ? totals[row] + bias : multiply_add(totals[row], splat(factors[row]), bias);
    store_part(out + row * stride, value, width);
  }
}

template <int kBits, bool kFactorOfBlock>
void multiply_tiles(const int32_t* packed, const float* factors, int64_t rows, const BlockWeights& weights,
                    int64_t first, int64_t last, float* out, int64_t stride) {
  const int64_t num_blocks = weights.num_inputs / weights.block, tile_bytes = kTile * weights.num_inputs * kBits / 8;
  const int64_t groups = num_groups(rows), block_bytes = tile_bytes / std::max<int64_t>(1, num_blocks);
  const int64_t part = (block_bytes / groups + kLine - 1) / kLine * kLine;
  for (int64_t tile = first; tile < last; ++tile) {
    int64_t group = 0;
    for (int64_t row = 0; row < rows; ++group) {
      const int64_t take = next_group(rows - row);
      const int32_t* from = packed + row * packed_row(weights);
      const float* factor = factors + row * (kFactorOfBlock ? num_blocks : 1);
      float* to = out + row * stride + (tile - first) * kTile;
      // The groups share the work of asking for the next tile.
      const int64_t begin = group * part;
      const int64_t share = tile + 1 < last && rows > 4 ? std::max<int64_t>(0, std::min(part, block_bytes - begin)) : 0;
      const int64_t distance = groups == 1 ? std::min(tile_bytes, kAheadBytes) : tile_bytes;
      const uint8_t* ahead = weights.codes + tile * tile_bytes + distance + begin;
      switch (take) {
#define VORTA_ROWS(count)                                                                                  \
  case count:                                                                                              \
    if constexpr (count <= kMaxRows)                                                                       \
      multiply_group<count, kBits, kFactorOfBlock>(from, factor, weights, tile, ahead, share, to, stride); \
    break;
        VORTA_ROWS(1)
        VORTA_ROWS(2)
        VORTA_ROWS(3)
        VORTA_ROWS(4)
        VORTA_ROWS(5)
        VORTA_ROWS(6)
        VORTA_ROWS(7)
        VORTA_ROWS(8)
        VORTA_ROWS(9)
        VORTA_ROWS(10)
        VORTA_ROWS(11)
        VORTA_ROWS(12)
#undef VORTA_ROWS
      }
      row += take;
    }
  }
}

}  // namespace

int32_t sum_of_codes(const int8_t* x, int64_t count) {
  int32_t total = 0;
  int64_t i = 0;
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
  __m512i sums = _mm512_setzero_si512();
  for (; i + 64 <= count; i += 64)
    sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), _mm512_loadu_si512(x + i));
  if (i > 0) total = _mm512_reduce_add_epi32(sums);
#endif
  for (; i < count; ++i) total += x[i];
  return total;
}

int64_t packed_row(const BlockWeights& weights) {
  return weights.num_inputs / weights.block + weights.num_inputs / 4;
}

int64_t packed_size(int64_t rows, const BlockWeights& weights) {
  if (on_tiles(rows, weights)) rows = (rows + kTileRows - 1) / kTileRows * kTileRows;
  return rows * packed_row(weights);
}

void pack_rows(const int8_t* x, int64_t rows, const BlockWeights& weights, int32_t* packed) {
#if VORTA_AMX
  if (on_tiles(rows, weights)) return pack_tile_rows(x, rows, weights, packed);
#endif
  const int64_t num_blocks = weights.num_inputs / weights.block, fours = weights.num_inputs / 4;
  const int32_t zero = 1 << (weights.bits - 1);
  for (int64_t row = 0; row < rows;) {
    const int64_t take = next_group(rows - row);
    for (int64_t r = 0; r < take; ++r) {
      const int8_t* line = x + (row + r) * weights.num_inputs;
      for (int64_t block = 0; block < num_blocks; ++block)
        packed[block * take + r] = -zero * sum_of_codes(line + block * weights.block, weights.block);
    }
    pack_fours(x + row * weights.num_inputs, take, fours, packed + take * num_blocks);
    packed += take * packed_row(weights);
    row += take;
  }
}

void multiply(const int32_t* packed, const float* factors, bool factor_of_block, int64_t rows,
              const BlockWeights& weights, int64_t first, int64_t last, float* out, int64_t stride) {
  if (rows == 0) return;
#if VORTA_AMX
  if (on_tiles(rows, weights))
    return multiply_on_tiles(packed, factors, factor_of_block, rows, weights, first, last, out, stride);
#endif
  const auto tiles = weights.bits == 4 ? (factor_of_block ? multiply_tiles<4, true> : multiply_tiles<4, false>)
                                       : (factor_of_block ? multiply_tiles<8, true> : multiply_tiles<8, false>);
  tiles(packed, factors, rows, weights, first, last, out, stride);
}

}  // namespace vorta
