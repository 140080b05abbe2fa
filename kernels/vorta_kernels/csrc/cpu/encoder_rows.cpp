#include "encoder_rows.h"

#include <algorithm>

#include "vec.h"

namespace vorta {
namespace {

constexpr int64_t kBlockVectors = 8;  // of a block of 128, whose numbers stay in registers

// Calls work(i, count) for the row's vectors: count is 16 but for the last.
template <typename Work>
inline void by_vectors(int64_t size, const Work& work) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) work(i, static_cast<int64_t>(kLanes));
  if (i < size) work(i, size - i);
}

inline float scale_of(float top) { return top > 0.0f ? 127.0f / top : 0.0f; }

inline void write_codes(Vec scaled, int64_t count, int8_t* codes) {
  const VecByte part = to_codes(scaled);
  std::memcpy(codes, &part, count);
}

// The codes of a block of 128 numbers, made by value(i); returns their factor.
template <typename Value>
inline float code_block(const Value& value, int8_t* codes) {
  Vec values[kBlockVectors];
  Vec top = Vec{};
#pragma GCC unroll 8
  for (int i = 0; i < kBlockVectors; ++i) {
    values[i] = value(i * kLanes);
    top = maximum(top, magnitude(values[i]));
  }
  const float highest = largest(top), scale = scale_of(highest);
#pragma GCC unroll 8
  for (int i = 0; i < kBlockVectors; ++i) write_codes(values[i] * scale, kLanes, codes + i * kLanes);
  return highest / 127.0f;
}

inline bool has_wide_blocks(int64_t size, const RowCodes& to) {
  return size == to.padded && to.padded == to.blocks * kBlockVectors * kLanes;
}

inline Vec silu(Vec x) {
  // e^-x overflows to infinity far below zero, where the quotient is 0 as it should be.
  const Vec clamped = x < -87.0f ? splat(-87.0f) : x;
  return x / (1.0f + exponential(-clamped));
}

// x (1/2 + x P(x^2)), where P are polynomials in t = 2 x^2 / limit^2 - 1, so that it lies between -1 and 1, fitted to
// (Phi(x) - 1/2) / x with the least largest error of Phi; beyond the limit Phi is 0 or what it is there. No division
// and no exponential. `exact`: Phi is off by 1.3e-7 at most, about what Abramowitz and Stegun's 7.1.26 gives. Otherwise by 3.2e-5.
template <bool kExact>
inline Vec gelu(Vec x) {
  constexpr float kLimit = kExact ? 5.3f : 4.0f;
  const Vec clamped = minimum(maximum(x, splat(-kLimit)), splat(kLimit));
  const Vec t = multiply_add(clamped * clamped, splat(2.0f / kLimit / kLimit), splat(-1.0f));
  Vec p;
  const auto next = [&](float factor) { p = multiply_add(p, t, splat(factor)); };
  if constexpr (kExact) {
    p = splat(2.83679285e-4f);
    next(-7.64604891e-4f);
    next(7.31932581e-4f);
    next(-1.09583605e-3f);
    next(3.13509861e-3f);
    next(-5.84967155e-3f);
    next(8.8280756e-3f);
    next(-1.31854121e-2f);
    next(1.89258624e-2f);
    next(-2.5298316e-2f);
    next(3.20795178e-2f);
    next(-3.95889282e-2f);
    next(4.92641628e-2f);
    next(-6.65185079e-2f);
    next(1.33392558e-1f);
  } else {
    p = splat(-3.31574143e-3f);
    next(8.70024879e-3f);
    next(-1.25595545e-2f);
    next(2.10845154e-2f);
    next(-3.67116928e-2f);
    next(5.61895408e-2f);
    next(-8.43434557e-2f);
    next(1.75942913e-1f);
  }
  const Vec phi = multiply_add(clamped, p, splat(0.5f));
  return x * (x < -kLimit ? Vec{} : phi);
}

// GELU's approximation by a hyperbolic tangent: x times the logistic function of twice its argument.
inline Vec gelu_tanh(Vec x) {
  const Vec argument = 1.5957691216057308f * (x + 0.044715f * x * x * x);
  const Vec clamped = argument < -87.0f ? splat(-87.0f) : argument;
  return x / (1.0f + exponential(-clamped));
}

template <Activation kActivation, bool kExact>
inline Vec activated(Vec x) {
  if constexpr (kActivation == Activation::kGelu) return gelu<kExact>(x);
  if constexpr (kActivation == Activation::kGeluTanh) return gelu_tanh(x);
  if constexpr (kActivation == Activation::kRelu) return maximum(x, Vec{});
  return silu(x);
}

template <Activation kActivation, bool kExact>
void activate(const float* x, const float* factor, int64_t size, float* out) {
  by_vectors(size, [&](int64_t i, int64_t count) {
    Vec value = activated<kActivation, kExact>(load_part(x + i, count));
    if (factor != nullptr) value *= load_part(factor + i, count);
    store_part(out + i, value, count);
  });
}

template <Activation kActivation>
void activate_and_quantise(float* x, const float* factor, int64_t size, const RowCodes& to) {
  if (!has_wide_blocks(size, to)) {
    activate<kActivation, false>(x, factor, size, x);
    quantise_blocks(x, size, to);
    return;
  }
  constexpr int64_t kWidth = kBlockVectors * kLanes;
  for (int64_t block = 0; block < to.blocks; ++block) {
    const int64_t first = block * kWidth;
    to.factors[block] = code_block(
        [&](int64_t i) {
          Vec value = activated<kActivation, false>(load(x + first + i));
          if (factor != nullptr) value *= load(factor + first + i);
          return value;
        },
        to.codes + first);
  }
}

}  // namespace

void quantise_blocks(const float* x, int64_t size, const RowCodes& to) {
  const int64_t width = to.padded / to.blocks;
  if (has_wide_blocks(size, to)) {
    for (int64_t block = 0; block < to.blocks; ++block)
      to.factors[block] =
          code_block([&](int64_t i) { return load(x + block * width + i); }, to.codes + block * width);
    return;
  }
  for (int64_t block = 0; block < to.blocks; ++block) {
    const int64_t first = block * width, count = std::max<int64_t>(0, std::min(width, size - first));
    Vec top = Vec{};
    by_vectors(count, [&](int64_t i, int64_t part) { top = maximum(top, magnitude(load_part(x + first + i, part))); });
    const float highest = largest(top), scale = scale_of(highest);
    int8_t* codes = to.codes + first;
    by_vectors(count, [&](int64_t i, int64_t part) {
      write_codes(load_part(x + first + i, part) * scale, part, codes + i);
    });
    std::memset(codes + count, 0, width - count);
    to.factors[block] = highest / 127.0f;
  }
}

void norm_row(bool is_rms, const float* residual, const float* delta, const float* weight, const float* bias,
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
    const Vec value = load_part(total + i, count, mean) - mean;
    squares += value * value;
  });
  const float inverse = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + epsilon);
  by_vectors(size, [&](int64_t i, int64_t count) {
    Vec value = (load_part(total + i, count) - mean) * inverse * load_part(weight + i, count);
    if (bias != nullptr) value += load_part(bias + i, count);
    store_part(normed + i, value, count);
  });
}

void activate_row(Activation activation, const float* x, const float* factor, int64_t size, float* out) {
  switch (activation) {
    case Activation::kGelu:
      return activate<Activation::kGelu, true>(x, factor, size, out);
    case Activation::kGeluTanh:
      return activate<Activation::kGeluTanh, true>(x, factor, size, out);
    case Activation::kRelu:
      return activate<Activation::kRelu, true>(x, factor, size, out);
    case Activation::kSilu:
      return activate<Activation::kSilu, true>(x, factor, size, out);
  }
}

void activate_and_quantise_row(Activation activation, float* x, const float* factor, int64_t size, const RowCodes& to) {
  switch (activation) {
    case Activation::kGelu:
      return activate_and_quantise<Activation::kGelu>(x, factor, size, to);
    case Activation::kGeluTanh:
      return activate_and_quantise<Activation::kGeluTanh>(x, factor, size, to);
    case Activation::kRelu:
      return activate_and_quantise<Activation::kRelu>(x, factor, size, to);
    case Activation::kSilu:
      return activate_and_quantise<Activation::kSilu>(x, factor, size, to);
  }
}

}  // namespace vorta
