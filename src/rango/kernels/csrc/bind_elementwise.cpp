#include "bind.h"

#define RANGO_HEADER "norm.h"
#include "each_isa.h"
#define RANGO_HEADER "rotary.h"
#include "each_isa.h"
#define RANGO_HEADER "gated.h"
#include "each_isa.h"
#define RANGO_HEADER "adamw.h"
#include "each_isa.h"

namespace rango {
namespace {

// Rows of floats: the address of the first, and floats between rows.
struct Rows {
  float* data;
  int64_t row;
};

void bind_norms(nb::module_& module) {
  module.def(
      "rms_norm",
      [](Address y, Address x, Address weight, int64_t rows, int64_t n, double eps, double offset,
         int threads) {
        RANGO_KERNEL(rms_norm)
        (at<float>(y), at<float>(x), at<float>(weight), rows, n, static_cast<float>(eps),
         static_cast<float>(offset), threads);
      },
      Unlocked());
  module.def(
      "rms_norm_backward",
      [](Address dx, Address grad, Address x, Address weight, int64_t rows, int64_t n, double eps,
         double offset, bool add, int threads) {
        RANGO_KERNEL(rms_norm_backward)
        (at<float>(dx), at<float>(grad), at<float>(x), at<float>(weight), rows, n,
         static_cast<float>(eps), static_cast<float>(offset), add, threads);
      },
      Unlocked());
  module.def(
      "layer_norm",
      [](Address y, Address x, Address weight, Address bias, int64_t rows, int64_t n, double eps,
         int threads) {
        RANGO_KERNEL(layer_norm)
        (at<float>(y), at<float>(x), at<float>(weight), at<float>(bias), rows, n,
         static_cast<float>(eps), threads);
      },
      Unlocked());
  module.def(
      "layer_norm_backward",
      [](Address dx, Address grad, Address x, Address weight, int64_t rows, int64_t n, double eps,
         bool add, int threads) {
        RANGO_KERNEL(layer_norm_backward)
        (at<float>(dx), at<float>(grad), at<float>(x), at<float>(weight), rows, n,
         static_cast<float>(eps), add, threads);
      },
      Unlocked());
}

void bind_rotary(nb::module_& module) {
  module.def(
      "rotate",
      [](const Rows& y, const Rows& x, Address cos, Address sin, int64_t tokens, int64_t heads,
         int64_t dim, int64_t rotated, bool inverse, int threads) {
        RANGO_KERNEL(rotate)
        (y.data, y.row, x.data, x.row, at<float>(cos), at<float>(sin), tokens, heads, dim, rotated,
         inverse, threads);
      },
      Unlocked());
}

void bind_gated(nb::module_& module) {
  module.def(
      "gated",
      [](const Rows& y, const Rows& gate, const Rows& up, int64_t rows, int64_t n, int activation,
         int threads) {
        RANGO_KERNEL(gated)
        (y.data, y.row, gate.data, gate.row, up.data, up.row, rows, n, activation, threads);
      },
      Unlocked());
  module.def(
      "gated_backward",
      [](const Rows& d_gate, const Rows& d_up, const Rows& grad, const Rows& gate, const Rows& up,
         int64_t rows, int64_t n, int activation, int threads) {
        RANGO_KERNEL(gated_backward)
        (d_gate.data, d_gate.row, d_up.data, d_up.row, grad.data, grad.row, gate.data, gate.row,
         up.data, up.row, rows, n, activation, threads);
      },
      Unlocked());
}

void bind_adamw(nb::module_& module) {
  module.def(
      "adamw",
      [](const Rows& parameters, const Rows& gradients, const Rows& exp_avg, const Rows& exp_avg_sq,
         int64_t rows, int64_t n, Address bias1, Address bias2, Address rates, int64_t rates_row,
         int64_t rates_column, double beta1, double beta2, double eps, double weight_decay,
         int threads) {
        RANGO_KERNEL(adamw)
        (parameters.data, parameters.row, gradients.data, gradients.row, exp_avg.data, exp_avg.row,
         exp_avg_sq.data, exp_avg_sq.row, rows, n, at<double>(bias1), at<double>(bias2),
         at<double>(rates), rates_row, rates_column, beta1, beta2, eps, weight_decay, threads);
      },
      Unlocked());
  module.def(
      "row_norms",
      [](Address norms, const Rows& table, int64_t rows, int64_t n, int threads) {
        RANGO_KERNEL(row_norms)(at<float>(norms), table.data, table.row, rows, n, threads);
      },
      Unlocked());
}

}  // namespace

void bind_elementwise(nb::module_& module) {
  nb::class_<Rows>(module, "Rows").def("__init__", [](Rows* self, Address data, int64_t row) {
    new (self) Rows{at<float>(data), row};
  });
  bind_norms(module);
  bind_rotary(module);
  bind_gated(module);
  bind_adamw(module);
}

}  // namespace rango
