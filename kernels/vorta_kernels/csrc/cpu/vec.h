// Sixteen floats at a time, in the compiler's own vector types: one source for AVX-512, AVX2 and NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace vorta {

constexpr int kLanes = 16;

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t VecInt __attribute__((vector_size(64)));
typedef int8_t VecByte __attribute__((vector_size(16)));

inline Vec splat(float value) { return Vec{} + value; }

inline Vec load(const float* from) {
  Vec out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

// The first `count` of 16 numbers, 1 to 16; the other lanes hold `other`.
inline Vec load_part(const float* from, int64_t count, float other = 0.0f) {
  if (count == kLanes) return load(from);
  Vec out = splat(other);
  std::memcpy(&out, from, count * sizeof(float));
  return out;
}

inline void store_part(float* to, Vec value, int64_t count) {
  if (count == kLanes)
    store(to, value);
  else
    std::memcpy(to, &value, count * sizeof(float));
}

inline Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
  // GCC makes a comparison and a masked move of the other line, three times the latency.
  return reinterpret_cast<Vec>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}

inline Vec minimum(Vec a, Vec b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
  return a < b ? a : b;
#endif
}

// a b + c, rounded once where the processor can: what is written as a sum of a product the compiler may round once or
// twice, even differently from one number of rows to the next.
inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FP_FAST_FMAF) || defined(__FMA__)
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return a;
#else
  return a * b + c;
#endif
}

inline Vec magnitude(Vec a) {
  VecInt bits = reinterpret_cast<VecInt>(a) & 0x7fffffff;
  return reinterpret_cast<Vec>(bits);
}

typedef float Vec8 __attribute__((vector_size(32)));
typedef float Vec4 __attribute__((vector_size(16)));

inline Vec8 low(Vec a) { return __builtin_shufflevector(a, a, 0, 1, 2, 3, 4, 5, 6, 7); }
inline Vec8 high(Vec a) { return __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15); }
inline Vec4 low(Vec8 a) { return __builtin_shufflevector(a, a, 0, 1, 2, 3); }
inline Vec4 high(Vec8 a) { return __builtin_shufflevector(a, a, 4, 5, 6, 7); }

// The sum of the lanes, always in the same order.
inline float sum(Vec a) {
  Vec8 eight = low(a) + high(a);
  Vec4 four = low(eight) + high(eight);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// The sums of four vectors' lanes, in lanes 0, 4, 8 and 12.
inline Vec sums_of(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  const Vec cd = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 __builtin_shufflevector(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  Vec all = __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
            __builtin_shufflevector(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  all += __builtin_shufflevector(all, all, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return all + __builtin_shufflevector(all, all, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

inline float largest(Vec a) {
  Vec8 l8 = low(a), h8 = high(a);
  Vec8 eight = l8 > h8 ? l8 : h8;
  Vec4 l4 = low(eight), h4 = high(eight);
  Vec4 four = l4 > h4 ? l4 : h4;
  float first = four[0] > four[1] ? four[0] : four[1];
  float second = four[2] > four[3] ? four[2] : four[3];
  return first > second ? first : second;
}

// Adding it rounds a float of small magnitude to the nearest even integer, left in the low bits.
constexpr float kRounder = 12582912.0f;
constexpr int32_t kRounderBits = 0x4b400000;

// e^x with a relative error below 3e-7 (polynomial of Cephes' expf), for x <= 88; what is below -87 gives 0.
inline Vec exponential(Vec x) {
  VecInt is_tiny = x < -87.0f;
  x = is_tiny ? splat(-87.0f) : x;
  Vec shifted = x * 1.44269504088896341f + kRounder;
  Vec n = shifted - kRounder;
  Vec r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  VecInt exponent = (reinterpret_cast<VecInt>(shifted) - (kRounderBits - 127)) << 23;
  Vec result = p * reinterpret_cast<Vec>(exponent);
  return is_tiny ? Vec{} : result;
}

// Sixteen vectors of 16 as their transpose, in place: vector i then holds what was in lane i of all.
inline void transpose(Vec rows[16]) {
  Vec other[16];
  // Four perfect shuffles of the 256 numbers: each turns the eight bits of a number's place by one.
  for (int i = 0; i < 8; ++i) {
    const Vec a = rows[i], b = rows[i + 8];
    other[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    other[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  for (int i = 0; i < 8; ++i) {
    const Vec a = other[i], b = other[i + 8];
    rows[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    rows[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  for (int i = 0; i < 8; ++i) {
    const Vec a = rows[i], b = rows[i + 8];
    other[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    other[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  for (int i = 0; i < 8; ++i) {
    const Vec a = other[i], b = other[i + 8];
    rows[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    rows[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}

// The nearest whole numbers of values within -127.5 and 127.5, half to even.
inline VecByte to_codes(Vec scaled) {
  VecInt rounded = reinterpret_cast<VecInt>(scaled + kRounder) - kRounderBits;
  return __builtin_convertvector(rounded, VecByte);
}

}  // namespace vorta
