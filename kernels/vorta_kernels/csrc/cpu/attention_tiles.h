// The inner products of attention: scores of queries with keys that lie transposed, and sums of values by weights.
#pragma once

#include "vec.h"

namespace vorta {

constexpr int64_t kKeyBlock = 128;  // keys whose scores are held at once: the distance of two rows of scores
constexpr float kNever = -1e30f;

inline int64_t rounded_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// scores[r, 0:16] = queries[r] . 16 keys, which lie as [dim, 16].
template <int kRows>
void score_tile(const float* queries, const float* packed, int64_t dim, float* scores) {
  Vec sums[kRows] = {};
  for (int64_t i = 0; i < dim; ++i) {
    const Vec keys = load(packed + i * kLanes);
    for (int r = 0; r < kRows; ++r) sums[r] += keys * queries[r * dim + i];
  }
  for (int r = 0; r < kRows; ++r) store(scores + r * kKeyBlock, sums[r]);
}

// The same for any number of rows.
inline void score_rows(const float* queries, int64_t rows, const float* packed, int64_t dim, float* scores) {
  int64_t r = 0;
  for (; r + 12 <= rows; r += 12) score_tile<12>(queries + r * dim, packed, dim, scores + r * kKeyBlock);
  for (; r + 4 <= rows; r += 4) score_tile<4>(queries + r * dim, packed, dim, scores + r * kKeyBlock);
  for (; r < rows; ++r) score_tile<1>(queries + r * dim, packed, dim, scores + r * kKeyBlock);
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
  constexpr int kTile = kWidth >= 4 ? 7 : 12;  // as many sums as leave registers for the rest
  int64_t r = 0;
  for (; r + kTile <= rows; r += kTile)
    mix_tile<kTile, kWidth>(weights + r * kKeyBlock, values, stride, count, dim, sums + r * dim);
  for (; r + 3 <= rows; r += 3)
    mix_tile<3, kWidth>(weights + r * kKeyBlock, values, stride, count, dim, sums + r * dim);
  for (; r < rows; ++r) mix_tile<1, kWidth>(weights + r * kKeyBlock, values, stride, count, dim, sums + r * dim);
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
  const float new_top = largest(top_lanes) > top ? largest(top_lanes) : top;
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
