#include "float_gemm.h"

#include <algorithm>

#include "gemm.h"
#include "vec.h"

namespace vorta {
namespace {

constexpr int kMaxRows = 12;

template <int kRows>
void multiply_rows(const float* x, const TileWeights& weights, int64_t tile, float* out) {
  const int64_t size = weights.num_inputs;
  const float* values = weights.values + tile * kTile * size;
  Vec sums[kRows] = {};
  for (int64_t i = 0; i < size; ++i, values += kTile) {
    const Vec column = load(values);
    for (int row = 0; row < kRows; ++row) sums[row] += column * x[row * size + i];
  }
  const int64_t first = tile * kTile, width = std::min(kTile, weights.num_outputs - first);
  for (int row = 0; row < kRows; ++row) {
    float* to = out + row * weights.num_outputs + first;
    Vec value = sums[row];
    if (width == kTile) {
      if (weights.bias != nullptr) value += load(weights.bias + first);
      store(to, value);
    } else {
      for (int64_t i = 0; i < width; ++i)
        to[i] = value[i] + (weights.bias != nullptr ? weights.bias[first + i] : 0.0f);
    }
  }
}

}  // namespace

void multiply(const float* x, int64_t rows, const TileWeights& weights, int64_t first, int64_t last, float* out) {
  for (int64_t row = 0; row < rows;) {
    const int64_t left = rows - row;
    // Rather two halves than a full group and a few rows.
    const int64_t take = left > kMaxRows && left < 2 * kMaxRows ? (left + 1) / 2 : std::min<int64_t>(left, kMaxRows);
    const float* from = x + row * weights.num_inputs;
    float* to = out + row * weights.num_outputs;
    for (int64_t tile = first; tile < last; ++tile) {
      switch (take) {
#define VORTA_ROWS(count)                         \
  case count:                                     \
    multiply_rows<count>(from, weights, tile, to); \
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

}  // namespace vorta
