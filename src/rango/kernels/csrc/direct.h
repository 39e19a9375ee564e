// Products of a few rows with weights that go from their packed form to the multiplier in registers.
//
// Decoding into a buffer first costs a store and a load for each product of a single row. Here 32
// weights at a time are decoded into four registers and multiplied with up to eight rows at once.
#pragma once

#if defined(__AVX2__)

#include "decode.h"
#include "levels.h"

namespace rango::RANGO_ISA {

constexpr int AT_ONCE = 32;  // weights
constexpr int64_t DIRECT_ROWS = 8;
constexpr int64_t AHEAD = 16 << 10;  // bytes

// Ask the second-level cache for what comes so much later: a few rows are read side by side, each
// too short for the processor to see where it leads.
RANGO_INLINE void fetch_ahead(const void* at) {
  __builtin_prefetch(static_cast<const char*>(at) + AHEAD, 0, 2);
}

// Of a weight's row n, read from weight k on, which starts a block: `values` gives [k, k + 32).
struct Nf4Row {
  const Levels* levels;
  const uint8_t* from;
  int64_t block, rest_of_block;
  __m256 scale;

  RANGO_MEMBER void start(const Weight& w, const Levels& all, int64_t n, int64_t k) {
    levels = &all;
    from = static_cast<const uint8_t*>(w.data) + n * w.stride / 2;
    block = all.block_of(n * w.stride + k);
    rest_of_block = w.block - 1;
    scale = _mm256_setzero_ps();
  }
  RANGO_MEMBER void values(int64_t k, __m256* to) {
    if (!(k & rest_of_block)) {
      scale = _mm256_set1_ps(levels->constant(block++));
      fetch_ahead(from + k / 2);
    }
    levels->unpack(from + k / 2, scale, to);
  }
};

struct Int8Row {
  const int8_t* from;
  __m256 scale;

  RANGO_MEMBER void start(const Weight& w, const Levels&, int64_t n, int64_t) {
    from = static_cast<const int8_t*>(w.data) + n * w.stride;
    scale = _mm256_set1_ps(w.scales[n]);
  }
  RANGO_MEMBER void values(int64_t k, __m256* to) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) to[i] = eight_of_int8(from + k + 8 * i, scale);
    fetch_ahead(from + k);
  }
};

template <__m256 (*eight)(const uint16_t*)>
struct Row16 {
  const uint16_t* from;

  RANGO_MEMBER void start(const Weight& w, const Levels&, int64_t n, int64_t) {
    from = static_cast<const uint16_t*>(w.data) + n * w.stride;
  }
  RANGO_MEMBER void values(int64_t k, __m256* to) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) to[i] = eight(from + k + 8 * i);
    fetch_ahead(from + k);
  }
};

// Whether `depth` weights of each row can be read so.
RANGO_INLINE bool reads_direct(const Weight& w, int64_t depth) {
  if (w.kind == Kind::fp32 || depth % AT_ONCE) return false;
  return w.kind != Kind::nf4 ||
         (w.stride % w.block == 0 && w.block >= AT_ONCE && !(w.block & (w.block - 1)));
}

// sums[i][j] += a[i] · (row n + j of w) over [from, to), for M rows of a and j < C, in registers.
// Lane l of a sum holds the products l, l + 8, … in turn.
template <class Row, int M, int C, int STRIDE>
RANGO_INLINE void direct_dots(const Weight& w, const Levels& levels, int64_t n, const float* a,
                              int64_t a_row, int64_t from, int64_t to, Vec (*sums)[STRIDE]) {
  Row rows[C];
  Vec s[M][C];
#pragma GCC unroll 4
  for (int j = 0; j < C; j++) {
    rows[j].start(w, levels, n + j, from);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) s[i][j] = sums[i][j];
  }
  for (int64_t k = from; k < to; k += AT_ONCE)
#pragma GCC unroll 4
    for (int j = 0; j < C; j++) {
      __m256 values[4];
      rows[j].values(k, values);
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++)
#pragma GCC unroll 8
        for (int i = 0; i < M; i++)
          s[i][j] = fma(load(a + i * a_row + k + 8 * v), values[v], s[i][j]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < C; j++)
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) sums[i][j] = s[i][j];
}

}  // namespace rango::RANGO_ISA

#endif
