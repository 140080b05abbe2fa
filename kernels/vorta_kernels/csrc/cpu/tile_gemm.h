// `multiply` of gemm.h on the processor's tiles (AMX), for more than a few rows; the same numbers, bit by bit.
#pragma once

#include "amx.h"
#include "gemm.h"

namespace vorta {

constexpr int64_t kTileRows = 16;

#if VORTA_AMX

// Whether so many rows are computed on tiles. Fewer are faster on vectors: a tile takes as long whatever it holds.
bool on_tiles(int64_t rows, const BlockWeights& weights);

// As `pack_rows` and `multiply`; groups of 16 rows, the last one filled up.
void pack_tile_rows(const int8_t* x, int64_t rows, const BlockWeights& weights, int32_t* packed);
void multiply_on_tiles(const int32_t* packed, const float* factors, bool factor_of_block, int64_t rows,
                       const BlockWeights& weights, int64_t first, int64_t last, float* out, int64_t stride);

#else

inline constexpr bool on_tiles(int64_t, const BlockWeights&) { return false; }

#endif

}  // namespace vorta
