// Products of floats on the processor's tiles (AMX), which multiply numbers of bfloat16. A float is the sum of three such
// numbers, 3 x 8 bits, and a product of two floats that of the six largest of their nine products: what is left out is
// below 2^-23 of the product, as far as the two roundings of a product and a sum of floats may be off. (Numbers below
// 2^-110 lose their last bits: tiles take what is no normal number for zero.) Sums are floats: 32 products of one part with
// another are added up, then added to the output. So results are as far from exact ones as those of float_gemm.cpp, but
// not the same.
#pragma once

#include "amx.h"
#include "float_gemm.h"

namespace vorta {

#if VORTA_AMX

// Whether products of floats are computed so: then for any number of rows, since a row's result must not depend on it.
inline bool floats_on_tiles() { return has_tiles(); }

// Rows [rows, size] in parts, for several calls below. The memory is the calling thread's, until its next call.
const uint16_t* split_rows(const float* x, int64_t rows, int64_t size);

// `multiply` of float_gemm.h. `row_parts` are those of the rows, or null: then they are made here. Those of the weights are
// made two tiles at a time: kept they would take half as much memory again as the weights, and with many rows they cost
// little.
void multiply_on_tiles(const float* x, const uint16_t* row_parts, int64_t rows, const TileWeights& weights, int64_t first,
                       int64_t last, float* out);

#else

inline constexpr bool floats_on_tiles() { return false; }

#endif

}  // namespace vorta
