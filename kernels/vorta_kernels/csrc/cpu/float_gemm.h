// Products of rows with weights, both float32: y = x W^T + b. Weights lie in tiles of 16 outputs, [tiles, num_inputs, 16],
// zeros behind the last output. A row's sums run over the inputs in order, however many rows are computed together.
#pragma once

#include <cstdint>

namespace vorta {

struct TileWeights {
  const float* values;
  const float* bias;  // [num_outputs] or null
  int64_t num_outputs;
  int64_t num_inputs;
};

// out[rows, num_outputs] for the outputs of tiles `first` to `last` - 1.
void multiply(const float* x, int64_t rows, const TileWeights& weights, int64_t first, int64_t last, float* out);

}  // namespace vorta
