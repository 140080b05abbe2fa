// K6a, float8 by float8 for a few rows: x float8_e4m3fn [m, k] with a scale a row, w float8_e4m3fn [n, k] with a
// scale a row, y [m, n] of bf16 or fp16. `skinny_linear.h` has the design. The products are fp16 products of what
// float8 holds, on every architecture: exact, and added in float32.
#include "skinny_linear.h"

// k is a multiple of 16; x and w are aligned to 16 bytes. is_bf16 says the type of y.
VORTA_EXPORT int vorta_fp8_linear(const void* x, const float* x_scale, const void* w, const float* w_scale, int m,
                                  int n, int64_t k, int is_bf16, void* y, cudaStream_t stream) {
  using namespace vorta;
  if (is_bf16) return skinny_linear<Fp8, bf16>(x, x_scale, w, w_scale, m, n, k, y, stream);
  return skinny_linear<Fp8, fp16>(x, x_scale, w, w_scale, m, n, k, y, stream);
}
