// Read a stretch of a frozen weight as fp32.
#pragma once

#include "simd.h"
#include "weight.h"

namespace rango::RANGO_ISA {

RANGO_INLINE float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

RANGO_INLINE float from_fp16(uint16_t bits) {
#if defined(__AVX2__)
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31, rest = bits & 1023;
  uint32_t wide;
  if (exponent == 0) {  // zero or subnormal: rest · 2⁻²⁴, exact in fp32
    const float small = static_cast<float>(rest) * 5.9604644775390625e-8f;
    memcpy(&wide, &small, sizeof wide);
    wide |= sign;
  } else {
    wide = sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | (rest << 13);
  }
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
#endif
}

// q · absmax · (1/127), rounded after each product: numerics/int8.py.
constexpr float INT8_STEP = 7.874015718698502e-3f;

#if defined(__AVX2__)
RANGO_INLINE __m256 eight_of_bf16(const uint16_t* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

RANGO_INLINE __m256 eight_of_fp16(const uint16_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

RANGO_INLINE __m256 eight_of_int8(const int8_t* from, __m256 scale) {
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  const __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
  return _mm256_mul_ps(_mm256_mul_ps(values, scale), _mm256_set1_ps(INT8_STEP));
}
#endif

RANGO_INLINE void decode_bf16(const uint16_t* from, int64_t count, float* to) {
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, eight_of_bf16(from + i));
#endif
  for (; i < count; i++) to[i] = from_bf16(from[i]);
}

RANGO_INLINE void decode_fp16(const uint16_t* from, int64_t count, float* to) {
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, eight_of_fp16(from + i));
#endif
  for (; i < count; i++) to[i] = from_fp16(from[i]);
}

RANGO_INLINE void decode_int8(const int8_t* from, int64_t count, float scale, float* to) {
  int64_t i = 0;
#if defined(__AVX2__)
  const __m256 s = _mm256_set1_ps(scale);
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, eight_of_int8(from + i, s));
#endif
  for (; i < count; i++) to[i] = static_cast<float>(from[i]) * scale * INT8_STEP;
}

// The constant of one block of NF4; product and sum are rounded one by one.
RANGO_INLINE float nf4_constant(const Weight& w, int64_t block) {
  if (w.absmax) return w.absmax[block];
  const float product = w.nested_code[w.absmax_codes[block]] * w.nested_absmax[block / w.nested_block];
  return product + w.offset;
}

// `count` elements from the flat index `at`, all in one block.
RANGO_INLINE void decode_nf4_run(const Weight& w, int64_t at, int64_t count, float scale,
                                 float* to) {
  const uint8_t* bytes = static_cast<const uint8_t*>(w.data);
  if (count && (at & 1)) {
    *to++ = w.code[bytes[at >> 1] & 15] * scale;
    at++;
    count--;
  }
  const uint8_t* from = bytes + (at >> 1);
  int64_t i = 0;
#if defined(__AVX2__)
  const __m256 low_half = _mm256_loadu_ps(w.code), high_half = _mm256_loadu_ps(w.code + 8);
  const __m256 s = _mm256_set1_ps(scale);
  const __m128i mask = _mm_set1_epi8(15);
  auto look_up = [&](__m128i nibbles) {  // 8 bytes -> 8 levels
    const __m256i index = _mm256_cvtepu8_epi32(nibbles);
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // bit 3 as the sign
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low_half, index),
                            _mm256_permutevar8x32_ps(high_half, index), upper);
  };
  for (; i + 16 <= count; i += 16) {
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i / 2));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), mask);
    const __m128i nibbles = _mm_unpacklo_epi8(high, _mm_and_si128(packed, mask));
    _mm256_storeu_ps(to + i, _mm256_mul_ps(look_up(nibbles), s));
    _mm256_storeu_ps(to + i + 8, _mm256_mul_ps(look_up(_mm_srli_si128(nibbles, 8)), s));
  }
#endif
  for (; i + 2 <= count; i += 2) {
    to[i] = w.code[from[i / 2] >> 4] * scale;
    to[i + 1] = w.code[from[i / 2] & 15] * scale;
  }
  if (i < count) to[i] = w.code[from[i / 2] >> 4] * scale;
}

// `count` elements from the flat index `at`.
RANGO_INLINE void decode_nf4(const Weight& w, int64_t at, int64_t count, float* to) {
  while (count > 0) {
    const int64_t block = at / w.block, rest = (block + 1) * w.block - at;
    const int64_t run = rest < count ? rest : count;
    decode_nf4_run(w, at, run, nf4_constant(w, block), to);
    at += run;
    to += run;
    count -= run;
  }
}

// `count` elements of one row from `column` on. fp32 is not copied: what is returned is where the
// values are, `to` or the weight itself.
RANGO_INLINE const float* decode(const Weight& w, int64_t row, int64_t column, int64_t count,
                                 float* to) {
  const int64_t at = row * w.stride + column;
  switch (w.kind) {
    case Kind::fp32:
      return static_cast<const float*>(w.data) + at;
    case Kind::bf16:
      decode_bf16(static_cast<const uint16_t*>(w.data) + at, count, to);
      break;
    case Kind::fp16:
      decode_fp16(static_cast<const uint16_t*>(w.data) + at, count, to);
      break;
    case Kind::int8:
      decode_int8(static_cast<const int8_t*>(w.data) + at, count, w.scales[row], to);
      break;
    case Kind::nf4:
      decode_nf4(w, at, count, to);
      break;
  }
  return to;
}

}  // namespace rango::RANGO_ISA
