#include "products_types.h"

#include "decode.h"
#include "direct.h"
#include "levels.h"
#include "parallel.h"
#include "scratch.h"

#include "narrow.h"

namespace rango::RANGO_ISA {
namespace {

constexpr int MOST_ROWS = 16;
constexpr int GROUP = 8;            // columns of the sum, rows of a weight, worked on together
constexpr int64_t STRETCH = 256;    // weights of a row decoded at a time: eight rows are 8 KB
constexpr int64_t WORTH = 1 << 15;  // weights that a thread is worth waking for
constexpr int64_t TURN = 1 << 14;   // weights that are worth a turn
constexpr int64_t TURNS = 16;       // at most: what is fetched ahead should be one's own
constexpr int64_t CACHED = 4096;    // floats of all rows: 16 KB
constexpr int MOST_TERMS = 64;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Elements of whole vectors that hold `count`.
int64_t whole(int64_t count) { return (count + WIDTH - 1) & -WIDTH; }

// A term as the inner loops want it: the rows of a contiguous, and whole vectors long (the last
// filled up with zeros).
struct Ready {
  const Term* term;
  const float* a;
  int64_t row;
  Levels levels;
};

// sums[i][j] += a[i] · b[j] over `depth` floats, a multiple of WIDTH. Lane l of a sum holds the
// products l, l + WIDTH, …: an order that knows nothing of other rows. M · N sums in registers.
template <int M, int N>
RANGO_INLINE void dots(const float* a, int64_t a_row, const float* const* b, int64_t depth,
                       Vec (*sums)[GROUP]) {
  Vec s[M][N];
  const float* w[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; j++) {
    w[j] = b[j];
#pragma GCC unroll 4
    for (int i = 0; i < M; i++) s[i][j] = sums[i][j];
  }
  for (int64_t k = 0; k < depth; k += WIDTH) {
    Vec x[M];
#pragma GCC unroll 4
    for (int i = 0; i < M; i++) x[i] = load(a + i * a_row + k);
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) {
      const Vec weight = load(w[j] + k);
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) s[i][j] = fma(x[i], weight, s[i][j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) sums[i][j] = s[i][j];
}

// All GROUP columns of `rows` rows.
RANGO_INLINE void dots_of_rows(int64_t rows, const float* a, int64_t a_row, const float* const* b,
                               int64_t depth, Vec (*sums)[GROUP]) {
  constexpr int HALF = GROUP / 2;
  Vec(*right)[GROUP] = reinterpret_cast<Vec(*)[GROUP]>(&sums[0][HALF]);
  int64_t i = 0;
  while (rows - i > 4 || rows - i == 3) {
    dots<3, HALF>(a + i * a_row, a_row, b, depth, sums + i);
    dots<3, HALF>(a + i * a_row, a_row, b + HALF, depth, right + i);
    i += 3;
  }
  for (; rows - i >= 2; i += 2) {
    dots<2, HALF>(a + i * a_row, a_row, b, depth, sums + i);
    dots<2, HALF>(a + i * a_row, a_row, b + HALF, depth, right + i);
  }
  if (i < rows) dots<1, GROUP>(a + i * a_row, a_row, b, depth, sums + i);
}

// Four sums of lanes, always in the same order.
RANGO_INLINE void total(const Vec* sums, float* to) {
#if defined(__AVX2__)
  const __m256 pairs =
      _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
  for (int j = 0; j < 4; j++) to[j] = sum(sums[j]);
#endif
}

// `count` weights of row n from k on, as they are or decoded into `room`, with zeros up to a whole
// vector.
RANGO_INLINE const float* stretch(const Weight& w, const Levels& levels, int64_t n, int64_t k,
                                  int64_t count, float* room) {
  const int64_t missing = -count & (WIDTH - 1);
  const float* found = room;
  if (w.kind == Kind::nf4)
    levels.decode(n * w.stride + k, count, room);
  else
    found = decode(w, n, k, count, room);
  if (!missing) return found;
  if (found != room) memcpy(room, found, count * sizeof(float));
  memset(room + count, 0, missing * sizeof(float));
  return room;
}

// Have the cache fetch `count` weights from element `at` on. Rows follow each other in memory, but
// eight are read side by side, each too short for the processor to see where it leads.
RANGO_INLINE void fetch(const Weight& w, int64_t at, int64_t count) {
  constexpr int BITS[] = {32, 16, 16, 8, 4};  // by kind
  const int64_t bits = BITS[static_cast<int>(w.kind)];
  const char* from = static_cast<const char*>(w.data) + at * bits / 8;
  for (int64_t n = 0; n < count * bits / 8; n += 64) __builtin_prefetch(from + n);
}

#if defined(__AVX2__)
// All GROUP columns of M ≤ DIRECT_ROWS rows, as many side by side as there are registers for.
template <class Row, int M>
RANGO_INLINE void direct_columns(const Ready& ready, int64_t n, Vec (*sums)[GROUP]) {
  constexpr int C = M == 1 ? 4 : M <= 4 ? 2 : 1;
  const Weight& w = ready.term->b;
  // so many that the rows' floats stay in the first-level cache from column to column
  const int64_t whole_blocks = CACHED / M & -w.block;
  const int64_t step = whole_blocks ? whole_blocks : w.block;
  for (int64_t k = 0; k < ready.term->depth; k += step)
    for (int j = 0; j < GROUP; j += C)
      direct_dots<Row, M, C>(w, ready.levels, n + j, ready.a, ready.row, k,
                             smaller(ready.term->depth, k + step),
                             reinterpret_cast<Vec(*)[GROUP]>(&sums[0][j]));
}

template <class Row>
void direct_rows(const Ready& ready, int64_t n, int64_t rows, Vec (*sums)[GROUP]) {
  switch (rows) {
    case 1: return direct_columns<Row, 1>(ready, n, sums);
    case 2: return direct_columns<Row, 2>(ready, n, sums);
    case 3: return direct_columns<Row, 3>(ready, n, sums);
    case 4: return direct_columns<Row, 4>(ready, n, sums);
    case 5: return direct_columns<Row, 5>(ready, n, sums);
    case 6: return direct_columns<Row, 6>(ready, n, sums);
    case 7: return direct_columns<Row, 7>(ready, n, sums);
    case 8: return direct_columns<Row, 8>(ready, n, sums);
  }
}

// The same columns as add_term's, where they can be had without a buffer; says whether they were.
RANGO_INLINE bool add_direct(const Ready& ready, int64_t n, int64_t width, Vec (*sums)[GROUP]) {
  const Term& term = *ready.term;
  const int64_t rows = term.to - term.from;
  if (width < GROUP || rows > DIRECT_ROWS || !reads_direct(term.b, term.depth)) return false;
  sums += term.from;
  switch (term.b.kind) {
    case Kind::nf4: direct_rows<Nf4Row>(ready, n, rows, sums); break;
    case Kind::int8: direct_rows<Int8Row>(ready, n, rows, sums); break;
    case Kind::bf16: direct_rows<Row16<eight_of_bf16>>(ready, n, rows, sums); break;
    case Kind::fp16: direct_rows<Row16<eight_of_fp16>>(ready, n, rows, sums); break;
    case Kind::fp32: return false;
  }
  return true;
}
#endif

// The columns [n, n + width) of the sum, width ≤ GROUP, from one term.
RANGO_INLINE void add_term(const Ready& ready, int64_t n, int64_t width, float (*room)[STRETCH],
                           Vec (*sums)[GROUP]) {
#if defined(__AVX2__)
  if (add_direct(ready, n, width, sums)) return;
#endif
  const Term& term = *ready.term;
  const Weight& w = term.b;
  const int64_t rows = term.to - term.from;
  const bool more = n + 2 * GROUP <= w.rows;
  const float* b[GROUP];
  if (w.kind == Kind::fp32 && term.depth % WIDTH == 0) {  // read where it is
    const float* from = static_cast<const float*>(w.data) + n * w.stride;
    for (int j = 0; j < GROUP; j++) b[j] = from + (j < width ? j : 0) * w.stride;
    if (more && term.depth <= STRETCH)
      for (int j = 0; j < GROUP; j++) fetch(w, (n + GROUP + j) * w.stride, term.depth);
    dots_of_rows(rows, ready.a, ready.row, b, term.depth, sums + term.from);
    return;
  }
  for (int64_t k = 0; k < term.depth; k += STRETCH) {
    const int64_t depth = smaller(STRETCH, term.depth - k);
    for (int j = 0; j < GROUP; j++) {
      if (more) fetch(w, (n + GROUP + j) * w.stride + k, depth);
      b[j] = j < width ? stretch(w, ready.levels, n + j, k, depth, room[j]) : b[0];
    }
    dots_of_rows(rows, ready.a + k, ready.row, b, whole(depth), sums + term.from);
  }
}

}  // namespace

bool narrow_products(float* c, int64_t c_row, int64_t rows, int64_t columns, const Term* terms,
                     int count, const float* start, int64_t start_row, int threads) {
  if (rows > MOST_ROWS || count > MOST_TERMS) return false;
  size_t floats = 0;
  int64_t depths = 1;
  for (int t = 0; t < count; t++) {
    if (!terms[t].transposed) return false;
    floats += (terms[t].to - terms[t].from) * whole(terms[t].depth);
    depths += terms[t].depth;
  }

  Ready ready[MOST_TERMS];
  int used = 0;
  float* room = static_cast<float*>(scratch(1, (floats + 1) * sizeof(float)));
  for (int t = 0; t < count; t++) {
    const Term& term = terms[t];
    if (term.from >= term.to || term.depth == 0) continue;
    Ready& next = ready[used++];
    next.term = &term;
    if (term.b.kind == Kind::nf4) next.levels.set(term.b);
    if (term.a_column == 1 && term.depth % WIDTH == 0) {
      next.a = term.a, next.row = term.a_row;
      continue;
    }
    next.a = room, next.row = whole(term.depth);
    for (int64_t i = 0; i < term.to - term.from; i++)
      for (int64_t k = 0; k < next.row; k++)
        *room++ = k < term.depth ? term.a[i * term.a_row + k * term.a_column] : 0.0f;
  }

  const int64_t groups = (columns + GROUP - 1) / GROUP;
  const int64_t share = columns * depths / TURNS;
  const int64_t turn = ((share > TURN ? share : TURN) / GROUP + depths - 1) / depths;  // groups
  auto task = [&](int64_t index) {
    alignas(64) float decoded[GROUP][STRETCH];
    alignas(64) Vec sums[MOST_ROWS][GROUP];
    for (int64_t group = index * turn; group < smaller(groups, (index + 1) * turn); group++) {
      const int64_t n = group * GROUP, width = smaller(GROUP, columns - n);
      for (int64_t i = 0; i < rows; i++)
        for (int j = 0; j < GROUP; j++) sums[i][j] = Vec{};
      for (int t = 0; t < used; t++) add_term(ready[t], n, width, decoded, sums);
      for (int64_t i = 0; i < rows; i++) {
        float found[GROUP];
        for (int j = 0; j < GROUP; j += 4) total(sums[i] + j, found + j);
        for (int64_t j = 0; j < width; j++)
          c[i * c_row + n + j] = start ? start[i * start_row + n + j] + found[j] : found[j];
      }
    }
  };
  const int64_t useful = columns * depths / WORTH + 1;
  by_turns((groups + turn - 1) / turn, useful < threads ? static_cast<int>(useful) : threads, task);
  return true;
}

}  // namespace rango::RANGO_ISA
