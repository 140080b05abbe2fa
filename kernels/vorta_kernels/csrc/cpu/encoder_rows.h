// Row operators of encoders: norms, activations, and 8-bit codes with a factor for each block. All of a row's arithmetic is
// in one thread and in one order, so that a row depends on nothing but itself.
#pragma once

#include <cstdint>

namespace vorta {

// Where a row's codes go, -127 to 127: `blocks` blocks of equal size, together `padded`, zeros behind the row. A block's
// factor is max|x| / 127.
struct RowCodes {
  int64_t padded, blocks;
  int8_t* codes;
  float* factors;
};

// codes = round(127 x / max|x|) by block.
void quantise_blocks(const float* x, int64_t size, const RowCodes& to);

// total = residual + delta (null for none); normed = (total - its mean) / its deviation * weight + bias (null for none), or
// as an RMS norm with nothing taken off. `total` may be the memory of `delta` or of `normed`.
void norm_row(bool is_rms, const float* residual, const float* delta, const float* weight, const float* bias,
              float epsilon, int64_t size, float* total, float* normed);

enum class Activation : int64_t { kGelu = 0, kGeluTanh = 1, kRelu = 2, kSilu = 3 };

// out = activation(x), times factor where it is not null. `out` may be the memory of `x`.
void activate_row(Activation activation, const float* x, const float* factor, int64_t size, float* out);

// The codes of the same; GELU is then off by 2e-4 at most, far below a code's step. `x` is overwritten.
void activate_and_quantise_row(Activation activation, float* x, const float* factor, int64_t size, const RowCodes& to);

}  // namespace vorta
