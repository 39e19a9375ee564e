// Functions of vectors that activations are made of.
#pragma once

#include "simd.h"

namespace rango::RANGO_ISA {

RANGO_INLINE Vec magnitude(Vec x) {
  Ints bits;
  memcpy(&bits, &x, sizeof bits);
  bits = bits & 0x7FFFFFFF;
  Vec result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

RANGO_INLINE Vec square_root(Vec x) {
#if defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  for (int i = 0; i < WIDTH; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// eˣ as exp gives it, but 0 from -87.7 down and infinite from 88.4 up: giving up half a binade at
// either end saves a third of the work. NaN stays NaN, by the order of the operands of min and max.
RANGO_INLINE Vec quick_exp(Vec x) {
  Ints bits;
  const Vec p = exp_of_rest(max(broadcast(-88.0f), min(broadcast(89.0f), x)), &bits);
  bits = (bits + (127 - SHIFTED)) << 23;  // n = -127 gives 0, n = 128 infinity
  Vec power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

// 1/(1 + e⁻ˣ), within 3 ulp; 0 below -88.4.
RANGO_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + quick_exp(-x)); }

// Φ(x) = (1 + erf(x/√2))/2, the normal distribution function, within 1e-7.
//
// erfc(t) = exp(-t·q(t)) for t ≥ 0 with q of degree 7, fitted to 1.7e-8 in erfc over [0, 4.2];
// beyond, t·q(t) grows on and erfc is less than that anyway.
RANGO_INLINE Vec normal_cdf(Vec x) {
  const Vec t = min(broadcast(20.0f), magnitude(x) * 0.707106781f);
  Vec q = broadcast(3.14905628e-5f);
  q = fma(q, t, broadcast(-3.09222582e-4f));
  q = fma(q, t, broadcast(1.03379053e-3f));
  q = fma(q, t, broadcast(5.34604536e-4f));
  q = fma(q, t, broadcast(-1.95818525e-2f));
  q = fma(q, t, broadcast(1.02918603e-1f));
  q = fma(q, t, broadcast(6.36597991e-1f));
  q = fma(q, t, broadcast(1.12838018f));
  const Vec tail = 0.5f * quick_exp(-(t * q));
  return x > 0.0f ? 1.0f - tail : tail;
}

}  // namespace rango::RANGO_ISA
