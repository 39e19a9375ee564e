// Write fp32 values in a narrower type, rounded to nearest even.
#pragma once

#include "simd.h"
#include "weight.h"

namespace rango::RANGO_ISA {

RANGO_INLINE uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

RANGO_INLINE uint16_t to_fp16(float value) {
#if defined(__AVX2__)
  return static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return sign | 0x7E00;
  if (bits >= 0x477FF000) return sign | 0x7C00;  // from 65520 on: infinity
  if (bits < 0x38800000) {
    // below 2⁻¹⁴, the step is 2⁻²⁴, which is the last bit of 0.5: adding that rounds
    float small;
    memcpy(&small, &bits, sizeof small);
    small += 0.5f;
    memcpy(&bits, &small, sizeof bits);
    return sign | static_cast<uint16_t>(bits - 0x3F000000);
  }
  bits += 0xFFF + ((bits >> 13) & 1);
  return sign | static_cast<uint16_t>((bits - 0x38000000) >> 13);
#endif
}

#if defined(__AVX2__)
// 16 floats -> 16 bf16.
RANGO_INLINE __m256i bf16_of(__m256 low, __m256 high) {
  const __m256i half = _mm256_set1_epi32(0x7FFF), one = _mm256_set1_epi32(1);
  const __m256i nan = _mm256_set1_epi32(0x7FC0);
  const auto round = [&](__m256 v) {  // 16 bits in the lower half of 32
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, half), odd);
    const __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), nan, unordered);
  };
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(round(low), round(high)), 0xD8);
}

// 16 floats -> 16 fp16.
RANGO_INLINE __m256i fp16_of(__m256 low, __m256 high) {
  return _mm256_set_m128i(_mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
}
#endif

RANGO_INLINE void encode_bf16(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + 16 <= count; i += 16) {
    const __m256 low = _mm256_loadu_ps(from + i), high = _mm256_loadu_ps(from + i + 8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), bf16_of(low, high));
  }
#endif
  for (; i < count; i++) to[i] = to_bf16(from[i]);
}

RANGO_INLINE void encode_fp16(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; i++) to[i] = to_fp16(from[i]);
}

// `kind`, one of fp32, bf16 and fp16, from element `at` of `to` on.
RANGO_INLINE void encode(Kind kind, const float* from, int64_t count, void* to, int64_t at) {
  if (kind == Kind::bf16)
    encode_bf16(from, count, static_cast<uint16_t*>(to) + at);
  else if (kind == Kind::fp16)
    encode_fp16(from, count, static_cast<uint16_t*>(to) + at);
  else
    memcpy(static_cast<float*>(to) + at, from, count * sizeof(float));
}

}  // namespace rango::RANGO_ISA
