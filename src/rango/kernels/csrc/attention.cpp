// Blocks of rows × keys with an online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao
// et al. 2022, arXiv 2205.14135).
#include "attention_types.h"

#include <math.h>

#include "attention_parts.h"
#include "parallel.h"
#include "scratch.h"

#include "attention.h"

namespace rango::RANGO_ISA {
namespace {

constexpr int64_t ROWS = 192;  // in a block; a multiple of TILE

// One task of the forward pass: the rows [from, to) of a part.
RANGO_INLINE void forward_block(const Attention& call, const Part& part, const Heads& q,
                                const Heads& k, const Heads& v, const Heads& out, float* lse,
                                int64_t from, int64_t to) {
  const int64_t dim = call.dim, width = padded(dim), rows = to - from;
  float* queries = static_cast<float*>(scratch(
      1, (rows * (2 * width + LINE + 2) + KEYS * width) * sizeof(float)));
  float* sums = queries + rows * width;
  float* scores = sums + rows * width;
  float* panels = scores + rows * LINE;
  float* tops = panels + KEYS * width;  // of each row: the largest score, and Σ exp below it
  float* totals = tops + rows;
  const float factor = call.softcap > 0.0f ? call.scale / call.softcap : call.scale;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t row = from + i;
    copy_row(at(q, part.token(row), part.head + row % part.group), dim, factor,
             queries + i * width);
    tops[i] = -INFINITY, totals[i] = 0.0f;
  }
  memset(sums, 0, rows * width * sizeof(float));

  const int64_t lowest = larger(0, part.place(from) - part.before) / KEYS * KEYS;
  const int64_t highest = smaller(part.keys, part.place(to - 1) + part.after + 1);
  for (int64_t begin = lowest; begin < highest; begin += KEYS) {
    const int64_t end = smaller(begin + KEYS, highest), columns = padded(end - begin);
    const int64_t first = larger(from, part.row_from(begin)), last = smaller(to, part.row_to(end));
    if (first >= last) continue;
    pack_keys(k, part, dim, begin, end, panels);
    products_with_keys(part, dim, queries + (first - from) * width, width, panels, first, last,
                       begin, end, scores);
    for (int64_t row = first; row < last; row++) {
      float* line = scores + (row - first) * LINE;
      const int64_t i = row - from;
      if (call.softcap > 0.0f)
        for (int64_t j = 0; j < columns; j += WIDTH)
          store(line + j, hyperbolic_tangent(load(line + j)) * call.softcap);
      const Seen here = seen(part, part.place(row), begin, end);
      fill(line, 0, here.from, -INFINITY);
      fill(line, here.to, columns, -INFINITY);
      Vec highs[2] = {load(line), load(line + WIDTH)};
      for (int64_t j = 2 * WIDTH; j < columns; j += 2 * WIDTH) {
        highs[0] = max(highs[0], load(line + j));
        highs[1] = max(highs[1], load(line + j + WIDTH));
      }
      const float high = largest(max(highs[0], highs[1]));
      if (high > tops[i]) {
        if (totals[i] > 0.0f) {
          const float shrink = expf(tops[i] - high);
          totals[i] *= shrink;
          copy_row(sums + i * width, width, shrink, sums + i * width);
        }
        tops[i] = high;
      }
      const Vec top = broadcast(finite(tops[i]));
      Vec added[2] = {Vec{}, Vec{}};
      for (int64_t j = 0; j < columns; j += 2 * WIDTH) {
        const Vec p = exp(load(line + j) - top), r = exp(load(line + j + WIDTH) - top);
        store(line + j, p);
        store(line + j + WIDTH, r);
        added[0] += p;
        added[1] += r;
      }
      totals[i] += sum(added[0] + added[1]);
    }
    const float* values = at(v, part.key_first + begin, part.key_head);
    if (last - first <= FEW && dim == width) {
      for (int64_t c = 0; c < dim; c += PANEL)
        add_few(last - first, end - begin, scores, LINE, values + c, v.token,
                sums + (first - from) * width + c, width);
      continue;
    }
    pack_values(values, v.token, end - begin, dim, panels);
    add_products(last - first, end - begin, scores, LINE, 1, panels, width,
                 sums + (first - from) * width);
  }
  for (int64_t i = 0; i < rows; i++) {
    const int64_t row = from + i, token = part.token(row), head = part.head + row % part.group;
    // a NaN among the scores must not come out as the zeros of a row without keys
    const bool empty = totals[i] == 0.0f && tops[i] == -INFINITY;
    write_row(sums + i * width, dim, empty ? 0.0f : 1.0f / totals[i], at(out, token, head));
    lse[head * call.tokens + token] = empty ? -INFINITY : tops[i] + logf(totals[i]);
  }
}

}  // namespace

void attention(const Attention& call, Heads q, Heads k, Heads v, Heads out, float* lse,
               int threads) {
  const int64_t group = call.heads / call.kv_heads, pairs = call.sequences * call.kv_heads;
  // few rows in all: smaller blocks, so that each thread has some
  int64_t rows = ROWS;
  while (rows > 4 * TILE && pairs + call.tokens * call.heads / rows < 4 * threads) rows -= TILE;
  // ends[i]: blocks of the sequences up to i, of one key head
  int64_t* ends = static_cast<int64_t*>(scratch(3, (call.sequences + 1) * sizeof(int64_t)));
  int64_t blocks = 0;
  for (int64_t i = 0; i < call.sequences; i++) {
    blocks += ((call.bounds[i + 1] - call.bounds[i]) * group + rows - 1) / rows;
    ends[i] = blocks;
  }
  auto task = [&](int64_t index) {
    // the last first: under a causal mask they are the longest
    const int64_t block = blocks - 1 - index / call.kv_heads;
    int64_t low = 0, high = call.sequences - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (ends[middle] > block)
        high = middle;
      else
        low = middle + 1;
    }
    const Part part = part_of(call, low, index % call.kv_heads, group, 0);
    const int64_t from = (block - (low ? ends[low - 1] : 0)) * rows;
    forward_block(call, part, q, k, v, out, lse, from, smaller(part.rows, from + rows));
  };
  by_turns(blocks * call.kv_heads, threads, task);
}

}  // namespace rango::RANGO_ISA
