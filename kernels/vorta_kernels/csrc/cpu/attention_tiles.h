// The inner products of attention: scores of queries with keys that lie transposed, and sums of values by weights.
#pragma once

#include "vec.h"

namespace vorta {

constexpr int64_t kKeyBlock = 128;  // keys whose scores are held at once: the distance of two rows of scores
constexpr float kNever = -1e30f;

inline int64_t rounded_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// scores[r, 0:16] = queries[r] . 16 keys, which lie as [dim, 16]; queries are `stride` apart.
template <int kRows>
void score_tile(const float* queries, int64_t stride, const float* packed, int64_t dim, float* scores) {
  Vec sums[kRows] = {};
  for (int64_t i = 0; i < dim; ++i) {
    const Vec keys = load(packed + i * kLanes);
    for (int r = 0; r < kRows; ++r) sums[r] += keys * queries[r * stride + i];
  }
  for (int r = 0; r < kRows; ++r) store(scores + r * kKeyBlock, sums[r]);
}

#define VORTA_UP_TO_12(CASE) \
  CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)

// How many of the rows that are left go together: rather two halves than a full group and a few.
inline int64_t next_rows(int64_t left, int64_t most) {
  return left > most && left < 2 * most ? (left + 1) / 2 : (left < most ? left : most);
}

// The same for any number of rows.
inline void score_rows(const float* queries, int64_t stride, int64_t rows, const float* packed, int64_t dim,
                       float* scores) {
  for (int64_t r = 0; r < rows;) {
    const int64_t take = next_rows(rows - r, 12);
    switch (take) {
#define VORTA_SCORE(count)                                                               \
  case count:                                                                            \
    score_tile<count>(queries + r * stride, stride, packed, dim, scores + r * kKeyBlock); \
    break;
      VORTA_UP_TO_12(VORTA_SCORE)
#undef VORTA_SCORE
    }
    r += take;
  }
}

// sums[r, 0:16 kWidth] += weights[r, j] values[j, 0:16 kWidth]; values are `stride` apart.
template <int kRows, int kWidth>
void mix_tile(const float* weights, const float* values, int64_t stride, int64_t count, int64_t dim, float* sums) {
  Vec totals[kRows][kWidth];
  for (int r = 0; r < kRows; ++r)
    for (int w = 0; w < kWidth; ++w) totals[r][w] = load(sums + r * dim + w * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    Vec part[kWidth];
    for (int w = 0; w < kWidth; ++w) part[w] = load(values + j * stride + w * kLanes);
    for (int r = 0; r < kRows; ++r)
      for (int w = 0; w < kWidth; ++w) totals[r][w] += part[w] * weights[r * kKeyBlock + j];
  }
  for (int r = 0; r < kRows; ++r)
    for (int w = 0; w < kWidth; ++w) store(sums + r * dim + w * kLanes, totals[r][w]);
}

template <int kWidth>
void mix_columns(const float* weights, int64_t rows, const float* values, int64_t stride, int64_t count, int64_t dim,
                 float* sums) {
  constexpr int kTile = kWidth >= 4 ? 6 : 12;  // as many sums as leave registers for the rest
  for (int64_t r = 0; r < rows;) {
    const int64_t take = next_rows(rows - r, kTile);
    switch (take) {
#define VORTA_MIX(rows_)                                                                                             \
  case rows_:                                                                                                        \
    if constexpr (rows_ <= kTile)                                                                                    \
      mix_tile<rows_, kWidth>(weights + r * kKeyBlock, values, stride, count, dim, sums + r * dim);                  \
    break;
      VORTA_UP_TO_12(VORTA_MIX)
#undef VORTA_MIX
    }
    r += take;
  }
}

// The same for rows and dim of any size.
inline void mix(const float* weights, int64_t rows, const float* values, int64_t stride, int64_t count, int64_t dim,
                float* sums) {
  if (dim % kLanes != 0) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < count; ++j)
        for (int64_t i = 0; i < dim; ++i) sums[r * dim + i] += weights[r * kKeyBlock + j] * values[j * stride + i];
    return;
  }
  int64_t column = 0;
  for (; column + 4 * kLanes <= dim; column += 4 * kLanes)
    mix_columns<4>(weights, rows, values + column, stride, count, dim, sums + column);
  for (; column + 2 * kLanes <= dim; column += 2 * kLanes)
    mix_columns<2>(weights, rows, values + column, stride, count, dim, sums + column);
  for (; column < dim; column += kLanes)
    mix_columns<1>(weights, rows, values + column, stride, count, dim, sums + column);
}

// The weights of a row of scores [count, rounded up to 16] in place, as e^(score - top) with the running top of softmax
// over several blocks (Milakov and Gimelshein, arXiv 1805.02867); what was summed before shrinks to the new top.
inline void weigh(float* line, int64_t padded, float& top, float& mass, float* sums, int64_t dim, bool has_before) {
  Vec top_lanes = load(line);
  for (int64_t j = kLanes; j < padded; j += kLanes) top_lanes = maximum(top_lanes, load(line + j));
  const float block_top = largest(top_lanes), new_top = block_top > top ? block_top : top;
  Vec added = Vec{};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec weight = exponential(load(line + j) - new_top);
    store(line + j, weight);
    added += weight;
  }
  if (new_top > top && has_before) {
    const float shrink = top > kNever ? std::exp(top - new_top) : 0.0f;
    mass *= shrink;
    for (int64_t i = 0; i < dim; ++i) sums[i] *= shrink;
  }
  top = new_top;
  mass += sum(added);
}

}  // namespace vorta
