#include "rows.h"

#include <algorithm>

#include "vec.h"

namespace vorta {
namespace {

// The rest of a row that fills no vector: as a vector whose other lanes hold `other`.
inline Vec load_rest(const float* from, int64_t count, float other = 0.0f) {
  Vec out = splat(other);
  std::memcpy(&out, from, count * sizeof(float));
  return out;
}

inline void store_rest(float* to, Vec value, int64_t count) { std::memcpy(to, &value, count * sizeof(float)); }

float absmax(const float* x, int64_t size) {
  Vec top = Vec{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) top = maximum(top, magnitude(load(x + i)));
  if (i < size) top = maximum(top, magnitude(load_rest(x + i, size - i)));
  return largest(top);
}

float write_codes(const float* x, int64_t size, int64_t padded, float top, int8_t* codes) {
  const float scale = top > 0.0f ? 127.0f / top : 0.0f;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    VecByte part = to_codes(load(x + i) * scale);
    std::memcpy(codes + i, &part, sizeof part);
  }
  if (i < size) {
    VecByte part = to_codes(load_rest(x + i, size - i) * scale);
    std::memcpy(codes + i, &part, size - i);
  }
  std::memset(codes + size, 0, padded - size);
  return top / 127.0f;
}

inline Vec silu(Vec x) {
  // e^-x overflows to infinity far below zero, where the quotient is 0 as it should be.
  Vec clamped = x < -87.0f ? splat(-87.0f) : x;
  return x / (1.0f + exponential(-clamped));
}

}  // namespace

float quantise_row(const float* x, int64_t size, int64_t padded, int8_t* codes) {
  return write_codes(x, size, padded, absmax(x, size), codes);
}

float add_norm_quantise_row(const float* residual, const float* delta, const float* weight, float epsilon,
                            int64_t size, int64_t padded, float* total, float* scratch, int8_t* codes) {
  Vec squares = Vec{};
  const float* values = residual;
  int64_t i = 0;
  if (delta != nullptr) {
    values = total;
    for (; i + kLanes <= size; i += kLanes) {
      Vec value = load(residual + i) + load(delta + i);
      store(total + i, value);
      squares += value * value;
    }
    if (i < size) {
      Vec value = load_rest(residual + i, size - i) + load_rest(delta + i, size - i);
      store_rest(total + i, value, size - i);
      squares += value * value;
    }
  } else {
    for (; i + kLanes <= size; i += kLanes) squares += load(residual + i) * load(residual + i);
    if (i < size) {
      Vec value = load_rest(residual + i, size - i);
      squares += value * value;
    }
  }
  const float inverse = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + epsilon);
  Vec top = Vec{};
  for (i = 0; i + kLanes <= size; i += kLanes) {
    Vec value = load(values + i) * inverse * load(weight + i);
    store(scratch + i, value);
    top = maximum(top, magnitude(value));
  }
  if (i < size) {
    Vec value = load_rest(values + i, size - i) * inverse * load_rest(weight + i, size - i);
    store_rest(scratch + i, value, size - i);
    top = maximum(top, magnitude(value));
  }
  return write_codes(scratch, size, padded, largest(top), codes);
}

float gate_quantise_row(const float* gate, const float* up, int64_t size, int64_t padded, float* scratch,
                        int8_t* codes) {
  Vec top = Vec{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    Vec value = silu(load(gate + i)) * load(up + i);
    store(scratch + i, value);
    top = maximum(top, magnitude(value));
  }
  if (i < size) {
    Vec value = silu(load_rest(gate + i, size - i)) * load_rest(up + i, size - i);
    store_rest(scratch + i, value, size - i);
    top = maximum(top, magnitude(value));
  }
  return write_codes(scratch, size, padded, largest(top), codes);
}

}  // namespace vorta
