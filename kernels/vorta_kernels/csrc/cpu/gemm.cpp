#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "vec.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace vorta {
namespace {

// Sixteen 32-bit sums, one for each output of a tile. `add` takes the four unsigned codes of every output and four
// signed ones of a row.
#if defined(__AVX512VNNI__) && defined(__AVX512F__)

struct Codes {
  __m512i value;
};
struct Sums {
  __m512i value;
  explicit Sums(int32_t start) : value(_mm512_set1_epi32(start)) {}
  void add(Codes codes, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    value = _mm512_dpbusd_epi32(value, codes.value, _mm512_set1_epi32(four));
  }
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

template <int kRows, int kBits, bool kFactorOfBlock>
void multiply_rows(const int8_t* x, const float* factors, const int32_t* sums, const BlockWeights& weights,
                   int64_t tile, float* out) {
  constexpr int32_t kZero = 1 << (kBits - 1);
  const int64_t num_blocks = weights.num_inputs / weights.block;
  const uint8_t* codes = weights.codes + tile * kTile * weights.num_inputs * kBits / 8;
  const float* scales = weights.scales + tile * kTile * num_blocks;
  Vec totals[kRows] = {};
  for (int64_t block = 0; block < num_blocks; ++block) {
    // The zero's share is taken off at the start.
    const auto start = [&](int row) { return Sums(-kZero * sums[row * num_blocks + block]); };
    const int8_t* part = x + block * weights.block;
    if constexpr (kRows <= 4) {
      // Two chains of sums for each row, so that one need not wait for the other.
      Sums first[4] = {start(0), start(kRows > 1 ? 1 : 0), start(kRows > 2 ? 2 : 0), start(kRows > 3 ? 3 : 0)};
      Sums second[4] = {Sums(0), Sums(0), Sums(0), Sums(0)};
      for (int64_t i = 0; i < weights.block; i += 8, codes += 8 * kTile * kBits / 8) {
        const auto [a, b] = next_codes<kBits>(codes);
        for (int row = 0; row < kRows; ++row) {
          add_codes<kBits>(first[row], a, part + row * weights.num_inputs + i);
          add_codes<kBits>(second[row], b, part + row * weights.num_inputs + i + 4);
        }
      }
      const Vec scale = load(scales + block * kTile);
      for (int row = 0; row < kRows; ++row) {
        const Vec sum = first[row].floats() + second[row].floats();
        totals[row] += kFactorOfBlock ? sum * (scale * factors[row * num_blocks + block]) : sum * scale;
      }
    } else {
      Sums rows[12] = {start(0), start(1), start(2), start(3), start(4),
                       start(kRows > 5 ? 5 : 0), start(kRows > 6 ? 6 : 0), start(kRows > 7 ? 7 : 0),
                       start(kRows > 8 ? 8 : 0), start(kRows > 9 ? 9 : 0), start(kRows > 10 ? 10 : 0),
                       start(kRows > 11 ? 11 : 0)};
      for (int64_t i = 0; i < weights.block; i += 8, codes += 8 * kTile * kBits / 8) {
        const auto [a, b] = next_codes<kBits>(codes);
        for (int row = 0; row < kRows; ++row) add_codes<kBits>(rows[row], a, part + row * weights.num_inputs + i);
        for (int row = 0; row < kRows; ++row) add_codes<kBits>(rows[row], b, part + row * weights.num_inputs + i + 4);
      }
      const Vec scale = load(scales + block * kTile);
      for (int row = 0; row < kRows; ++row)
        totals[row] += rows[row].floats() * (kFactorOfBlock ? scale * factors[row * num_blocks + block] : scale);
    }
  }
  const int64_t column = tile * kTile;
  const int64_t width = std::min(kTile, weights.num_outputs - column);
  for (int row = 0; row < kRows; ++row) {
    Vec value = kFactorOfBlock ? totals[row] : totals[row] * factors[row];
    float* to = out + row * weights.num_outputs + column;
    if (width == kTile) {
      if (weights.bias != nullptr) value += load(weights.bias + column);
      store(to, value);
    } else {
      for (int64_t i = 0; i < width; ++i)
        to[i] = value[i] + (weights.bias != nullptr ? weights.bias[column + i] : 0.0f);
    }
  }
}

template <int kBits, bool kFactorOfBlock>
void multiply_tiles(const int8_t* x, const float* factors, const int32_t* sums, int64_t rows,
                    const BlockWeights& weights, int64_t first, int64_t last, float* out) {
  const int64_t num_blocks = weights.num_inputs / weights.block;
  for (int64_t row = 0; row < rows;) {
    const int64_t left = rows - row;
    int64_t take = std::min<int64_t>(left, kMaxRows);
    // Rather two halves than a full group and a few rows.
    if (left > kMaxRows && left < 2 * kMaxRows) take = (left + 1) / 2;
    const int8_t* from = x + row * weights.num_inputs;
    const float* factor = factors + row * (kFactorOfBlock ? num_blocks : 1);
    const int32_t* sum = sums + row * num_blocks;
    float* to = out + row * weights.num_outputs;
    for (int64_t tile = first; tile < last; ++tile) {
      switch (take) {
#define VORTA_ROWS(count)                                                              \
  case count:                                                                          \
    multiply_rows<count, kBits, kFactorOfBlock>(from, factor, sum, weights, tile, to); \
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
    }
    row += take;
  }
}

}  // namespace

void sum_blocks(const int8_t* x, int64_t rows, int64_t num_inputs, int64_t block, int32_t* sums) {
  for (int64_t index = 0; index < rows * (num_inputs / block); ++index) {
    int32_t total = 0;
    for (int64_t i = 0; i < block; ++i) total += x[index * block + i];
    sums[index] = total;
  }
}

void multiply(const int8_t* x, const float* factors, bool factor_of_block, const int32_t* sums, int64_t rows,
              const BlockWeights& weights, int64_t first, int64_t last, float* out) {
  if (weights.bits == 4)
    (factor_of_block ? multiply_tiles<4, true> : multiply_tiles<4, false>)(x, factors, sums, rows, weights, first,
                                                                           last, out);
  else
    (factor_of_block ? multiply_tiles<8, true> : multiply_tiles<8, false>)(x, factors, sums, rows, weights, first,
                                                                           last, out);
}

}  // namespace vorta
