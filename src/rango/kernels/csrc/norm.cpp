#include "elementwise.h"
#include "parallel.h"

#include "norm.h"

namespace rango::RANGO_ISA {
namespace {

float reciprocal_root(float x) { return 1.0f / __builtin_sqrtf(x); }

float rms_scale(const float* x, int64_t n, float eps) {
  const double squares = total(n, [=](Vec sum, int64_t i, auto lanes) {
    const Vec v = lanes.load(x + i);
    return fma(v, v, sum);
  });
  return reciprocal_root(static_cast<float>(squares / n) + eps);
}

struct Moments {
  float mean, rstd;
};

Moments moments(const float* x, int64_t n, float eps) {
  const double sum =
      total(n, [=](Vec sum, int64_t i, auto lanes) { return sum + lanes.load(x + i); });
  const float mean = static_cast<float>(sum / n);
  const Vec centre = broadcast(mean);
  const double squares = total(n, [=](Vec sum, int64_t i, auto lanes) {
    const Vec v = lanes.load(x + i) - centre;
    return fma(v, v, sum);
  });
  return {mean, reciprocal_root(static_cast<float>(squares / n) + eps)};
}

}  // namespace

void rms_norm(float* y, const float* x, const float* weight, int64_t rows, int64_t n, float eps,
              float offset, int threads) {
  const Vec shift = broadcast(offset);
  auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* from = x + row * n;
      float* to = y + row * n;
      const Vec rstd = broadcast(rms_scale(from, n, eps));
      each(n, [=](int64_t i, auto lanes) {
        lanes.store(to + i, lanes.load(from + i) * rstd * (shift + lanes.load(weight + i)));
      });
    }
  };
  in_pieces(rows, rows_a_thread(n), threads, piece);
}

void rms_norm_backward(float* dx, const float* grad, const float* x, const float* weight,
                       int64_t rows, int64_t n, float eps, float offset, bool add, int threads) {
  const Vec shift = broadcast(offset);
  auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float *g = grad + row * n, *from = x + row * n;
      float* to = dx + row * n;
      const double along = total(n, [=](Vec sum, int64_t i, auto lanes) {
        return fma(lanes.load(g + i) * (shift + lanes.load(weight + i)), lanes.load(from + i), sum);
      });
      const float scale = rms_scale(from, n, eps);
      // in double: the cube of the scale of a large row would not fit
      const double cube = static_cast<double>(scale) * scale * scale;
      const Vec rstd = broadcast(scale), back = broadcast(static_cast<float>(-cube * along / n));
      each(n, [=](int64_t i, auto lanes) {
        const Vec scaled = lanes.load(g + i) * (shift + lanes.load(weight + i));
        const Vec d = fma(lanes.load(from + i), back, scaled * rstd);
        lanes.store(to + i, add ? lanes.load(to + i) + d : d);
      });
    }
  };
  in_pieces(rows, rows_a_thread(n), threads, piece);
}

void layer_norm(float* y, const float* x, const float* weight, const float* bias, int64_t rows,
                int64_t n, float eps, int threads) {
  auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* from = x + row * n;
      float* to = y + row * n;
      const Moments of = moments(from, n, eps);
      const Vec mean = broadcast(of.mean), rstd = broadcast(of.rstd);
      each(n, [=](int64_t i, auto lanes) {
        Vec v = (lanes.load(from + i) - mean) * rstd;
        if (weight) v = v * lanes.load(weight + i);
        if (bias) v = v + lanes.load(bias + i);
        lanes.store(to + i, v);
      });
    }
  };
  in_pieces(rows, rows_a_thread(n), threads, piece);
}

void layer_norm_backward(float* dx, const float* grad, const float* x, const float* weight,
                         int64_t rows, int64_t n, float eps, bool add, int threads) {
  auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float *g = grad + row * n, *from = x + row * n;
      float* to = dx + row * n;
      const Moments of = moments(from, n, eps);
      const Vec mean = broadcast(of.mean), rstd = broadcast(of.rstd);
      const auto scaled = [=](int64_t i, auto lanes) {
        const Vec v = lanes.load(g + i);
        return weight ? v * lanes.load(weight + i) : v;
      };
      const double sum =
          total(n, [=](Vec sum, int64_t i, auto lanes) { return sum + scaled(i, lanes); });
      const double along = total(n, [=](Vec sum, int64_t i, auto lanes) {
        return fma(scaled(i, lanes), (lanes.load(from + i) - mean) * rstd, sum);
      });
      const Vec offset = broadcast(static_cast<float>(sum / n));
      const Vec back = broadcast(static_cast<float>(along / n));
      each(n, [=](int64_t i, auto lanes) {
        const Vec unit = (lanes.load(from + i) - mean) * rstd;
        const Vec d = rstd * (scaled(i, lanes) - offset - unit * back);
        lanes.store(to + i, add ? lanes.load(to + i) + d : d);
      });
    }
  };
  in_pieces(rows, rows_a_thread(n), threads, piece);
}

}  // namespace rango::RANGO_ISA
