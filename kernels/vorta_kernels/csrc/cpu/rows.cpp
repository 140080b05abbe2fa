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

inline Vec load_part(const float* from, int64_t count) { return count == kLanes ? load(from) : load_rest(from, count); }

inline void store_part(float* to, Vec value, int64_t count) {
  if (count == kLanes)
    store(to, value);
  else
    store_rest(to, value, count);
}

// Calls work(i, count) for the row's vectors: count is 16 but for the last.
template <typename Work>
inline void by_vectors(int64_t size, const Work& work) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) work(i, static_cast<int64_t>(kLanes));
  if (i < size) work(i, size - i);
}

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

// x Phi(x), with the error function of Abramowitz and Stegun, 7.1.26: off by 1.5e-7 at most.
inline Vec gelu(Vec x) {
  const Vec z = magnitude(x) * 0.70710678118654752f;
  const Vec t = 1.0f / (1.0f + 0.3275911f * z);
  Vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vec outside = p * t * exponential(-z * z) * 0.5f;  // Phi(-|x|)
  return x * (x < 0.0f ? outside : 1.0f - outside);
}

// GELU's approximation by a hyperbolic tangent: x times the logistic function of twice its argument.
inline Vec gelu_tanh(Vec x) { 
  const Vec argument = 1.5957691216057308f * (x + 0.044715f * x * x * x);
  const Vec clamped = argument < -87.0f ? splat(-87.0f) : argument;
  return x / (1.0f + exponential(-clamped));
}

template <Activation kActivation>
inline Vec activated(Vec x) {
  if constexpr (kActivation == Activation::kGelu) return gelu(x);
  if constexpr (kActivation == Activation::kGeluTanh) return gelu_tanh(x);
  if constexpr (kActivation == Activation::kRelu) return x > 0.0f ? x : Vec{};
  return silu(x);
}

template <Activation kActivation>
float activate(const float* x, const float* factor, int64_t size, float* out) {
  Vec top = Vec{};
  by_vectors(size, [&](int64_t i, int64_t count) {
    Vec value = activated<kActivation>(load_part(x + i, count));
    if (factor != nullptr) value *= load_part(factor + i, count);
    store_part(out + i, value, count);
    top = maximum(top, magnitude(value));
  });
  return largest(top);
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

float norm_row(bool is_rms, const float* residual, const float* delta, const float* weight, const float* bias,
               float epsilon, int64_t size, float* total, float* normed) {
  Vec lanes = Vec{};
  by_vectors(size, [&](int64_t i, int64_t count) {
    Vec value = load_part(residual + i, count);
    if (delta != nullptr) value += load_part(delta + i, count);
    store_part(total + i, value, count);
    lanes += value;
  });
  const float mean = is_rms ? 0.0f : sum(lanes) / static_cast<float>(size);
  Vec squares = Vec{};
  by_vectors(size, [&](int64_t i, int64_t count) {
    const Vec value = (count == kLanes ? load(total + i) : load_rest(total + i, count, mean)) - mean;
    squares += value * value;
  });
  const float inverse = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + epsilon);
  Vec top = Vec{};
  by_vectors(size, [&](int64_t i, int64_t count) {
    Vec value = (load_part(total + i, count) - mean) * inverse * load_part(weight + i, count);
    if (bias != nullptr) value += load_part(bias + i, count);
    if (count < kLanes) value = load_rest(reinterpret_cast<const float*>(&value), count);
    store_part(normed + i, value, count);
    top = maximum(top, magnitude(value));
  });
  return largest(top);
}

float activate_row(Activation activation, const float* x, const float* factor, int64_t size, float* out) {
  switch (activation) {
    case Activation::kGelu:
      return activate<Activation::kGelu>(x, factor, size, out);
    case Activation::kGeluTanh:
      return activate<Activation::kGeluTanh>(x, factor, size, out);
    case Activation::kRelu:
      return activate<Activation::kRelu>(x, factor, size, out);
    case Activation::kSilu:
      return activate<Activation::kSilu>(x, factor, size, out);
  }
  return 0.0f;
}

void quantise_blocks(const float* x, int64_t size, int64_t padded, int64_t blocks, int8_t* codes, float* factors) {
  const int64_t width = padded / blocks;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t start = block * width, count = std::max<int64_t>(0, std::min(width, size - start));
    factors[block] = quantise_row(x + start, count, width, codes + start);
  }
}

}  // namespace vorta
