#include "decode.h"
#include "encode.h"
#include "levels.h"
#include "parallel.h"

#include "quantize.h"

namespace rango::RANGO_ISA {
namespace {

constexpr int BLOCK = 64;
constexpr int64_t GRAIN = 1 << 15;  // weights a thread is worth waking for
constexpr float SMALLEST_CONSTANT = 1e-38f;
constexpr int32_t INFINITE = 0x7F800000;  // the bits of infinity, and less than those of any NaN

// Midpoints of NF4's levels: numerics/nf4.py. Written as doubles: some lie halfway between two
// floats, where rounding these digits at once goes the other way.
constexpr double MIDPOINTS[15] = {
    -0.8480964004993439,  -0.6106329262256622,   -0.4599952697753906, -0.33967943489551544,
    -0.23460740596055984, -0.13791173323988914,  -0.045525018125772476, 0.03979014977812767,
    0.1202552504837513,   0.2035212516784668,    0.2920137718319893,  0.3893125355243683,
    0.5016634166240692,   0.6427869200706482,    0.8614784181118011};

struct Thresholds {
  float values[15] = {};
  constexpr Thresholds() {
    for (int i = 0; i < 15; i++) values[i] = static_cast<float>(MIDPOINTS[i]);
  }
  constexpr float operator[](int i) const { return values[i]; }
};
constexpr Thresholds THRESHOLDS;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

RANGO_INLINE float float_of(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// `count` values from `at` on as fp32: where they are, `room` or the source itself.
RANGO_INLINE const float* widen(const void* from, Kind kind, int64_t at, int64_t count,
                                float* room) {
  if (kind == Kind::fp32) return static_cast<const float*>(from) + at;
  const uint16_t* bits = static_cast<const uint16_t*>(from) + at;
  if (kind == Kind::bf16)
    decode_bf16(bits, count, room);
  else
    decode_fp16(bits, count, room);
  return room;
}

// Bits of the largest magnitude. Those of magnitudes order as the magnitudes do, and NaN above all.
RANGO_INLINE int32_t largest_bits(const float* values, int64_t count) {
  Ints most[2] = {};
  int64_t i = 0;
  for (; i + 2 * WIDTH <= count; i += 2 * WIDTH)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      Ints bits;
      memcpy(&bits, values + i + j * WIDTH, sizeof bits);
      bits = bits & 0x7FFFFFFF;
      most[j] = bits > most[j] ? bits : most[j];
    }
  most[0] = most[0] > most[1] ? most[0] : most[1];
  int32_t lanes[WIDTH], found = 0;
  memcpy(lanes, &most[0], sizeof lanes);
#pragma GCC unroll 4
  for (int half = WIDTH / 2; half; half /= 2)
    for (int j = 0; j < half; j++)
      lanes[j] = lanes[j] > lanes[j + half] ? lanes[j] : lanes[j + half];
  found = lanes[0];
  for (; i < count; i++) {
    int32_t bits;
    memcpy(&bits, values + i, sizeof bits);
    bits &= 0x7FFFFFFF;
    found = bits > found ? bits : found;
  }
  return found;
}

#if defined(__AVX2__)
// A binary search in three tables: how many thresholds lie strictly below each of 8 values.
struct Search {
  __m256 middle = _mm256_set1_ps(THRESHOLDS[7]);
  __m256 low = _mm256_set1_ps(THRESHOLDS[3]), high = _mm256_set1_ps(THRESHOLDS[11]);
  __m256 four = _mm256_setr_ps(THRESHOLDS[1], THRESHOLDS[5], THRESHOLDS[9], THRESHOLDS[13],  //
                               0, 0, 0, 0);
  __m256 eight = _mm256_setr_ps(THRESHOLDS[0], THRESHOLDS[2], THRESHOLDS[4], THRESHOLDS[6],
                                THRESHOLDS[8], THRESHOLDS[10], THRESHOLDS[12], THRESHOLDS[14]);

  inline __attribute__((always_inline)) __m256i operator()(__m256 v) const {
    const auto next = [](__m256i index, __m256 above) {  // 2·index + above
      return _mm256_sub_epi32(_mm256_add_epi32(index, index), _mm256_castps_si256(above));
    };
    const __m256 above = _mm256_cmp_ps(v, middle, _CMP_GT_OQ);
    __m256i index = _mm256_srli_epi32(_mm256_castps_si256(above), 31);
    index = next(index, _mm256_cmp_ps(v, _mm256_blendv_ps(low, high, above), _CMP_GT_OQ));
    index = next(index, _mm256_cmp_ps(v, _mm256_permutevar8x32_ps(four, index), _CMP_GT_OQ));
    return next(index, _mm256_cmp_ps(v, _mm256_permutevar8x32_ps(eight, index), _CMP_GT_OQ));
  }
};

// 64 values times `factor` -> 32 bytes.
RANGO_INLINE void pack_block(const float* values, float factor, uint8_t* packed) {
  const Search search;
  const __m256 f = _mm256_set1_ps(factor);
  const __m256i weights = _mm256_set1_epi16(0x0110);  // 16 · first + 1 · second
  __m256i halves[2];
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    __m256i found[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
      found[i] = search(_mm256_mul_ps(_mm256_loadu_ps(values + 32 * h + 8 * i), f));
    const __m256i nibbles = _mm256_packus_epi16(_mm256_packs_epi32(found[0], found[1]),
                                                _mm256_packs_epi32(found[2], found[3]));
    halves[h] = _mm256_maddubs_epi16(nibbles, weights);
  }
  // pairs of bytes: those of each vector's lower half in one lane, of its upper half in the other
  const __m256i bytes = _mm256_packus_epi16(halves[0], halves[1]);
  const __m128i lower = _mm256_castsi256_si128(bytes), upper = _mm256_extracti128_si256(bytes, 1);
  __m128i* to = reinterpret_cast<__m128i*>(packed);
  _mm_storeu_si128(to, _mm_unpacklo_epi16(lower, upper));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(lower, upper));
}
#else
RANGO_INLINE void pack_block(const float* values, float factor, uint8_t* packed) {
  int32_t nibbles[BLOCK];
#pragma GCC unroll 4
  for (int i = 0; i < BLOCK; i += WIDTH) {
    const Vec v = load(values + i) * broadcast(factor);
    Ints count = {};
#pragma GCC unroll 15
    for (int t = 0; t < 15; t++) count -= v > broadcast(THRESHOLDS[t]);
    memcpy(nibbles + i, &count, sizeof count);
  }
  for (int i = 0; i < BLOCK / 2; i++)
    packed[i] = static_cast<uint8_t>(nibbles[2 * i] << 4 | nibbles[2 * i + 1]);
}
#endif

// The last, shorter block divides where full ones multiply by the reciprocal, and its constant is
// never zero: so does bitsandbytes. Returns the constant.
float pack_rest(const float* values, int64_t count, float largest, uint8_t* packed) {
  const float constant = largest < SMALLEST_CONSTANT ? SMALLEST_CONSTANT : largest;
  const auto nibble = [&](int64_t i) {
    if (i == count) return 7;  // the missing half of the last byte is that of zero
    const float v = values[i] / constant;
    int above = 0;
    for (int t = 0; t < 15; t++) above += v > THRESHOLDS[t];
    return above;
  };
  for (int64_t i = 0; i < count; i += 2)
    packed[i / 2] = static_cast<uint8_t>(nibble(i) << 4 | nibble(i + 1));
  return constant;
}

// One row of int8 codes: round(w · factor), halves to even.
RANGO_INLINE void round_row(const float* values, int64_t count, float factor, int8_t* codes) {
  int64_t i = 0;
#if defined(__AVX2__)
  const __m256 f = _mm256_set1_ps(factor);
  const auto round = [&](int64_t at) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + at), f));
  };
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (; i + 32 <= count; i += 32) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(round(i), round(i + 8)),
                                             _mm256_packs_epi32(round(i + 16), round(i + 24)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i),
                        _mm256_permutevar8x32_epi32(bytes, order));
  }
#endif
  constexpr float shifter = 12582912.0f;  // 1.5·2²³: adding it rounds to an integer
  for (; i < count; i++)
    codes[i] = static_cast<int8_t>(values[i] * factor + shifter - shifter);
}

}  // namespace

bool quantize_nf4(const void* from, Kind kind, int64_t count, uint8_t* packed, float* absmax,
                  int threads) {
  const int64_t full = count / BLOCK;
  int32_t infinite = 0;
  auto piece = [&](int64_t begin, int64_t end) {
    float room[BLOCK];
    int32_t most = 0;
    for (int64_t block = begin; block < end; block++) {
      const float* values = widen(from, kind, block * BLOCK, BLOCK, room);
      const int32_t bits = largest_bits(values, BLOCK);
      most = bits > most ? bits : most;
      const float largest = float_of(bits);
      absmax[block] = largest;
      pack_block(values, 1.0f / (largest < SMALLEST_CONSTANT ? SMALLEST_CONSTANT : largest),
                 packed + block * BLOCK / 2);
    }
    if (most >= INFINITE) __atomic_store_n(&infinite, 1, __ATOMIC_RELAXED);
  };
  in_pieces(full, GRAIN / BLOCK, threads, piece);
  if (const int64_t rest = count - full * BLOCK) {
    float room[BLOCK];
    const float* values = widen(from, kind, full * BLOCK, rest, room);
    const int32_t bits = largest_bits(values, rest);
    if (bits >= INFINITE) return false;
    absmax[full] = pack_rest(values, rest, float_of(bits), packed + full * BLOCK / 2);
  }
  return !infinite;
}

void nest_constants(const float* absmax, int64_t count, float offset, int64_t block,
                    const uint8_t* nearest, uint8_t* codes, float* nested_absmax, int threads) {
  auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      const int64_t from = b * block, to = smaller(count, from + block);
      float largest = 0.0f;
      for (int64_t i = from; i < to; i++) {
        const float size = fabsf(absmax[i] - offset);
        largest = size > largest ? size : largest;
      }
      nested_absmax[b] = largest;
      const float factor = 1.0f / largest;
      for (int64_t i = from; i < to; i++) {
        float v = (absmax[i] - offset) * factor;
        v = v > 1.0f ? 1.0f : v >= -1.0f ? v : -1.0f;  // no number, in a block of zeros: -1
        const float position = (v + 1.0f) / 2.0f * 65535.0f + 0.5f;
        codes[i] = nearest[static_cast<int32_t>(position)];
      }
    }
  };
  in_pieces((count + block - 1) / block, (GRAIN + block - 1) / block, threads, piece);
}

bool quantize_int8(const void* from, Kind kind, int64_t rows, int64_t columns, int8_t* codes,
                   float* scales, int threads) {
  constexpr int64_t STRETCH = 1024;
  int32_t infinite = 0;
  auto piece = [&](int64_t begin, int64_t end) {
    float room[STRETCH];
    for (int64_t row = begin; row < end; row++) {
      int32_t most = 0;
      for (int64_t i = 0; i < columns; i += STRETCH) {
        const int64_t count = smaller(STRETCH, columns - i);
        const int32_t bits =
            largest_bits(widen(from, kind, row * columns + i, count, room), count);
        most = bits > most ? bits : most;
      }
      if (most >= INFINITE) __atomic_store_n(&infinite, 1, __ATOMIC_RELAXED);
      scales[row] = float_of(most);
      // two roundings, as PyTorch divides a number by a tensor
      float factor = 1.0f / scales[row] * 127.0f;
      // of a row of zeros, or of magnitudes below 4e-37: infinity times it would be no number
      if (factor == INFINITY) factor = 0.0f;
      for (int64_t i = 0; i < columns; i += STRETCH) {
        const int64_t count = smaller(STRETCH, columns - i), at = row * columns + i;
        round_row(widen(from, kind, at, count, room), count, factor, codes + at);
      }
    }
  };
  in_pieces(rows, (GRAIN + columns - 1) / columns, threads, piece);
  return !infinite;
}

void dequantize(const Weight& weight, Kind kind, void* to, int threads) {
  constexpr int64_t STRETCH = 512;
  Levels levels;
  if (weight.kind == Kind::nf4) levels.set(weight);
  const int64_t columns = weight.columns, count = weight.rows * columns;
  const auto unpack = [&](int64_t at, int64_t length, float* out) {
    if (weight.kind == Kind::nf4)
      levels.decode(at, length, out);
    else
      decode(weight, at / columns, at % columns, length, out);
  };
  // int8's constants change with the row, so its pieces end there
  const int64_t line = weight.kind == Kind::nf4 ? STRETCH : columns;
  auto piece = [&](int64_t begin, int64_t end) {
    float room[STRETCH];
    for (int64_t n = begin; n < end; n++) {
      const int64_t first = n * line, last = smaller(count, first + line);
      for (int64_t at = first; at < last; at += STRETCH) {
        const int64_t length = smaller(STRETCH, last - at);
        if (kind == Kind::fp32) {
          unpack(at, length, static_cast<float*>(to) + at);
        } else if (weight.kind == Kind::nf4) {
          levels.decode_16_bits(at, length, kind, static_cast<uint16_t*>(to) + at);
        } else {
          unpack(at, length, room);
          encode(kind, room, length, to, at);
        }
      }
    }
  };
  in_pieces((count + line - 1) / line, (GRAIN + line - 1) / line, threads, piece);
}

}  // namespace rango::RANGO_ISA
