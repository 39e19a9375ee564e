#include "products_types.h"

#include "decode.h"
#include "levels.h"
#include "parallel.h"
#include "scratch.h"
#include "tile.h"

#include "products.h"

namespace rango::RANGO_ISA {
namespace {

constexpr int64_t AHEAD = 12;  // rows asked for before they are read
constexpr int GROUP = 4;  // panels decoded together: 64 columns, a block of NF4 and a cache line of it

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Reads one term's weight; what unpacking it needs is set up once.
struct Reader {
  const Weight& weight;
  Levels levels;

  explicit Reader(const Weight& w) : weight(w) {
    if (w.kind == Kind::nf4) levels.set(w);
  }

  // As `decode`.
  inline __attribute__((always_inline)) const float* read(int64_t row, int64_t column,
                                                          int64_t count, float* to) const {
    if (weight.kind != Kind::nf4) return decode(weight, row, column, count, to);
    levels.decode(row * weight.stride + column, count, to);
    return to;
  }
};

// Ask for a stretch of a row that will be read soon: rows lie pages apart, which the processor does
// not foresee.
RANGO_INLINE void fetch(const Weight& w, int64_t row, int64_t column, int64_t count) {
  if (w.kind == Kind::int8 || w.kind == Kind::nf4) return;  // a line or less
  const int64_t size = w.kind == Kind::fp32 ? 4 : 2;
  const char* from = static_cast<const char*>(w.data) + (row * w.stride + column) * size;
  for (int64_t at = 0; at < count * size; at += 64) __builtin_prefetch(from + at);
}

// Lines [k, k + depth) of columns [n, n + columns) of B, packed in panels of `depth` lines.
void pack(const Term& term, const Reader& reader, int64_t k, int64_t depth, int64_t n, int columns,
          float* panels, float* rows) {
  const Weight& b = term.b;
  if (term.transposed) {
    for (int first = 0; first < columns; first += PANEL, panels += depth * PANEL) {
      const int width = static_cast<int>(smaller(PANEL, columns - first));
      const float* source = rows;
      int64_t stride = depth;
      if (b.kind == Kind::fp32) {
        source = static_cast<const float*>(b.data) + (n + first) * b.stride + k;
        stride = b.stride;
      } else {
        for (int j = 0; j < width; j++) reader.read(n + first + j, k, depth, rows + j * depth);
      }
      pack_rows(source, stride, depth, width, panels);
    }
    return;
  }
  for (int64_t i = 0; i < depth; i++) {
    if (i + AHEAD < depth) fetch(b, k + i + AHEAD, n, columns);
    const float* line = reader.read(k + i, n, columns, rows);
    for (int first = 0; first < columns; first += PANEL)
      pack_columns(line + first, 0, 1, static_cast<int>(smaller(PANEL, columns - first)),
                   panels + first / PANEL * depth * PANEL + i * PANEL);
  }
}

}  // namespace

void sum_products(float* c, int64_t c_row, int64_t rows, int64_t columns, const Term* terms,
                  int count, const float* start, int64_t start_row, int threads) {
  const int64_t groups = (columns + GROUP * PANEL - 1) / (GROUP * PANEL);
  // few columns: share out the rows too
  int64_t bands = 1;
  while (groups * bands < 2 * threads && rows / (bands + 1) >= 8 * TILE) bands++;
  const int64_t band = (rows + bands - 1) / bands;

  auto task = [&](int64_t index) {
    const int64_t n = index % groups * GROUP * PANEL, m = index / groups * band;
    const int width = static_cast<int>(smaller(GROUP * PANEL, columns - n));
    const int64_t end = smaller(rows, m + band);
    float* panels = static_cast<float*>(scratch(0, DEPTH * PANEL * (GROUP + 1) * sizeof(float)));
    float* unpacked = panels + DEPTH * GROUP * PANEL;

    // the first block of a term that covers the whole band begins the sums; else they are set
    bool begun = false;
    const auto covers = [&](const Term& term) { return term.depth && term.from <= m && end <= term.to; };
    if (!(count && covers(terms[0]))) {
      for (int64_t i = m; i < end; i++)
        for (int j = 0; j < width; j++)
          c[i * c_row + n + j] = start ? start[i * start_row + n + j] : 0.0f;
      begun = true;
    }
    for (int t = 0; t < count; t++) {
      const Term& term = terms[t];
      const int64_t from = term.from > m ? term.from : m, to = smaller(term.to, end);
      if (from >= to) continue;
      const Reader reader(term.b);
      for (int64_t k = 0; k < term.depth; k += DEPTH) {
        const int64_t depth = smaller(DEPTH, term.depth - k);
        pack(term, reader, k, depth, n, width, panels, unpacked);
        const float* a = term.a + (from - term.from) * term.a_row + k * term.a_column;
        for (int first = 0; first < width; first += PANEL) {
          float* out = c + from * c_row + n + first;
          const Start begin =
              begun ? Start{out, c_row}
                    : Start{start ? start + from * start_row + n + first : nullptr, start_row};
          multiply_panel(to - from, depth, a, term.a_row, term.a_column,
                         panels + first / PANEL * depth * PANEL, out, c_row,
                         static_cast<int>(smaller(PANEL, width - first)), begin);
        }
        begun = true;
      }
    }
  };
  by_turns(groups * bands, threads, task);
}

}  // namespace rango::RANGO_ISA
