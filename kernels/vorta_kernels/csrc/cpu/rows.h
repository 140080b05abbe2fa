// Row operators between products: each leaves what the next product reads, 8-bit codes -127 to 127 of a row, and returns
// the factor by which they are to be multiplied, max|x| / 127. All of a row's arithmetic is in one thread and in one
// order, so that a row depends on nothing but itself.
#pragma once

#include <cstdint>

namespace vorta {

// codes = round(127 x / max|x|), with zeros behind them up to `padded`.
float quantise_row(const float* x, int64_t size, int64_t padded, int8_t* codes);

// total = residual + delta (delta may be null: then total is the residual and not written); the codes are those of
// total / rms(total) * weight. Scratch [size].
float add_norm_quantise_row(const float* residual, const float* delta, const float* weight, float epsilon,
                            int64_t size, int64_t padded, float* total, float* scratch, int8_t* codes);

// The codes of silu(gate) * up. Scratch [size].
float gate_quantise_row(const float* gate, const float* up, int64_t size, int64_t padded, float* scratch,
                        int8_t* codes);

}  // namespace vorta
