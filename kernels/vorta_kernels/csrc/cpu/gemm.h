// Products of 8-bit rows with weights of 4 or 8 bits in blocks that share a scale: y = factor * (x (q - zero) scale^T) + b.
// A row has one factor, or one for each block, which keeps a large number from making those of other blocks coarse.
//
// Weights lie in tiles of 16 outputs, as the dot-product instructions read them. A group is 64 bytes, four of each
// output: at 8 bits the codes of inputs 4 g to 4 g + 3; at 4 bits those of inputs 8 g to 8 g + 3 in the low halves and of
// 8 g + 4 to 8 g + 7 in the high ones. A tile holds its groups in order, scales are [tiles, blocks, 16]. Codes are
// unsigned with zero at 8 or 128. The sum of a block is exact, in 32 bits; blocks are added in order, in floats. So a
// row's result depends on that row alone, however many are computed together.
#pragma once

#include <cstdint>

namespace vorta {

constexpr int64_t kTile = 16;

struct BlockWeights {
  const uint8_t* codes;
  const float* scales;
  const float* bias;  // [num_outputs] or null
  int64_t num_outputs;
  int64_t num_inputs;  // a multiple of block
  int64_t block;       // a multiple of 8
  int bits;            // 4 or 8
};

// Rows as `multiply` reads them: groups of rows that are computed together, each the zero's share of every block,
// [blocks, rows of the group], then its codes, four at a time, [num_inputs / 4, rows of the group]. A row takes
// `packed_row` numbers, and `packed_size` says what all take, which is more on tiles (tile_gemm.h).
int64_t packed_row(const BlockWeights& weights);
int64_t packed_size(int64_t rows, const BlockWeights& weights);
void pack_rows(const int8_t* x, int64_t rows, const BlockWeights& weights, int32_t* packed);

// The outputs of tiles `first` to `last` - 1, written from `out` on, rows `stride` apart. `factors` are [rows, 1], or
// [rows, blocks] when `factor_of_block`.
void multiply(const int32_t* packed, const float* factors, bool factor_of_block, int64_t rows,
              const BlockWeights& weights, int64_t first, int64_t last, float* out, int64_t stride);

// The sum of so many codes.
int32_t sum_of_codes(const int8_t* x, int64_t count);

}  // namespace vorta
