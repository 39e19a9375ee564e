// Blocks of keys × rows; the probabilities are formed again from lse (Dao et al. 2022, arXiv
// 2205.14135, appendix B).
#include "attention_types.h"

#include "attention_parts.h"
#include "parallel.h"
#include "scratch.h"

#include "attention.h"

namespace rango::RANGO_ISA {
namespace {

constexpr int64_t ROWS = 120;  // in a block; a multiple of TILE, and four such share the cache
constexpr int64_t TASKS = 16;  // below which the heads that share keys are parted

RANGO_INLINE float dot(const float* a, const float* b, int64_t count) {
  Vec sums[2] = {Vec{}, Vec{}};
  int64_t i = 0;
  for (; i + 2 * WIDTH <= count; i += 2 * WIDTH) {
    sums[0] = fma(load(a + i), load(b + i), sums[0]);
    sums[1] = fma(load(a + i + WIDTH), load(b + i + WIDTH), sums[1]);
  }
  float total = sum(sums[0] + sums[1]);
  for (; i < count; i++) total += a[i] * b[i];
  return total;
}

// Where a task writes the gradients of its keys, and the floats between two of them.
struct KeyGradients {
  float *dk, *dv;
  int64_t dk_token, dv_token;
};

// One task of the backward pass: all rows of a part.
RANGO_INLINE void backward_part(const Attention& call, const Part& part, const Heads& grad,
                                const Heads& q, const Heads& k, const Heads& v, const Heads& out,
                                const float* lse, const Heads& dq, const KeyGradients& to) {
  const int64_t dim = call.dim, width = padded(dim), rows = part.rows;
  const int64_t block = smaller(rows, ROWS);
  const int64_t floats = rows * (3 * width + 2) + block * 2 * LINE + block * width +
                         5 * KEYS * width;
  float* queries = static_cast<float*>(scratch(1, floats * sizeof(float)));
  float* grads = queries + rows * width;
  float* sums = grads + rows * width;  // of dq
  float* scores = sums + rows * width;
  float* slopes = scores + block * LINE;
  float* key_panels = slopes + block * LINE;  // kᵀ, vᵀ and k
  float* value_panels = key_panels + KEYS * width;
  float* key_columns = value_panels + KEYS * width;
  float* dk = key_columns + KEYS * width;
  float* dv = dk + KEYS * width;
  float* row_panels = dv + KEYS * width;
  float* logs = row_panels + block * width;
  float* deltas = logs + rows;
  const bool capped = call.softcap > 0.0f;
  const float factor = capped ? call.scale / call.softcap : call.scale;
  for (int64_t row = 0; row < rows; row++) {
    const int64_t token = part.token(row), head = part.head + row % part.group;
    const float* gradient = at(grad, token, head);
    copy_row(at(q, token, head), dim, factor, queries + row * width);
    copy_row(gradient, dim, 1.0f, grads + row * width);
    deltas[row] = dot(gradient, at(out, token, head), dim);
    logs[row] = finite(lse[head * call.tokens + token]);
  }
  memset(sums, 0, rows * width * sizeof(float));

  for (int64_t begin = 0; begin < part.keys; begin += KEYS) {
    const int64_t end = smaller(begin + KEYS, part.keys), count = end - begin;
    const int64_t columns = padded(count);
    const int64_t first = part.row_from(begin), last = part.row_to(end);
    memset(dk, 0, 2 * KEYS * width * sizeof(float));
    if (first < last) {
      const float* keys = at(k, part.key_first + begin, part.key_head);
      pack_keys(k, part, dim, begin, end, key_panels);
      pack_keys(v, part, dim, begin, end, value_panels);
      pack_values(keys, k.token, count, dim, key_columns);
    }
    for (int64_t top = first; top < last; top += block) {
      const int64_t bottom = smaller(last, top + block), height = bottom - top;
      products_with_keys(part, dim, queries + top * width, width, key_panels, top, bottom, begin,
                         end, scores);
      products_with_keys(part, dim, grads + top * width, width, value_panels, top, bottom, begin,
                         end, slopes);
      for (int64_t row = top; row < bottom; row++) {
        float* p = scores + (row - top) * LINE;
        float* ds = slopes + (row - top) * LINE;
        const Vec log = broadcast(logs[row]), delta = broadcast(deltas[row]);
        for (int64_t j = 0; j < columns; j += WIDTH) {
          Vec score = load(p + j), slope = load(ds + j) - delta;
          if (capped) {
            const Vec t = hyperbolic_tangent(score);
            score = t * call.softcap;
            slope *= (broadcast(1.0f) - t * t) * call.softcap;
          }
          const Vec probability = exp(score - log);
          store(p + j, probability);
          store(ds + j, probability * slope);
        }
        const Seen here = seen(part, part.place(row), begin, end);
        fill(p, 0, here.from, 0.0f), fill(p, here.to, columns, 0.0f);
        fill(ds, 0, here.from, 0.0f), fill(ds, here.to, columns, 0.0f);
      }
      pack_values(grads + top * width, width, height, width, row_panels);
      add_products(count, height, scores, 1, LINE, row_panels, width, dv);
      pack_values(queries + top * width, width, height, width, row_panels);
      add_products(count, height, slopes, 1, LINE, row_panels, width, dk);
      add_products(height, count, slopes, LINE, 1, key_columns, width, sums + top * width);
    }
    for (int64_t j = 0; j < count; j++) {
      write_row(dk + j * width, dim, 1.0f, to.dk + (begin + j) * to.dk_token);
      write_row(dv + j * width, dim, 1.0f, to.dv + (begin + j) * to.dv_token);
    }
  }
  for (int64_t row = 0; row < rows; row++)
    write_row(sums + row * width, dim, factor,
              at(dq, part.token(row), part.head + row % part.group));
}

}  // namespace

void attention_backward(const Attention& call, Heads grad, Heads q, Heads k, Heads v, Heads out,
                        const float* lse, Heads dq, Heads dk, Heads dv, int threads) {
  const int64_t all = call.heads / call.kv_heads, pairs = call.sequences * call.kv_heads;
  const int64_t keys = call.key_bounds[call.sequences], width = padded(call.dim);
  // Parted by the shape alone, never by the number of threads, so that sums stay the same.
  int64_t pieces = 1;
  while (pieces < all && (pairs * pieces < TASKS || all % pieces)) pieces++;
  const int64_t group = all / pieces, summed = pieces > 1 ? call.kv_heads * pieces : 0;
  // dk and dv of each piece, where there are several
  float* partial = static_cast<float*>(
      scratch(3, call.sequences * sizeof(int64_t) + 2 * summed * keys * width * sizeof(float)));
  int64_t* order = reinterpret_cast<int64_t*>(partial + 2 * summed * keys * width);
  for (int64_t i = 0; i < call.sequences; i++) {  // the longest first
    const int64_t queries = call.bounds[i + 1] - call.bounds[i];
    int64_t j = i;
    for (; j > 0 && call.bounds[order[j - 1] + 1] - call.bounds[order[j - 1]] < queries; j--)
      order[j] = order[j - 1];
    order[j] = i;
  }
  auto task = [&](int64_t index) {
    const int64_t sequence = order[index / (call.kv_heads * pieces)];
    const int64_t key_head = index % call.kv_heads, piece = index / call.kv_heads % pieces;
    const Part part = part_of(call, sequence, key_head, group, piece);
    if (!part.rows && !part.keys) return;
    KeyGradients to;
    if (summed) {
      to.dk = partial + ((key_head * pieces + piece) * keys + part.key_first) * width;
      to.dv = to.dk + summed * keys * width;
      to.dk_token = to.dv_token = width;
      backward_part(call, part, grad, q, k, v, out, lse, dq, to);
      return;
    }
    to.dk = part.keys ? at(dk, part.key_first, key_head) : nullptr;
    to.dv = part.keys ? at(dv, part.key_first, key_head) : nullptr;
    to.dk_token = dk.token, to.dv_token = dv.token;
    backward_part(call, part, grad, q, k, v, out, lse, dq, to);
  };
  by_turns(pairs * pieces, threads, task);
  if (!summed) return;
  auto sum_pieces = [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) {
      const int64_t key = i / call.kv_heads, key_head = i % call.kv_heads;
      for (int64_t which = 0; which < 2; which++) {
        float* total = partial + which * summed * keys * width +
                       (key_head * pieces * keys + key) * width;
        for (int64_t piece = 1; piece < pieces; piece++)
          for (int64_t j = 0; j < width; j += WIDTH)
            store(total + j, load(total + j) + load(total + piece * keys * width + j));
        write_row(total, call.dim, 1.0f, at(which ? dv : dk, key, key_head));
      }
    }
  };
  in_pieces(keys * call.kv_heads, 16, threads, sum_pieces);
}

}  // namespace rango::RANGO_ISA
