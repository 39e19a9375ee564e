// NF4 unpacked at full speed: 32 weights from 16 bytes, by looking up each byte of the levels.
//
// The 16 levels are 16 floats; the n-th bytes of all of them fill one 16-byte register, so that one
// byte shuffle looks up a byte of 32 weights at once. Four such shuffles and eight interleavings
// give 32 floats, half the work of looking up whole floats eight at a time.
#pragma once

#include "decode.h"
#include "encode.h"

namespace rango::RANGO_ISA {

// What unpacking one weight needs, set up once; of NF4 weights only.
struct Levels {
  const Weight* weight;
  int block_bits, nested_bits;  // of sizes that are powers of two, as a division is slow; or -1
#if defined(__AVX2__)
  __m256i planes[4];
#endif

  void set(const Weight& w) {
    weight = &w;
    block_bits = w.block & (w.block - 1) ? -1 : __builtin_ctzll(w.block);
    nested_bits = w.nested_block & (w.nested_block - 1) ? -1 : __builtin_ctzll(w.nested_block);
#if defined(__AVX2__)
    uint8_t bytes[4][16];
    for (int i = 0; i < 16; i++)
      for (int n = 0; n < 4; n++) bytes[n][i] = reinterpret_cast<const uint8_t*>(w.code + i)[n];
    for (int n = 0; n < 4; n++)
      planes[n] =
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes[n])));
#endif
  }

  RANGO_MEMBER int64_t block_of(int64_t at) const {
    return block_bits >= 0 ? at >> block_bits : at / weight->block;
  }

  RANGO_MEMBER float constant(int64_t block) const {
    if (weight->absmax) return weight->absmax[block];
    const int64_t nest = nested_bits >= 0 ? block >> nested_bits : block / weight->nested_block;
    const float product =
        weight->nested_code[weight->absmax_codes[block]] * weight->nested_absmax[nest];
    return product + weight->offset;
  }

#if defined(__AVX2__)
  // Of bytes that stand twice each: the high nibble in the first, the low one in the second.
  static RANGO_MEMBER __m256i nibbles_of(__m256i twice) {
    const __m256i first = _mm256_and_si256(_mm256_srli_epi16(twice, 4), _mm256_set1_epi16(0x000F));
    return _mm256_or_si256(first, _mm256_and_si256(twice, _mm256_set1_epi16(0x0F00)));
  }

  // 16 bytes -> 32 weights, in four registers.
  RANGO_MEMBER void unpack(const uint8_t* from, __m256 scale, __m256* to) const {
    const __m256i bytes =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    // each byte twice; the lower half of the register gets those of weights 8n … 8n+3
    const __m256i nibbles = nibbles_of(_mm256_shuffle_epi8(
        bytes, _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13,  //
                                2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15)));
    __m256i byte[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; n++) byte[n] = _mm256_shuffle_epi8(planes[n], nibbles);
    const __m256i low_a = _mm256_unpacklo_epi8(byte[0], byte[1]);
    const __m256i low_b = _mm256_unpackhi_epi8(byte[0], byte[1]);
    const __m256i high_a = _mm256_unpacklo_epi8(byte[2], byte[3]);
    const __m256i high_b = _mm256_unpackhi_epi8(byte[2], byte[3]);
    const __m256i values[4] = {
        _mm256_unpacklo_epi16(low_a, high_a), _mm256_unpackhi_epi16(low_a, high_a),
        _mm256_unpacklo_epi16(low_b, high_b), _mm256_unpackhi_epi16(low_b, high_b)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
      to[i] = _mm256_mul_ps(_mm256_castsi256_ps(values[i]), scale);
  }
#endif

  // `count` weights from the flat index `at`, in fp32.
  RANGO_MEMBER void decode(int64_t at, int64_t count, float* to) const {
    while (count > 0) {
      const int64_t block = block_of(at), rest = (block + 1) * weight->block - at;
      const int64_t run = rest < count ? rest : count;
      const float scale = constant(block);
      int64_t i = 0;
#if defined(__AVX2__)
      if (!(at & 1)) {
        const uint8_t* bytes = static_cast<const uint8_t*>(weight->data) + at / 2;
        const __m256 wide = _mm256_set1_ps(scale);
        for (; i + 32 <= run; i += 32) {
          __m256 values[4];
          unpack(bytes + i / 2, wide, values);
#pragma GCC unroll 4
          for (int v = 0; v < 4; v++) _mm256_storeu_ps(to + i + 8 * v, values[v]);
        }
      }
#endif
      if (i < run) decode_nf4_run(*weight, at + i, run - i, scale, to + i);
      at += run;
      to += run;
      count -= run;
    }
  }

  // `count` weights from the flat index `at`, in bf16 or fp16. A block knows only 16 values: these
  // are multiplied and rounded, and their two bytes looked up.
  RANGO_MEMBER void decode_16_bits(int64_t at, int64_t count, Kind kind,
                                                            uint16_t* to) const {
    while (count > 0) {
      const int64_t block = block_of(at), rest = (block + 1) * weight->block - at;
      const int64_t run = rest < count ? rest : count;
      const float scale = constant(block);
      int64_t i = 0;
#if defined(__AVX2__)
      if (!(at & 1) && run >= 32) {
        const __m256 wide = _mm256_set1_ps(scale);
        const __m256 low = _mm256_mul_ps(_mm256_loadu_ps(weight->code), wide);
        const __m256 high = _mm256_mul_ps(_mm256_loadu_ps(weight->code + 8), wide);
        const __m256i values = kind == Kind::bf16 ? bf16_of(low, high) : fp16_of(low, high);
        const __m256i bytes = _mm256_permute4x64_epi64(
            _mm256_packus_epi16(_mm256_and_si256(values, _mm256_set1_epi16(0x00FF)),
                                _mm256_srli_epi16(values, 8)),
            0xD8);
        const __m256i first = _mm256_permute2x128_si256(bytes, bytes, 0x00);
        const __m256i second = _mm256_permute2x128_si256(bytes, bytes, 0x11);
        const __m256i order = _mm256_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 8, 8, 9, 9, 10, 10, 11, 11,
                                               4, 4, 5, 5, 6, 6, 7, 7, 12, 12, 13, 13, 14, 14, 15,
                                               15);
        const uint8_t* from = static_cast<const uint8_t*>(weight->data) + at / 2;
        for (; i + 32 <= run; i += 32) {
          const __m256i packed = _mm256_broadcastsi128_si256(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i / 2)));
          const __m256i nibbles = nibbles_of(_mm256_shuffle_epi8(packed, order));
          const __m256i a = _mm256_shuffle_epi8(first, nibbles);
          const __m256i b = _mm256_shuffle_epi8(second, nibbles);
          __m256i* out = reinterpret_cast<__m256i*>(to + i);
          _mm256_storeu_si256(out, _mm256_unpacklo_epi8(a, b));
          _mm256_storeu_si256(out + 1, _mm256_unpackhi_epi8(a, b));
        }
      }
#endif
      while (i < run) {
        float room[64];
        const int64_t some = run - i < 64 ? run - i : 64;
        decode_nf4_run(*weight, at + i, some, scale, room);
        encode(kind, room, some, to, i);
        i += some;
      }
      at += run;
      to += run;
      count -= run;
    }
  }
};

}  // namespace rango::RANGO_ISA
