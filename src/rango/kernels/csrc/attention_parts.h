// What the forward and the backward pass of attention share: blocks of rows × keys.
//
// A row is one query of one head; the heads that share keys are rows of one block, query after
// query, so that keys are packed once for all of them.
#pragma once

#include <float.h>

#include "attention_types.h"
#include "simd.h"
#include "tile.h"

namespace rango::RANGO_ISA {

constexpr int64_t KEYS = 64;            // in a block
constexpr int64_t LINE = KEYS + PANEL;  // floats between rows of scores: no power of two
constexpr int64_t FEW = 2 * TILE;       // rows, in decoding

RANGO_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
RANGO_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
// What is subtracted from scores: not -inf, so that a score of -inf gives exp(-inf) = 0, not NaN.
RANGO_INLINE float finite(float top) { return top < -FLT_MAX ? -FLT_MAX : top; }
RANGO_INLINE int64_t padded(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

RANGO_INLINE float* at(const Heads& x, int64_t token, int64_t head) {
  return x.data + token / x.length * x.batch + token % x.length * x.token + head * x.head;
}

// The queries and keys of one sequence, for the query heads [head, head + group) on one key head.
struct Part {
  int64_t first, rows;       // token of the first query; queries · group
  int64_t key_first, keys;
  int64_t ahead;             // place of the first query among the keys
  int64_t before, after;
  int64_t head, group, key_head;

  int64_t token(int64_t row) const { return first + row / group; }
  int64_t place(int64_t row) const { return ahead + row / group; }
  // The rows that see any of the keys [begin, end).
  int64_t row_from(int64_t begin) const { return larger(0, (begin - after - ahead) * group); }
  int64_t row_to(int64_t end) const { return smaller(rows, (end + before - ahead) * group); }
};

RANGO_INLINE Part part_of(const Attention& call, int64_t sequence, int64_t key_head, int64_t group,
                          int64_t piece) {
  const int64_t first = call.bounds[sequence], queries = call.bounds[sequence + 1] - first;
  const int64_t key_first = call.key_bounds[sequence];
  const int64_t keys = call.key_bounds[sequence + 1] - key_first;
  const int64_t all = call.heads / call.kv_heads;
  return {first, queries * group, key_first, keys, keys - queries, call.before, call.after,
          key_head * all + piece * group, group, key_head};
}

// to = from · factor, zeros up to a whole panel.
RANGO_INLINE void copy_row(const float* from, int64_t dim, float factor, float* to) {
  const Vec f = broadcast(factor);
  int64_t i = 0;
  for (; i + WIDTH <= dim; i += WIDTH) store(to + i, load(from + i) * f);
  for (; i < dim; i++) to[i] = from[i] * factor;
  for (; i < padded(dim); i++) to[i] = 0.0f;
}

// The same, without the zeros.
RANGO_INLINE void write_row(const float* from, int64_t dim, float factor, float* to) {
  const Vec f = broadcast(factor);
  int64_t i = 0;
  for (; i + WIDTH <= dim; i += WIDTH) store(to + i, load(from + i) * f);
  for (; i < dim; i++) to[i] = from[i] * factor;
}

// Cephes' tanhf: a polynomial near zero, where 1 - 2/(e²ˣ + 1) would cancel.
RANGO_INLINE Vec hyperbolic_tangent(Vec x) {
  const Vec size = max(x, -x), square = x * x;
  Vec p = broadcast(-5.70498872745e-3f);
  p = fma(p, square, broadcast(2.06390887954e-2f));
  p = fma(p, square, broadcast(-5.37397155531e-2f));
  p = fma(p, square, broadcast(1.33314422036e-1f));
  p = fma(p, square, broadcast(-3.33332819422e-1f));
  const Vec near = fma(p * square, x, x);
  const Vec far = broadcast(1.0f) - broadcast(2.0f) / (exp(size + size) + broadcast(1.0f));
  return size < broadcast(0.625f) ? near : (x < Vec{} ? -far : far);
}

// For the few rows of a decoding step: c (M, 16) += a · b, with b's lines where they lie, `b_row`
// apart. Packing them would cost as much as using them.
template <int M>
__attribute__((noinline)) static void add_in_place(int64_t depth, const float* a, int64_t a_row,
                                                   const float* b, int64_t b_row, float* c,
                                                   int64_t c_row) {
  Vec sums[M][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) sums[i][j] = load(c + i * c_row + j * WIDTH);
  for (int64_t k = 0; k < depth; k++, b += b_row) {
    Vec line[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) line[j] = load(b + j * WIDTH);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
      const Vec x = broadcast(a[i * a_row + k]);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; j++) sums[i][j] = fma(x, line[j], sums[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) store(c + i * c_row + j * WIDTH, sums[i][j]);
}

// The same for 1 to FEW rows, in one or two even tiles.
RANGO_INLINE void add_few(int64_t rows, int64_t depth, const float* a, int64_t a_row,
                          const float* b, int64_t b_row, float* c, int64_t c_row) {
  while (rows > 0) {
    const int64_t some = rows > TILE ? (rows + 1) / 2 : rows;
    switch (some) {
      case 1: add_in_place<1>(depth, a, a_row, b, b_row, c, c_row); break;
      case 2: add_in_place<2>(depth, a, a_row, b, b_row, c, c_row); break;
#if defined(__AVX2__)
      case 3: add_in_place<3>(depth, a, a_row, b, b_row, c, c_row); break;
      case 4: add_in_place<4>(depth, a, a_row, b, b_row, c, c_row); break;
      case 5: add_in_place<5>(depth, a, a_row, b, b_row, c, c_row); break;
      case 6: add_in_place<6>(depth, a, a_row, b, b_row, c, c_row); break;
#endif
    }
    a += some * a_row, c += some * c_row, rows -= some;
  }
}

// scores (rows [from, to) of the part, keys [begin, end)) = a · keysᵀ, where any is seen; `panels`
// holds the keys. The scores of row r are at (r - from) · LINE.
RANGO_INLINE void products_with_keys(const Part& part, int64_t dim, const float* a, int64_t a_row,
                                     const float* panels, int64_t from, int64_t to, int64_t begin,
                                     int64_t end, float* scores) {
  for (int64_t j = begin; j < end; j += PANEL, panels += dim * PANEL) {
    const int64_t first = larger(from, part.row_from(j));
    const int64_t last = smaller(to, part.row_to(smaller(end, j + PANEL)));
    if (first >= last) continue;
    const float* rows = a + (first - from) * a_row;
    float* c = scores + (first - from) * LINE + (j - begin);
    if (last - first > FEW) {
      multiply_panel(last - first, dim, rows, a_row, 1, panels, c, LINE, PANEL, {nullptr, 0});
      continue;
    }
    for (int64_t i = 0; i < last - first; i++) memset(c + i * LINE, 0, PANEL * sizeof(float));
    add_few(last - first, dim, rows, a_row, panels, PANEL, c, LINE);
  }
}

// The keys [begin, end) as the columns of panels.
RANGO_INLINE void pack_keys(const Heads& k, const Part& part, int64_t dim, int64_t begin,
                            int64_t end, float* panels) {
  const float* from = at(k, part.key_first + begin, part.key_head);
  for (int64_t j = begin; j < end; j += PANEL, panels += dim * PANEL, from += PANEL * k.token)
    pack_rows(from, k.token, dim, static_cast<int>(smaller(PANEL, end - j)), panels);
}

// Panels of 16 of the `dim` columns of `depth` rows.
RANGO_INLINE void pack_values(const float* from, int64_t row, int64_t depth, int64_t dim,
                              float* panels) {
  for (int64_t c = 0; c < dim; c += PANEL, panels += depth * PANEL)
    pack_columns(from + c, row, depth, static_cast<int>(smaller(PANEL, dim - c)), panels);
}

// c (rows, dim padded) += a · panels.
RANGO_INLINE void add_products(int64_t rows, int64_t depth, const float* a, int64_t a_row,
                               int64_t a_column, const float* panels, int64_t width, float* c) {
  for (int64_t j = 0; j < width; j += PANEL, panels += depth * PANEL)
    multiply_panel(rows, depth, a, a_row, a_column, panels, c + j, width, PANEL, {c + j, width});
}

// The columns of [begin, end) that a row at this place sees, counted from begin.
struct Seen {
  int64_t from, to;
};

RANGO_INLINE Seen seen(const Part& part, int64_t place, int64_t begin, int64_t end) {
  return {larger(0, place - part.before - begin),
          smaller(end, place + part.after + 1) - begin};
}

RANGO_INLINE void fill(float* line, int64_t from, int64_t to, float value) {
  for (int64_t i = from; i < to; i++) line[i] = value;
}

}  // namespace rango::RANGO_ISA
