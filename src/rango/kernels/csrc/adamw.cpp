#include "elementwise.h"
#include "functions.h"
#include "parallel.h"
#include "scratch.h"

#include "adamw.h"

namespace rango::RANGO_ISA {
namespace {

constexpr int64_t BLOCK = 1024;  // columns of a row that are worked through together

// What an element's learning rate makes of it: w·decay - scale·update.
struct Rates {
  float decay, scale;
};

Rates rates_of(double rate, double bias1, double weight_decay) {
  return {static_cast<float>(1 - rate * weight_decay), static_cast<float>(rate / bias1)};
}

}  // namespace

void adamw(float* parameters, int64_t parameters_row, const float* gradients, int64_t gradients_row,
           float* exp_avg, int64_t exp_avg_row, float* exp_avg_sq, int64_t exp_avg_sq_row,
           int64_t rows, int64_t n, const double* bias1, const double* bias2, const double* rates,
           int64_t rates_row, int64_t rates_column, double beta1, double beta2, double eps,
           double weight_decay, int threads) {
  const int64_t blocks = (n + BLOCK - 1) / BLOCK;
  const Vec fresh1 = broadcast(static_cast<float>(1 - beta1));
  const Vec kept1 = broadcast(static_cast<float>(beta1));
  const bool near = beta1 > 0.5;  // from the nearer end, as torch.lerp: β1 = 0 gives the gradient
  const Vec kept2 = broadcast(static_cast<float>(beta2));
  const Vec fresh2 = broadcast(static_cast<float>(1 - beta2));
  const Vec epsilon = broadcast(static_cast<float>(eps)), infinity = broadcast(INFINITY);
  const bool guarded = eps == 0;

  auto piece = [&](int64_t begin, int64_t end) {
    float decays[BLOCK], scales[BLOCK];
    for (int64_t task = begin; task < end; task++) {
      const int64_t row = task / blocks, first = task % blocks * BLOCK;
      const int64_t count = first + BLOCK < n ? BLOCK : n - first;
      float* w = parameters + row * parameters_row + first;
      const float* g = gradients + row * gradients_row + first;
      float* m = exp_avg + row * exp_avg_row + first;
      float* v = exp_avg_sq + row * exp_avg_sq_row + first;
      const double* rate = rates + row * rates_row + first * rates_column;
      const Vec root = broadcast(static_cast<float>(__builtin_sqrt(bias2[row])));

      const auto update = [=](int64_t i, auto lanes, Vec decay, Vec scale) {
        const Vec d = lanes.load(g + i), old = lanes.load(m + i);
        const Vec mean = near ? fma(fresh1, d - old, old) : fma(-kept1, d - old, d);
        const Vec square = fma(fresh2 * d, d, lanes.load(v + i) * kept2);
        lanes.store(m + i, mean);
        lanes.store(v + i, square);
        Vec divisor = square_root(square) / root + epsilon;
        if (guarded) divisor = divisor == 0.0f ? infinity : divisor;
        lanes.store(w + i, lanes.load(w + i) * decay - mean / divisor * scale);
      };
      if (rates_column) {
        for (int64_t i = 0; i < count; i++) {
          const Rates of = rates_of(rate[i], bias1[row], weight_decay);
          decays[i] = of.decay, scales[i] = of.scale;
        }
        each(count, [=, &decays, &scales](int64_t i, auto lanes) {
          update(i, lanes, lanes.load(decays + i), lanes.load(scales + i));
        });
      } else {
        const Rates of = rates_of(*rate, bias1[row], weight_decay);
        const Vec decay = broadcast(of.decay), scale = broadcast(of.scale);
        each(count, [=](int64_t i, auto lanes) { update(i, lanes, decay, scale); });
      }
    }
  };
  in_pieces(rows * blocks, GRAIN / BLOCK / 2, threads, piece);
}

void row_norms(float* norms, const float* table, int64_t table_row, int64_t rows, int64_t n,
               int threads) {
  constexpr int64_t PART = 16384;
  const int64_t parts = (n + PART - 1) / PART;
  double* squares = static_cast<double*>(scratch(1, (rows * parts + 1) * sizeof(double)));
  auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const float* from = table + task / parts * table_row + task % parts * PART;
      const int64_t left = n - task % parts * PART;
      squares[task] = total(left < PART ? left : PART, [=](Vec sum, int64_t i, auto lanes) {
        const Vec v = lanes.load(from + i);
        return fma(v, v, sum);
      });
    }
  };
  in_pieces(rows * parts, GRAIN / PART, threads, piece);
  for (int64_t row = 0; row < rows; row++) {
    double sum = 0;
    for (int64_t part = 0; part < parts; part++) sum += squares[row * parts + part];
    norms[row] = static_cast<float>(__builtin_sqrt(sum));
  }
}

}  // namespace rango::RANGO_ISA
