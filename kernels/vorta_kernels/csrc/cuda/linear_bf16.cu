// K6, 16 bits by 16 bits for a few rows: x [m, k], w [n, k] and y [m, n], all of bf16 or all of fp16.
// `skinny_linear.h` has the design.
#include "skinny_linear.h"

// k is a multiple of 8; x and w are aligned to 16 bytes.
VORTA_EXPORT int vorta_linear_16(const void* x, const void* w, int m, int n, int64_t k, int is_bf16, void* y,
                                 cudaStream_t stream) {
  using namespace vorta;
  if (is_bf16) return skinny_linear<Bf16, bf16>(x, nullptr, w, nullptr, m, n, 2 * k, y, stream);
  return skinny_linear<Fp16, fp16>(x, nullptr, w, nullptr, m, n, 2 * k, y, stream);
}
