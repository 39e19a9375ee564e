// In the manner of flash attention (Dao et al. 2022), with the vocabulary as keys and the head's
// weight as keys and values: a block of its rows is decoded once, gives its logits, and is at once
// added up under their exponentials, so that the loss and its gradient come out of one reading of
// the weight and no row of logits ever exists.
#include "decode.h"
#include "parallel.h"
#include "scratch.h"
#include "tile.h"

#include "cross_entropy.h"

namespace rango::RANGO_ISA {
namespace {

constexpr int64_t CHUNK = 512;  // tokens that share a reading of the weight, at most
constexpr int64_t SUMS = 2 << 20;  // floats of a chunk's tables, unless a BAND a thread takes more
constexpr int64_t BLOCK = 128;  // rows of the weight decoded together
constexpr int64_t SLICES = 8;   // of the vocabulary, at most; more threads share out the tokens
constexpr int64_t BAND = 64;    // tokens of a thread, at least, where they are shared out
constexpr int64_t RECENT = 8;   // blocks added up apart before they join the whole sum
constexpr float SLACK = 8.0f;   // exponents above the shift that need no rescaling

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// What one token has seen of the vocabulary.
struct Seen {
  double sum;       // Σ exp(l - shift)
  float shift;      // near the largest logit so far, never more than SLACK below it
  float best;       // the largest logit so far
  int64_t best_at;  // and where it first stood
  float target;     // the target's logit, for the slice that holds it
  float slope;      // d target / d (the product): 1 but for softcap
};

// The problem, and the tables of one chunk of tokens. `sums`, (slices, 2, panels of 16 columns,
// tokens of the band, 16), holds Σ exp(l - shift) · slope · W[v] of the blocks so far, and that of
// the recent ones, kept apart because fp32 would lose digits over a vocabulary's worth of additions;
// it is null without a gradient.
struct Work {
  const float* hidden;
  const Weight& weight;
  const float* bias;
  const int64_t* targets;
  float scale, softcap;
  int64_t tokens, panels;
  Seen* seen;
  float* sums;

  Seen* seen_by(int64_t slice) const { return seen + slice * tokens; }
  // of a band that begins at token `from`
  float* sums_of(int64_t slice, int64_t from) const {
    return sums + (slice * tokens + from) * 2 * panels * PANEL;
  }
};

// cap · tanh(x / cap), within a few ulp: an odd polynomial near zero (Cephes), exponentials beyond.
RANGO_INLINE Vec soft_capped(Vec x, float cap) {
  x = x * broadcast(1.0f / cap);
  const Vec square = x * x;
  Vec p = broadcast(-5.70498872745e-3f);
  p = fma(p, square, broadcast(2.06390887954e-2f));
  p = fma(p, square, broadcast(-5.37397155531e-2f));
  p = fma(p, square, broadcast(1.33314422036e-1f));
  p = fma(p, square, broadcast(-3.33332819422e-1f));
  const Vec near = fma(p * square, x, x);
  const Vec magnitude = max(x, Vec{} - x);
  const Vec one = broadcast(1.0f);
  const Vec far = one - (one + one) / (exp(magnitude + magnitude) + one);
  const Vec signed_far = x < Vec{} ? Vec{} - far : far;
  return (magnitude < broadcast(0.625f) ? near : signed_far) * broadcast(cap);
}

float slope_at(float logit, float cap) {
  const float share = cap ? logit / cap : 0.0f;
  return 1.0f - share * share;
}

// Products (BLOCK wide) of one token become exp(l - shift) · slope, or l alone where no gradient is
// wanted; `row` is padded to whole vectors. `token_sums` are the token's lines of the sums, `apart`
// floats apart.
RANGO_INLINE void absorb(const Work& work, float* row, int64_t first, int64_t width, int64_t target,
                         Seen& seen, float* token_sums, int64_t apart, bool begun) {
  const int64_t whole = (width + WIDTH - 1) / WIDTH * WIDTH;
  const float cap = work.softcap;
  if (work.scale != 1.0f || cap) {
    const Vec scale = broadcast(work.scale);
    for (int64_t j = 0; j < whole; j += WIDTH) {
      Vec l = load(row + j) * scale;
      if (cap) l = soft_capped(l, cap);
      store(row + j, l);
    }
  }
  for (int64_t j = width; j < whole; j++) row[j] = -INFINITY;

  Vec tops[2] = {broadcast(-INFINITY), broadcast(-INFINITY)};
  int64_t j = 0;
  for (; j + 2 * WIDTH <= whole; j += 2 * WIDTH) {
    tops[0] = max(load(row + j), tops[0]);
    tops[1] = max(load(row + j + WIDTH), tops[1]);
  }
  if (j < whole) tops[0] = max(load(row + j), tops[0]);
  const float top = largest(max(tops[0], tops[1]));

  if (top > seen.best) {
    int64_t at = 0;
    while (row[at] != top) at++;
    seen.best = top;
    seen.best_at = first + at;
  }
  if (target >= first && target < first + width) {
    seen.target = row[target - first];
    seen.slope = slope_at(seen.target, cap);
  }
  if (!begun) {
    seen.shift = top > -3e38f ? top : -3e38f;
  } else if (top > seen.shift + SLACK) {
    const double factor = ::exp(static_cast<double>(seen.shift) - top);
    seen.sum *= factor;
    seen.shift = top;
    if (token_sums) {
      const Vec f = broadcast(static_cast<float>(factor));
      for (int64_t p = 0; p < 2 * work.panels; p++)
        for (int k = 0; k < PANEL; k += WIDTH) {
          float* line = token_sums + p * apart + k;
          store(line, load(line) * f);
        }
    }
  }

  const Vec shift = broadcast(seen.shift);
  const Vec inverse = broadcast(cap ? 1.0f / cap : 0.0f);
  Vec total[2] = {};
  for (j = 0; j < whole; j += WIDTH) {
    const Vec l = load(row + j), e = exp(l - shift);
    total[j / WIDTH & 1] += e;
    if (!token_sums) continue;
    const Vec share = l * inverse;
    store(row + j, cap ? e * (broadcast(1.0f) - share * share) : e);
  }
  // the padding has an infinite share of no exponential
  if (cap && token_sums)
    for (j = width; j < whole; j++) row[j] = 0.0f;
  seen.sum += sum(total[0] + total[1]);
}

// The tokens [from, to) and the rows [begin, end) of the weight.
void read_slice(const Work& work, int64_t slice, int64_t from, int64_t to, int64_t begin,
                int64_t end) {
  const Weight& w = work.weight;
  const int64_t tokens = to - from, depth = w.columns, apart = tokens * PANEL;
  const bool decoded = w.kind != Kind::fp32;
  float* logits = static_cast<float*>(
      scratch(2, (tokens * BLOCK + DEPTH * PANEL + (decoded ? BLOCK * depth : 0)) * sizeof(float)));
  float* panel = logits + tokens * BLOCK;
  float* unpacked = panel + DEPTH * PANEL;
  const float* hidden = work.hidden + from * depth;
  Seen* seen = work.seen_by(slice) + from;
  float* sums = work.sums ? work.sums_of(slice, from) : nullptr;
  float* recent = sums ? sums + work.panels * apart : nullptr;
  int64_t gathered = 0;

  for (int64_t t = 0; t < tokens; t++) seen[t] = {0.0, -3e38f, -INFINITY, begin, -INFINITY, 0.0f};
  for (int64_t v = begin; v < end; v += BLOCK) {
    const int64_t width = smaller(BLOCK, end - v);
    const float* rows = unpacked;
    int64_t stride = depth;
    if (decoded) {
      for (int64_t j = 0; j < width; j++) decode(w, v + j, 0, depth, unpacked + j * depth);
    } else {
      rows = static_cast<const float*>(w.data) + v * w.stride;
      stride = w.stride;
    }

    for (int64_t k = 0; k < depth; k += DEPTH)
      for (int64_t first = 0; first < width; first += PANEL) {
        const int64_t lines = smaller(DEPTH, depth - k);
        const int columns = static_cast<int>(smaller(PANEL, width - first));
        pack_rows(rows + first * stride + k, stride, lines, columns, panel);
        const Start start = k ? Start{logits + first, BLOCK}
                              : Start{work.bias ? work.bias + v + first : nullptr, 0};
        multiply_panel(tokens, lines, hidden + k, depth, 1, panel, logits + first, BLOCK, columns,
                       start);
      }

    const bool begun = v > begin;
    for (int64_t t = 0; t < tokens; t++)
      absorb(work, logits + t * BLOCK, v, width, work.targets[from + t], seen[t],
             sums ? sums + t * PANEL : nullptr, apart, begun);

    if (!sums) continue;
    const bool alone = gathered % RECENT == 0;
    for (int64_t p = 0; p < work.panels; p++) {
      const int64_t n = p * PANEL;
      pack_columns(rows + n, stride, width, static_cast<int>(smaller(PANEL, depth - n)), panel);
      float* out = recent + p * apart;
      multiply_panel(tokens, width, logits, BLOCK, 1, panel, out, PANEL, PANEL,
                     Start{alone ? nullptr : out, PANEL});
    }
    if (++gathered % RECENT && v + BLOCK < end) continue;
    for (int64_t i = 0; i < work.panels * apart; i += WIDTH)
      store(sums + i, gathered > RECENT ? load(sums + i) + load(recent + i) : load(recent + i));
  }
}

// One token's results from those of the slices, in their order.
void finish(const Work& work, int64_t slices, int64_t t, int64_t from, int64_t to, float& loss,
            bool& correct, float* gradient) {
  float shift = -3e38f, best = -INFINITY, target = -INFINITY, slope = 0.0f;
  int64_t best_at = 0;
  for (int64_t s = 0; s < slices; s++) {
    const Seen& seen = work.seen_by(s)[t];
    if (seen.shift > shift) shift = seen.shift;
    if (seen.best > best) best = seen.best, best_at = seen.best_at;
    if (seen.slope || seen.target > target) target = seen.target, slope = seen.slope;
  }
  double sum = 0.0;
  for (int64_t s = 0; s < slices; s++) {
    const Seen& seen = work.seen_by(s)[t];
    sum += seen.sum * ::exp(static_cast<double>(seen.shift) - shift);
  }
  loss = static_cast<float>(::log(sum) + (static_cast<double>(shift) - target));
  correct = best_at == work.targets[t];
  if (!gradient) return;

  const int64_t depth = work.weight.columns, apart = (to - from) * PANEL;
  float* unpacked = static_cast<float*>(scratch(2, depth * sizeof(float)));
  const float* row = decode(work.weight, work.targets[t], 0, depth, unpacked);
  for (int64_t s = 0; s < slices; s++) {
    const double share = ::exp(static_cast<double>(work.seen_by(s)[t].shift) - shift) / sum;
    const float factor = static_cast<float>(share);
    const float* line = work.sums_of(s, from) + (t - from) * PANEL;
    for (int64_t n = 0; n < depth; n += PANEL, line += apart)
      for (int64_t k = 0; k < smaller(PANEL, depth - n); k++)
        gradient[n + k] = (s ? gradient[n + k] : 0.0f) + factor * line[k];
  }
  for (int64_t n = 0; n < depth; n++) gradient[n] = work.scale * (gradient[n] - slope * row[n]);
}

}  // namespace

void linear_cross_entropy(const float* hidden, int64_t tokens, const Weight& weight,
                          const float* bias, const int64_t* targets, float scale, float softcap,
                          float* losses, bool* correct, float* gradient, int threads) {
  const int64_t blocks = (weight.rows + BLOCK - 1) / BLOCK;
  const int64_t slices = smaller(smaller(threads, SLICES), blocks);
  const int64_t panels = (weight.columns + PANEL - 1) / PANEL;
  const int64_t fitting = gradient ? SUMS / (slices * 2 * panels * PANEL) : CHUNK;
  const int64_t sharing = threads / slices > 1 ? threads / slices : 1;  // a slice
  const int64_t fewest = smaller(CHUNK, BAND * sharing);
  const int64_t chunk = fitting < fewest ? fewest : smaller(CHUNK, fitting);
  const int64_t chunks = (tokens + chunk - 1) / chunk;
  for (int64_t c = 0; c < chunks; c++) {
    const int64_t first = tokens * c / chunks, count = tokens * (c + 1) / chunks - first;
    const int64_t most = smaller(threads / slices, (count + BAND - 1) / BAND);
    const int64_t bands = most > 1 ? most : 1;
    const int64_t floats = gradient ? slices * count * 2 * panels * PANEL : 0;
    float* sums = static_cast<float*>(
        scratch(1, floats * sizeof(float) + slices * count * sizeof(Seen)));
    const Work work{hidden + first * weight.columns,
                    weight,
                    bias,
                    targets + first,
                    scale,
                    softcap,
                    count,
                    panels,
                    reinterpret_cast<Seen*>(sums + floats),
                    gradient ? sums : nullptr};

    auto slice = [&](int64_t task) {
      const int64_t s = task % slices, b = task / slices;
      read_slice(work, s, count * b / bands, count * (b + 1) / bands, blocks * s / slices * BLOCK,
                 smaller(blocks * (s + 1) / slices * BLOCK, weight.rows));
    };
    by_turns(slices * bands, threads, slice);

    auto merge = [&](int64_t begin, int64_t end) {
      int64_t b = 0;
      for (int64_t t = begin; t < end; t++) {
        while (t >= count * (b + 1) / bands) b++;
        finish(work, slices, t, count * b / bands, count * (b + 1) / bands, losses[first + t],
               correct[first + t], gradient ? gradient + (first + t) * weight.columns : nullptr);
      }
    };
    in_pieces(count, 16, threads, merge);
  }
}

}  // namespace rango::RANGO_ISA
