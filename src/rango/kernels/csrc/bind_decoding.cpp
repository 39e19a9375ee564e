// One call for a decoder layer of a few tokens: what takes Python a dozen calls a layer takes it
// longer than the arithmetic. The arithmetic is that of the kernels named here.
#include <cstring>
#include <stdexcept>
#include <vector>

#include "bind.h"

#define RANGO_HEADER "attention.h"
#include "each_isa.h"
#define RANGO_HEADER "gated.h"
#include "each_isa.h"
#define RANGO_HEADER "lowrank.h"
#include "each_isa.h"
#define RANGO_HEADER "narrow.h"
#include "each_isa.h"
#define RANGO_HEADER "norm.h"
#include "each_isa.h"
#define RANGO_HEADER "products.h"
#include "each_isa.h"
#define RANGO_HEADER "rotary.h"
#include "each_isa.h"

namespace rango {
namespace {

enum Linears { Q, K, V, O, GATE, UP, DOWN, LINEARS };
enum Norms { BEFORE_ATTENTION, BEFORE_MLP, OF_Q, OF_K, NORMS };

// The tokens [from, to) get scale · B · A · x; A (rank, in), B (out, rank).
struct Update {
  const float *A, *B;
  int64_t rank;
  float scale;
  int64_t from, to;
};

// What a batch's routing adds to each linear layer.
struct Updates {
  std::vector<Update> of[LINEARS];
};

struct Linear {
  Weight weight;
  const float* bias = nullptr;
};

struct Norm {
  const float* weight = nullptr;  // null: there is none
  float eps = 0.0f, offset = 0.0f;
};

// Angles (tokens, rotated); -1 tokens where who made them did not say.
struct Angles {
  const float *cos, *sin;
  int64_t rotated, tokens;
};

// Keys and values (batch, kv_heads, …, dim), `batch` and `head` floats apart, those of a head
// contiguous; `past` of them are there, and `length` more are written behind them.
struct Cache {
  float *keys, *values;
  int64_t batch, head, past, length;
};

// Who attends to whom: numerics/attention.py. The bounds rise to `tokens` and `keys`.
struct Reach {
  const int64_t *bounds, *key_bounds;
  int64_t sequences, tokens, keys, before, after;
};

void check(const int64_t* bounds, int64_t sequences, int64_t last) {
  bool right = sequences > 0 && bounds[0] == 0 && bounds[sequences] == last;
  for (int64_t i = 0; right && i < sequences; i++) right = bounds[i] <= bounds[i + 1];
  if (!right) throw std::invalid_argument("Reach: expected bounds that rise from 0 to the tokens");
}

// Memory of a thread, kept from call to call.
float* room(int64_t floats) {
  static thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
  return memory.data();
}

void sum(float* c, int64_t rows, int64_t columns, const std::vector<Term>& terms,
         const float* start, int64_t start_row, int threads) {
  const int count = static_cast<int>(terms.size());
  if (!RANGO_KERNEL(narrow_products)(c, columns, rows, columns, terms.data(), count, start,
                                     start_row, threads))
    RANGO_KERNEL(sum_products)(c, columns, rows, columns, terms.data(), count, start, start_row,
                               threads);
}

Weight factor(const float* data, int64_t rows, int64_t columns) {
  Weight w;
  w.data = data;
  w.rows = rows, w.columns = columns, w.stride = columns;
  return w;
}

// One layer's updates, and their narrow sides one after the other.
struct Adapting {
  const std::vector<Update>* updates;
  const float* h;
};

// The narrow sides of `count` layers that read the same x (tokens, in), all in one call.
void narrow(const std::vector<Update>* updates, int count, const float* x, int64_t tokens,
            int64_t in, Adapting* adapting, int threads) {
  static thread_local std::vector<NarrowSide> sides;
  static thread_local std::vector<float> memory;
  size_t floats = 0;
  for (int i = 0; i < count; i++)
    for (const Update& update : updates[i]) {
      if (update.to > tokens) throw std::invalid_argument("DecoderLayer: updates of other tokens");
      floats += (update.to - update.from) * update.rank;
    }
  if (memory.size() < floats) memory.resize(floats);
  float* h = memory.data();
  sides.clear();
  for (int i = 0; i < count; i++) {
    adapting[i] = {&updates[i], h};
    for (const Update& update : updates[i]) {
      const int64_t rows = update.to - update.from;
      sides.push_back({x + update.from * in, update.A, h, rows, update.rank, in, update.scale});
      h += rows * update.rank;
    }
  }
  if (!sides.empty())
    RANGO_KERNEL(narrow_sides)(sides.data(), static_cast<int64_t>(sides.size()), threads);
}

// y (tokens, out) = start + b + x·Wᵀ + the updates; a null start is 0. y may be start.
void project(const Linear& linear, const Adapting& adapting, const float* x, int64_t tokens,
             const float* start, float* y, int threads) {
  const int64_t in = linear.weight.columns, out = linear.weight.rows;
  static thread_local std::vector<Term> terms;
  terms.clear();
  terms.push_back({x, in, 1, in, linear.weight, true, 0, tokens});
  const float* h = adapting.h;
  for (const Update& update : *adapting.updates) {
    terms.push_back({h, update.rank, 1, update.rank, factor(update.B, out, update.rank), true,
                     update.from, update.to});
    h += (update.to - update.from) * update.rank;
  }
  if (start && linear.bias) {
    for (int64_t i = 0; i < tokens; i++)
      for (int64_t j = 0; j < out; j++) y[i * out + j] = start[i * out + j] + linear.bias[j];
    start = y;
  }
  const bool whole = start != nullptr;
  sum(y, tokens, out, terms, whole ? start : linear.bias, whole ? out : 0, threads);
}

// A decoder layer of the family of Llama: numerics and names as in rango.adapters.fused.
struct DecoderLayer {
  int64_t heads, kv_heads, dim;
  float scale;
  int activation;
  Linear linears[LINEARS];
  Norm norms[NORMS];

  int64_t hidden() const { return linears[Q].weight.columns; }
  int64_t inner() const { return linears[DOWN].weight.columns; }
  int64_t q_width() const { return heads * dim; }
  int64_t kv_width() const { return kv_heads * dim; }

  void check() const {
    const auto is = [&](int which, int64_t out, int64_t in) {
      const Weight& w = linears[which].weight;
      return w.rows == out && w.columns == in;
    };
    if (heads <= 0 || kv_heads <= 0 || heads % kv_heads || !is(Q, q_width(), hidden()) ||
        !is(K, kv_width(), hidden()) || !is(V, kv_width(), hidden()) ||
        !is(O, hidden(), q_width()) || !is(GATE, inner(), hidden()) ||
        !is(UP, inner(), hidden()) || !is(DOWN, hidden(), inner()))
      throw std::invalid_argument("DecoderLayer: weights of shapes that do not fit each other");
    if (!norms[BEFORE_ATTENTION].weight || !norms[BEFORE_MLP].weight)
      throw std::invalid_argument("DecoderLayer: expected norms before attention and the MLP");
  }

  void normed(int which, const float* x, int64_t rows, int64_t n, float* y, int threads) const {
    const Norm& norm = norms[which];
    RANGO_KERNEL(rms_norm)(y, x, norm.weight, rows, n, norm.eps, norm.offset, threads);
  }

  // q (tokens, heads, dim), k and v (tokens, kv_heads, dim) of x, q and k rotated.
  void project_heads(const Updates& updates, const float* x, int64_t tokens, const Angles& angles,
                     float* q, float* k, float* v, float* normed_x, int threads) const {
    if (angles.rotated < 0 || angles.rotated > dim || angles.rotated % 2 ||
        (angles.tokens >= 0 && angles.tokens < tokens))
      throw std::invalid_argument("DecoderLayer: angles of other tokens or heads than these");
    normed(BEFORE_ATTENTION, x, tokens, hidden(), normed_x, threads);
    float* outputs[] = {q, k, v};
    Adapting adapting[3];
    narrow(&updates.of[Q], 3, normed_x, tokens, hidden(), adapting, threads);
    for (int i = Q; i <= V; i++)
      project(linears[i], adapting[i], normed_x, tokens, nullptr, outputs[i], threads);
    const int64_t counts[] = {heads, kv_heads};
    for (int i = 0; i < 2; i++) {
      float* y = outputs[i];
      if (norms[OF_Q + i].weight) normed(OF_Q + i, y, tokens * counts[i], dim, y, threads);
      RANGO_KERNEL(rotate)(y, counts[i] * dim, y, counts[i] * dim, angles.cos, angles.sin, tokens,
                           counts[i], dim, angles.rotated, false, threads);
    }
  }

  // y = x + o(attended), and then y + mlp(y); normed_x (tokens, hidden), wide (2, tokens, inner).
  void project_rest(const Updates& updates, const float* x, const float* attended, int64_t tokens,
                    float* y, float* normed_x, float* wide, int threads) const {
    Adapting adapting[2];
    narrow(&updates.of[O], 1, attended, tokens, q_width(), adapting, threads);
    project(linears[O], adapting[0], attended, tokens, x, y, threads);
    float *gate = wide, *up = wide + tokens * inner();
    normed(BEFORE_MLP, y, tokens, hidden(), normed_x, threads);
    narrow(&updates.of[GATE], 2, normed_x, tokens, hidden(), adapting, threads);
    project(linears[GATE], adapting[0], normed_x, tokens, nullptr, gate, threads);
    project(linears[UP], adapting[1], normed_x, tokens, nullptr, up, threads);
    RANGO_KERNEL(gated)(gate, inner(), gate, inner(), up, inner(), tokens, inner(), activation,
                        threads);
    narrow(&updates.of[DOWN], 1, gate, tokens, inner(), adapting, threads);
    project(linears[DOWN], adapting[0], gate, tokens, y, y, threads);
  }

  void append(const Cache& cache, const float* k, const float* v, int64_t tokens) const {
    for (int64_t token = 0; token < tokens; token++)
      for (int64_t head = 0; head < kv_heads; head++) {
        const int64_t to = token / cache.length * cache.batch + head * cache.head +
                           (cache.past + token % cache.length) * dim;
        const int64_t from = (token * kv_heads + head) * dim;
        memcpy(cache.keys + to, k + from, dim * sizeof(float));
        memcpy(cache.values + to, v + from, dim * sizeof(float));
      }
  }

  void step(const Updates& updates, const float* x, float* y, int64_t tokens, const Angles& angles,
            const Cache& cache, const Reach& reach, int threads) const {
    const int64_t keys = cache.past + cache.length;
    if (cache.length <= 0 || cache.past < 0 || tokens % cache.length || reach.tokens != tokens ||
        reach.keys != tokens / cache.length * keys)
      throw std::invalid_argument("DecoderLayer: bounds of other tokens than these");
    for (int64_t i = 0; i < reach.sequences; i++) {
      const int64_t first = reach.key_bounds[i], end = reach.key_bounds[i + 1];
      if (first < end && first / keys != (end - 1) / keys)
        throw std::invalid_argument("DecoderLayer: a sequence lies in two rows of keys");
    }
    float* normed_x =
        room(tokens * (hidden() + 2 * q_width() + 2 * kv_width() + 2 * inner() + heads));
    float* q = normed_x + tokens * hidden();
    float *out = q + tokens * q_width(), *k = out + tokens * q_width();
    float *v = k + tokens * kv_width(), *wide = v + tokens * kv_width();
    float* lse = wide + 2 * tokens * inner();
    project_heads(updates, x, tokens, angles, q, k, v, normed_x, threads);
    append(cache, k, v, tokens);
    const Attention call{heads,        kv_heads,         dim,   tokens,       reach.sequences,
                         reach.bounds, reach.key_bounds, scale, reach.before, reach.after,
                         0.0f};
    const Heads queries{q, q_width(), dim, 0, tokens}, outputs{out, q_width(), dim, 0, tokens};
    const Heads old{cache.keys, dim, cache.head, cache.batch, keys};
    const Heads values{cache.values, dim, cache.head, cache.batch, keys};
    RANGO_KERNEL(attention)(call, queries, old, values, outputs, lse, threads);
    project_rest(updates, x, out, tokens, y, normed_x, wide, threads);
  }
};

}  // namespace

void bind_decoding(nb::module_& module) {
  nb::class_<Updates>(module, "Updates")
      .def(nb::init<>())
      .def("add", [](Updates& self, int which, Address A, Address B, int64_t rank, float scale,
                     int64_t from, int64_t to) {
        if (which < 0 || which >= LINEARS || from < 0 || from > to)
          throw std::invalid_argument("Updates: no such layer, or no such tokens");
        if (from < to)
          self.of[which].push_back({at<float>(A), at<float>(B), rank, scale, from, to});
      });
  nb::class_<Angles>(module, "Angles")
      .def(
          "__init__",
          [](Angles* self, Address cos, Address sin, int64_t rotated, int64_t tokens) {
            new (self) Angles{at<float>(cos), at<float>(sin), rotated, tokens};
          },
          nb::arg("cos"), nb::arg("sin"), nb::arg("rotated"), nb::arg("tokens") = -1);
  nb::class_<Reach>(module, "Reach")
      .def("__init__", [](Reach* self, Address bounds, Address key_bounds, int64_t sequences,
                          int64_t tokens, int64_t keys, int64_t before, int64_t after) {
        check(at<int64_t>(bounds), sequences, tokens);
        check(at<int64_t>(key_bounds), sequences, keys);
        new (self) Reach{at<int64_t>(bounds), at<int64_t>(key_bounds), sequences, tokens, keys,
                         before,              after};
      });
  // linears: q, k, v, o, gate, up, down, each a weight and a bias or 0; norms: before attention,
  // before the MLP, of q, of k, each an address or 0 and an epsilon
  nb::class_<DecoderLayer>(module, "DecoderLayer")
      .def("__init__",
           [](DecoderLayer* self, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
              int activation, const std::vector<Weight>& weights,
              const std::vector<Address>& biases, const std::vector<Address>& norms,
              const std::vector<float>& epsilons, float offset) {
             if (weights.size() != LINEARS || biases.size() != LINEARS || norms.size() != NORMS ||
                 epsilons.size() != NORMS)
               throw std::invalid_argument("DecoderLayer: expected seven layers and four norms");
             DecoderLayer made{heads, kv_heads, dim, scale, activation, {}, {}};
             for (int i = 0; i < LINEARS; i++)
               made.linears[i] = {weights[i], at<float>(biases[i])};
             for (int i = 0; i < NORMS; i++) made.norms[i] = {at<float>(norms[i]), epsilons[i], offset};
             made.check();
             new (self) DecoderLayer(made);
           })
      .def(
          "heads",
          [](const DecoderLayer& self, const Updates& updates, Address x, int64_t tokens,
             const Angles& angles, Address q, Address k, Address v, int threads) {
            self.project_heads(updates, at<float>(x), tokens, angles, at<float>(q), at<float>(k),
                               at<float>(v), room(tokens * self.hidden()), threads);
          },
          Unlocked())
      .def(
          "rest",
          [](const DecoderLayer& self, const Updates& updates, Address x, Address attended,
             int64_t tokens, Address y, int threads) {
            float* normed = room(tokens * (self.hidden() + 2 * self.inner()));
            self.project_rest(updates, at<float>(x), at<float>(attended), tokens, at<float>(y),
                              normed, normed + tokens * self.hidden(), threads);
          },
          Unlocked())
      .def(
          "step",
          [](const DecoderLayer& self, const Updates& updates, Address x, Address y,
             int64_t tokens, const Angles& angles, Address keys, Address values, int64_t batch,
             int64_t head, int64_t past, int64_t length, const Reach& reach, int threads) {
            const Cache cache{at<float>(keys), at<float>(values), batch, head, past, length};
            self.step(updates, at<float>(x), at<float>(y), tokens, angles, cache, reach, threads);
          },
          Unlocked());
}

}  // namespace rango
