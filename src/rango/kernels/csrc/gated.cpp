#include "elementwise.h"
#include "functions.h"
#include "parallel.h"

#include "gated.h"

namespace rango::RANGO_ISA {
namespace {

// Each activation: its value, and its value and slope together.
struct Both {
  Vec value, slope;
};

struct Silu {
  RANGO_INLINE Vec value(Vec x) { return x / (1.0f + quick_exp(-x)); }
  RANGO_INLINE Both both(Vec x) {
    const Vec s = sigmoid(x);
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
};

struct Gelu {
  RANGO_INLINE Vec value(Vec x) { return x * normal_cdf(x); }
  RANGO_INLINE Both both(Vec x) {
    const Vec below = normal_cdf(x), density = 0.398942280f * quick_exp(-0.5f * x * x);
    return {x * below, fma(x, density, below)};
  }
};

// (1 + tanh(u))/2 = σ(2u), with 2u = x·(a + b·x²)
struct GeluTanh {
  static constexpr float A = 1.59576912f, B = 0.0713548163f;
  RANGO_INLINE Vec value(Vec x) {
    return x / (1.0f + quick_exp(-(x * fma(broadcast(B), x * x, broadcast(A)))));
  }
  RANGO_INLINE Both both(Vec x) {
    const Vec squared = x * x;
    const Vec s = sigmoid(x * fma(broadcast(B), squared, broadcast(A)));
    const Vec inner = fma(broadcast(3 * B), squared, broadcast(A));
    return {x * s, fma(x * s * (1.0f - s), inner, s)};
  }
};

struct Relu {
  RANGO_INLINE Vec value(Vec x) { return max(Vec{}, x); }  // in this order, NaN stays
  RANGO_INLINE Both both(Vec x) { return {value(x), x <= 0.0f ? Vec{} : broadcast(1.0f)}; }
};

template <class Run>
RANGO_INLINE void choose(int activation, Run run) {
  if (activation == 0) run(Silu{});
  if (activation == 1) run(Gelu{});
  if (activation == 2) run(GeluTanh{});
  if (activation == 3) run(Relu{});
}

}  // namespace

void gated(float* y, int64_t y_row, const float* gate, int64_t gate_row, const float* up,
           int64_t up_row, int64_t rows, int64_t n, int activation, int threads) {
  choose(activation, [&](auto act) {
    auto piece = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        float* to = y + row * y_row;
        const float *g = gate + row * gate_row, *u = up + row * up_row;
        if (up)
          each(n, [=](int64_t i, auto lanes) {
            lanes.store(to + i, act.value(lanes.load(g + i)) * lanes.load(u + i));
          });
        else
          each(n, [=](int64_t i, auto lanes) {
            lanes.store(to + i, act.value(lanes.load(g + i)));
          });
      }
    };
    in_pieces(rows, rows_a_thread(n), threads, piece);
  });
}

void gated_backward(float* d_gate, int64_t d_gate_row, float* d_up, int64_t d_up_row,
                    const float* grad, int64_t grad_row, const float* gate, int64_t gate_row,
                    const float* up, int64_t up_row, int64_t rows, int64_t n, int activation,
                    int threads) {
  choose(activation, [&](auto act) {
    auto piece = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        float *to_gate = d_gate + row * d_gate_row, *to_up = d_up + row * d_up_row;
        const float *d = grad + row * grad_row, *g = gate + row * gate_row, *u = up + row * up_row;
        if (up)
          each(n, [=](int64_t i, auto lanes) {
            const Vec dy = lanes.load(d + i), factor = lanes.load(u + i);
            const Both at = act.both(lanes.load(g + i));
            lanes.store(to_gate + i, dy * factor * at.slope);
            lanes.store(to_up + i, dy * at.value);
          });
        else
          each(n, [=](int64_t i, auto lanes) {
            lanes.store(to_gate + i, lanes.load(d + i) * act.both(lanes.load(g + i)).slope);
          });
      }
    };
    in_pieces(rows, rows_a_thread(n), threads, piece);
  });
}

}  // namespace rango::RANGO_ISA
