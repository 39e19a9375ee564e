// Vectors of floats, as wide as the instruction set of this translation unit has them.
//
// Included inside no namespace; everything here is in rango::RANGO_ISA, so that code compiled for
// AVX2 can never be chosen by the linker for the portable build.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define RANGO_INLINE static inline __attribute__((always_inline))
#define RANGO_MEMBER inline __attribute__((always_inline))

namespace rango::RANGO_ISA {

#if defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4)));

RANGO_INLINE Vec broadcast(float value) {
#if defined(__AVX2__)
  return _mm256_set1_ps(value);
#else
  return Vec{value, value, value, value};
#endif
}

RANGO_INLINE Vec load(const float* from) {
  Vec v;
  memcpy(&v, from, sizeof v);
  return v;
}

RANGO_INLINE void store(float* to, Vec v) { memcpy(to, &v, sizeof v); }

// The first `count` < WIDTH lanes; the others read as zero.
RANGO_INLINE Vec load_part(const float* from, int count) {
  float lanes[WIDTH] = {};
  memcpy(lanes, from, count * sizeof(float));
  return load(lanes);
}

RANGO_INLINE void store_part(float* to, Vec v, int count) {
  float lanes[WIDTH];
  store(lanes, v);
  memcpy(to, lanes, count * sizeof(float));
}

// a·b + c: one rounding where the instruction exists, two elsewhere.
RANGO_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

RANGO_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

RANGO_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// Summed in halves: the order is fixed, and the same for every call.
RANGO_INLINE float sum(Vec v) {
  float lanes[WIDTH];
  store(lanes, v);
#pragma GCC unroll 4
  for (int half = WIDTH / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

RANGO_INLINE float largest(Vec v) {
  float lanes[WIDTH];
  store(lanes, v);
  float found = lanes[0];
  for (int i = 1; i < WIDTH; i++) found = lanes[i] > found ? lanes[i] : found;
  return found;
}

constexpr int32_t SHIFTED = 0x4B400000;  // the bits of 1.5·2²³

// Splits x = n·ln 2 + f with |f| ≤ ln 2 / 2 and returns eᶠ, within 2 ulp; n is given as n + SHIFTED.
RANGO_INLINE Vec exp_of_rest(Vec x, Ints* n_shifted) {
  const Vec shifter = broadcast(12582912.0f);  // adding 1.5·2²³ rounds to an integer
  const Vec shifted = fma(x, broadcast(1.44269504088896341f), shifter);
  const Vec n = shifted - shifter;
  memcpy(n_shifted, &shifted, sizeof shifted);
  Vec f = fma(n, broadcast(-0.693145751953125f), x);
  f = fma(n, broadcast(-1.42860682030941723e-6f), f);
  Vec p = broadcast(1.98756915e-4f);
  p = fma(p, f, broadcast(1.39819995e-3f));
  p = fma(p, f, broadcast(8.33345191e-3f));
  p = fma(p, f, broadcast(4.16657959e-2f));
  p = fma(p, f, broadcast(1.66666654e-1f));
  p = fma(p, f, broadcast(5.00000012e-1f));
  return fma(p, f * f, f) + 1.0f;
}

// eˣ within 2 ulp. Below -87.3 it is the smallest normal number's neighbourhood rounded to 0, above
// 88.7 infinity; NaN stays NaN.
RANGO_INLINE Vec exp(Vec x) {
  const Vec low = broadcast(-87.33654f), high = broadcast(88.72283f);
  Ints whole;
  const Vec p = exp_of_rest(max(min(x, high), low), &whole);
  whole = whole - SHIFTED;
  // 2ⁿ in two factors, so that n = 128 does not overflow before the product does
  const Ints half = whole >> 1;
  const Ints first_bits = (half + 127) << 23, second_bits = (whole - half + 127) << 23;
  Vec first, second;
  memcpy(&first, &first_bits, sizeof first);
  memcpy(&second, &second_bits, sizeof second);
  Vec result = p * first * second;
  result = x < low ? Vec{} : result;
  result = x > high ? broadcast(INFINITY) : result;
  return x == x ? result : x;
}

}  // namespace rango::RANGO_ISA
