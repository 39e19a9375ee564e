// The register-blocked micro-kernel: C (rows, 16) from A (rows, depth) and one packed panel of B.
//
// A panel holds 16 columns of B, `depth` deep, as depth lines of 16 floats (64 bytes). It should fit
// the first-level cache with room to spare (DEPTH lines, 28 KB); A is read in place, whatever its
// strides, one broadcast at a time. After Goto and van de Geijn 2008, "Anatomy of high-performance
// matrix multiplication", with B's panel in the first level instead of A's block in the second.
#pragma once

#include "simd.h"

namespace rango::RANGO_ISA {

constexpr int PANEL = 16;
constexpr int VECTORS = PANEL / WIDTH;
constexpr int64_t DEPTH = 448;  // lines of a panel; a multiple of 64, so NF4's blocks stay whole
#if defined(__AVX2__)
constexpr int TILE = 6;  // 12 of 16 registers accumulate
#else
constexpr int TILE = 2;
#endif

// Where a tile's sums begin: nothing (null: zero), or values with `row` floats between rows (0: the
// same line for all, a bias).
struct Start {
  const float* values;
  int64_t row;
};

// M rows of C, of the panel's first V vectors.
template <int M, int V>
RANGO_INLINE void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                       const float* panel, float* c, int64_t c_row, Start start) {
  Vec sums[M][V];
  if (start.values) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) sums[i][j] = load(start.values + i * start.row + j * WIDTH);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) sums[i][j] = Vec{};
  }
  for (int64_t k = 0; k < depth; k++) {
    Vec line[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) line[j] = load(panel + j * WIDTH);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const Vec x = broadcast(a[i * a_row]);
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) sums[i][j] = fma(x, line[j], sums[i][j]);
    }
    a += a_column;
    panel += PANEL;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) store(c + i * c_row + j * WIDTH, sums[i][j]);
}

template <int M, int V>
__attribute__((noinline)) static void tile_or_edge(int64_t depth, const float* a, int64_t a_row,
                                                   int64_t a_column, const float* panel, float* c,
                                                   int64_t c_row, int columns, Start start) {
  constexpr int LINE = V * WIDTH;
  if (columns == LINE) {
    tile<M, V>(depth, a, a_row, a_column, panel, c, c_row, start);
    return;
  }
  float whole[M * LINE] = {};
  if (start.values)
    for (int i = 0; i < M; i++)
      memcpy(whole + i * LINE, start.values + i * start.row, columns * sizeof(float));
  tile<M, V>(depth, a, a_row, a_column, panel, whole, LINE, {whole, LINE});
  for (int i = 0; i < M; i++) memcpy(c + i * c_row, whole + i * LINE, columns * sizeof(float));
}

// All rows of C, M at a time and then, of those that are left, 4, 2 and 1: 8 are two fours, which
// keep the multipliers busier than 6 and 2.
template <int M, int V>
RANGO_INLINE void multiply_rows(int64_t rows, int64_t depth, const float* a, int64_t a_row,
                                int64_t a_column, const float* panel, float* c, int64_t c_row,
                                int columns, Start start) {
  int64_t i = 0;
  const auto from = [&](int64_t row) {
    return start.values ? Start{start.values + row * start.row, start.row} : start;
  };
  for (; i + M <= rows && !(M > 4 && rows - i == 8); i += M)
    tile_or_edge<M, V>(depth, a + i * a_row, a_row, a_column, panel, c + i * c_row, c_row,
                       columns, from(i));
  if constexpr (M > 4)
    for (; i + 4 <= rows; i += 4)
      tile_or_edge<4, V>(depth, a + i * a_row, a_row, a_column, panel, c + i * c_row, c_row,
                         columns, from(i));
  if constexpr (M > 2)
    if (i + 2 <= rows) {
      tile_or_edge<2, V>(depth, a + i * a_row, a_row, a_column, panel, c + i * c_row, c_row,
                         columns, from(i));
      i += 2;
    }
  for (; i < rows; i++)
    tile_or_edge<1, V>(depth, a + i * a_row, a_row, a_column, panel, c + i * c_row, c_row,
                       columns, from(i));
}

// C (rows, columns ≤ 16) = start + A · panel.
RANGO_INLINE void multiply_panel(int64_t rows, int64_t depth, const float* a, int64_t a_row,
                                 int64_t a_column, const float* panel, float* c, int64_t c_row,
                                 int columns, Start start) {
#if defined(__AVX2__)
  if (columns <= WIDTH) {  // an adapter of rank 8: half of the panel is nothing
    multiply_rows<2 * TILE, 1>(rows, depth, a, a_row, a_column, panel, c, c_row, columns, start);
    return;
  }
#endif
  multiply_rows<TILE, VECTORS>(rows, depth, a, a_row, a_column, panel, c, c_row, columns, start);
}

// Pack `depth` rows of `columns` ≤ 16 contiguous floats, `row` apart; missing columns become zero.
RANGO_INLINE void pack_columns(const float* from, int64_t row, int64_t depth, int columns,
                               float* panel) {
  for (int64_t k = 0; k < depth; k++, from += row, panel += PANEL) {
    if (columns == PANEL) {
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; j++) store(panel + j * WIDTH, load(from + j * WIDTH));
#if defined(__AVX2__)
    } else if (columns == WIDTH) {
      store(panel, load(from));
      store(panel + WIDTH, Vec{});
#endif
    } else {
      memcpy(panel, from, columns * sizeof(float));
      memset(panel + columns, 0, (PANEL - columns) * sizeof(float));
    }
  }
}

#if defined(__AVX2__)
// 8 rows, `row` apart, of 8 floats -> 8 lines, PANEL apart.
RANGO_INLINE void transpose_8x8(const float* from, int64_t row, float* to) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(from + i * row);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps(to + i * PANEL, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * PANEL, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
#endif

// Pack `columns` ≤ 16 rows, `row` apart, of `depth` contiguous floats as the panel's columns.
RANGO_INLINE void pack_rows(const float* from, int64_t row, int64_t depth, int columns,
                            float* panel) {
  int64_t k = 0;
#if defined(__AVX2__)
  if (columns == PANEL)
    for (; k + 8 <= depth; k += 8) {
      transpose_8x8(from + k, row, panel + k * PANEL);
      transpose_8x8(from + 8 * row + k, row, panel + k * PANEL + 8);
    }
#endif
  for (; k < depth; k++)
    for (int j = 0; j < PANEL; j++) panel[k * PANEL + j] = j < columns ? from[j * row + k] : 0.0f;
}

}  // namespace rango::RANGO_ISA
