// The inner products of attention over prompts where the processor multiplies pairs of bfloat16 (AVX-512 BF16): twice
// the speed of floats, with errors like those of 8-bit activations. Sums are floats.
//
// Keys lie in tiles of 16, [dim / 2, 16] pairs of neighbouring elements; values as [keys / 2, dim] pairs of two keys. So
// both are what the processor's tiles (AMX) read, which take 32 elements or 32 keys at once and so need no rest of them.
#pragma once

#include "amx.h"
#include "attention_tiles.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>

#include <algorithm>

#define VORTA_HALVES 1

namespace vorta {

constexpr int64_t kHalvesMaxDim = 256;
constexpr int64_t kQueryPairs = kHalvesMaxDim / 2 + 16;  // distance of two queries: their lines fall into different sets
constexpr int64_t kWeightPairs = kKeyBlock / 2;          // distance of two rows of weights

// Pairs (a[i], b[i]).
inline __m512i pairs_of(__m512 a, __m512 b) {
  const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)));
  const __m512i high = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(b)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

inline void store_halves(uint32_t* to, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

// By hand, as in gemm.cpp.
inline void add_pairs(__m512& sum, __m512i pairs, const uint32_t* one) {
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(pairs), "m"(*one));
}

constexpr int64_t kTileKeys = 32;

// Keys [count, dim] as tiles, and values [count, dim] as pairs; dim is a multiple of 16. Lanes beyond count repeat the
// last key, values beyond it up to a multiple of kTileKeys are zeros.
inline void pack_keys(const float* keys, int64_t count, int64_t dim, uint32_t* packed) {
  for (int64_t j = 0; j < count; j += kLanes, packed += kLanes * dim / 2) {
    for (int64_t i = 0; i < dim; i += 2 * kLanes) {
      // Sixteen pairs of each of sixteen keys, or eight where dim ends.
      Vec rows[16];
      for (int64_t k = 0; k < kLanes; ++k) {
        const float* key = keys + std::min(j + k, count - 1) * dim + i;
        const __m256i low = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(key)));
        __m256i high = _mm256_setzero_si256();
        if (i + kLanes < dim) high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(key + kLanes)));
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        std::memcpy(&rows[k], &both, sizeof both);
      }
      transpose(rows);
      const int64_t pairs = std::min<int64_t>(kLanes, (dim - i) / 2);
      for (int64_t pair = 0; pair < pairs; ++pair)
        std::memcpy(packed + (i / 2 + pair) * kLanes, &rows[pair], sizeof(Vec));
    }
  }
}

inline void pack_values(const float* values, int64_t count, int64_t dim, uint32_t* packed) {
  for (int64_t j = 0; j < rounded_up(count, kTileKeys); j += 2)
    for (int64_t i = 0; i < dim; i += kLanes) {
      const __m512 first = j < count ? _mm512_loadu_ps(values + j * dim + i) : _mm512_setzero_ps();
      const __m512 second = j + 1 < count ? _mm512_loadu_ps(values + (j + 1) * dim + i) : _mm512_setzero_ps();
      _mm512_storeu_si512(packed + j / 2 * dim + i, pairs_of(first, second));
    }
}

// scores[r, 0:16 kTiles] = queries[r] . keys of kTiles tiles.
template <int kRows, int kTiles>
void score_halves_of(const uint32_t* queries, const uint32_t* packed, int64_t dim, float* scores) {
  __m512 sums[kRows][kTiles];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < kTiles; ++t) sums[r][t] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < dim / 2; ++pair) {
    __m512i keys[kTiles];
#pragma GCC unroll 2
    for (int t = 0; t < kTiles; ++t) keys[t] = _mm512_loadu_si512(packed + (t * (dim / 2) + pair) * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int t = 0; t < kTiles; ++t) add_pairs(sums[r][t], keys[t], queries + r * kQueryPairs + pair);
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(scores + r * kKeyBlock + t * kLanes, sums[r][t]);
}

inline void score_halves(const uint32_t* queries, int64_t rows, const uint32_t* packed, int64_t count, int64_t dim,
                         float* scores) {
  for (int64_t r = 0; r < rows;) {
    const int64_t take = next_rows(rows - r, 12);
    for (int64_t j = 0; j < count; j += 2 * kLanes) {
      const bool is_pair = j + kLanes < count;
      const uint32_t* tiles = packed + j * dim / 2;
      switch (take) {
#define VORTA_SCORE(rows_)                                                                                         \
  case rows_:                                                                                                      \
    (is_pair ? score_halves_of<rows_, 2> : score_halves_of<rows_, 1>)(queries + r * kQueryPairs, tiles, dim,       \
                                                                      scores + r * kKeyBlock + j);                 \
    break;
        VORTA_UP_TO_12(VORTA_SCORE)
#undef VORTA_SCORE
      }
    }
    r += take;
  }
}

// As `weigh`, of scores in units of ln 2; the weights become bfloat16.
inline void weigh_halves(const float* line, int64_t padded, float& top, float& mass, float* sums, int64_t dim,
                         bool has_before, uint32_t* weights) {
  __m512 most = _mm512_loadu_ps(line);
  for (int64_t j = kLanes; j < padded; j += kLanes) most = _mm512_max_ps(most, _mm512_loadu_ps(line + j));
  const float block_top = _mm512_reduce_max_ps(most), new_top = block_top > top ? block_top : top;
  const __m512 shift = _mm512_set1_ps(new_top);
  __m512 added = _mm512_setzero_ps();
  for (int64_t j = 0; j < padded; j += kLanes) {
    // 2^x as 2^n 2^r with r within -0.5 and 0.5; the relative error of the polynomial is 2.6e-6.
    const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(line + j), shift);
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(9.570102064e-3f), r, _mm512_set1_ps(5.591786319e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402474485e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931218144e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999992614e-1f));
    const __m512 weight = _mm512_scalef_ps(p, n);
    added = _mm512_add_ps(added, weight);
    store_halves(weights + j / 2, weight);
  }
  if (new_top > top && has_before) {
    const float shrink = top > kNever ? std::exp2(top - new_top) : 0.0f;
    mass *= shrink;
    for (int64_t i = 0; i < dim; i += kLanes) store(sums + i, load(sums + i) * shrink);
  }
  top = new_top;
  Vec lanes;
  std::memcpy(&lanes, &added, sizeof lanes);
  mass += sum(lanes);
}

// sums[r, 0:16 kWidth] += weights[r, j] values[j, 0:16 kWidth].
template <int kRows, int kWidth>
void mix_halves_of(const uint32_t* weights, const uint32_t* values, int64_t pairs, int64_t dim, float* sums) {
  __m512 totals[kRows][kWidth];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; ++w) totals[r][w] = _mm512_loadu_ps(sums + r * dim + w * kLanes);
  for (int64_t j = 0; j < pairs; ++j) {
    __m512i part[kWidth];
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; ++w) part[w] = _mm512_loadu_si512(values + j * dim + w * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int w = 0; w < kWidth; ++w) add_pairs(totals[r][w], part[w], weights + r * kWeightPairs + j);
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; ++w) _mm512_storeu_ps(sums + r * dim + w * kLanes, totals[r][w]);
}

template <int kWidth>
void mix_halves_columns(const uint32_t* weights, int64_t rows, const uint32_t* values, int64_t pairs, int64_t dim,
                        float* sums) {
  constexpr int kMost = kWidth >= 4 ? 6 : 12;
  for (int64_t r = 0; r < rows;) {
    const int64_t take = next_rows(rows - r, kMost);
    switch (take) {
#define VORTA_MIX(rows_)                                                                                      \
  case rows_:                                                                                                 \
    if constexpr (rows_ <= kMost)                                                                             \
      mix_halves_of<rows_, kWidth>(weights + r * kWeightPairs, values, pairs, dim, sums + r * dim);           \
    break;
      VORTA_UP_TO_12(VORTA_MIX)
#undef VORTA_MIX
    }
    r += take;
  }
}

inline void mix_halves(const uint32_t* weights, int64_t rows, const uint32_t* values, int64_t pairs, int64_t dim,
                       float* sums) {
  int64_t column = 0;
  for (; column + 4 * kLanes <= dim; column += 4 * kLanes)
    mix_halves_columns<4>(weights, rows, values + column, pairs, dim, sums + column);
  for (; column + 2 * kLanes <= dim; column += 2 * kLanes)
    mix_halves_columns<2>(weights, rows, values + column, pairs, dim, sums + column);
  for (; column < dim; column += kLanes)
    mix_halves_columns<1>(weights, rows, values + column, pairs, dim, sums + column);
}

#if VORTA_AMX

// The same two products on tiles, for dims that are multiples of 32 and rows up to a multiple of 16: what those beyond the
// last hold is of no account, but they are there. Each needs `Tiles`.
template <int kGroups>
void score_tiles_of(const uint32_t* queries, const uint32_t* packed, int64_t dim, bool is_pair, float* scores) {
  constexpr int64_t kLine = 64, kQueryBytes = kQueryPairs * 4, kScoreBytes = kKeyBlock * 4;
  const uint32_t* second = packed + (is_pair ? dim / 2 * kLanes : 0);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kGroups > 1) _tile_zero(2);
  if constexpr (kGroups > 1) _tile_zero(3);
  for (int64_t pair = 0; pair < dim / 2; pair += 16) {
    _tile_loadd(4, queries + pair, kQueryBytes);
    _tile_loadd(6, packed + pair * kLanes, kLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, second + pair * kLanes, kLine);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kGroups > 1) {
      _tile_loadd(5, queries + 16 * kQueryPairs + pair, kQueryBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, scores, kScoreBytes);
  if (is_pair) _tile_stored(1, scores + kLanes, kScoreBytes);
  if constexpr (kGroups > 1) {
    _tile_stored(2, scores + 16 * kKeyBlock, kScoreBytes);
    if (is_pair) _tile_stored(3, scores + 16 * kKeyBlock + kLanes, kScoreBytes);
  }
}

inline void score_tiles(const uint32_t* queries, int64_t rows, const uint32_t* packed, int64_t count, int64_t dim,
                        float* scores) {
  for (int64_t r = 0; r < rows; r += 32)
    for (int64_t j = 0; j < count; j += 2 * kLanes)
      (r + 16 < rows ? score_tiles_of<2> : score_tiles_of<1>)(queries + r * kQueryPairs, packed + j * dim / 2, dim,
                                                              j + kLanes < count, scores + r * kKeyBlock + j);
}

inline void mix_tiles(const uint32_t* weights, int64_t rows, const uint32_t* values, int64_t count, int64_t dim,
                      float* sums) {
  constexpr int64_t kWeightBytes = kWeightPairs * 4;
  const int64_t stride = dim * 4;
  for (int64_t r = 0; r < rows; r += 16)
    for (int64_t column = 0; column < dim; column += 2 * kLanes) {
      float* to = sums + r * dim + column;
      _tile_loadd(0, to, stride);
      _tile_loadd(1, to + kLanes, stride);
      for (int64_t j = 0; j < count; j += kTileKeys) {
        const uint32_t* part = values + j / 2 * dim + column;
        _tile_loadd(4, weights + r * kWeightPairs + j / 2, kWeightBytes);
        _tile_loadd(6, part, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, part + kLanes, stride);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, to, stride);
      _tile_stored(1, to + kLanes, stride);
    }
}

#endif

}  // namespace vorta

#else
#define VORTA_HALVES 0
#endif
