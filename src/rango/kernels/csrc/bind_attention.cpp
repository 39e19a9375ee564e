#include "bind.h"

#include <stdexcept>
#include <string>

#define RANGO_HEADER "attention.h"
#include "each_isa.h"

namespace rango {
namespace {

// Rising from 0 to the tokens there are, no sequence across two rows: a bad bound would be a bad
// address.
void check(const char* name, const int64_t* bounds, int64_t sequences, int64_t tokens,
           int64_t row) {
  bool right = bounds[0] == 0 && bounds[sequences] == tokens;
  for (int64_t i = 0; right && i < sequences; i++)
    right = bounds[i] == bounds[i + 1] ||
            (bounds[i] < bounds[i + 1] && bounds[i + 1] <= tokens &&
             bounds[i] / row == (bounds[i + 1] - 1) / row);
  if (right) return;
  std::string found;
  for (int64_t i = 0; i <= sequences && i < 16; i++) found += " " + std::to_string(bounds[i]);
  throw std::invalid_argument("attention: expected " + std::string(name) + " from 0 up to " +
                              std::to_string(tokens) + " in rows of " + std::to_string(row) +
                              " tokens, found" + found + (sequences > 15 ? " ..." : ""));
}

void check(const Attention& call, int64_t row, int64_t keys, int64_t key_row) {
  if (call.sequences < 0) throw std::invalid_argument("attention: expected bounds, found none");
  check("bounds", call.bounds, call.sequences, call.tokens, row);
  check(call.bounds == call.key_bounds ? "bounds" : "key_bounds", call.key_bounds, call.sequences,
        keys, key_row);
}

}  // namespace

void bind_attention(nb::module_& module) {
  nb::class_<Heads>(module, "Heads")
      .def("__init__", [](Heads* self, Address data, int64_t token, int64_t head, int64_t batch,
                          int64_t length) {
        new (self) Heads{at<float>(data), token, head, batch, length > 0 ? length : 1};
      });
  nb::class_<Attention>(module, "Attention")
      .def("__init__",
           [](Attention* self, int64_t heads, int64_t kv_heads, int64_t dim, int64_t tokens,
              int64_t keys, int64_t row, int64_t key_row, int64_t sequences, Address bounds,
              Address key_bounds, float scale, int64_t before, int64_t after, float softcap) {
             new (self) Attention{heads,         kv_heads,        dim,   tokens,
                                  sequences,     at<int64_t>(bounds), at<int64_t>(key_bounds),
                                  scale,         before,          after, softcap};
             check(*self, row > 0 ? row : 1, keys, key_row > 0 ? key_row : 1);
           });
  module.def(
      "attention",
      [](const Attention& call, const Heads& q, const Heads& k, const Heads& v, const Heads& out,
         Address lse, int threads) {
        RANGO_KERNEL(attention)(call, q, k, v, out, at<float>(lse), threads);
      },
      Unlocked());
  module.def(
      "attention_backward",
      [](const Attention& call, const Heads& grad, const Heads& q, const Heads& k, const Heads& v,
         const Heads& out, Address lse, const Heads& dq, const Heads& dk, const Heads& dv,
         int threads) {
        RANGO_KERNEL(attention_backward)
        (call, grad, q, k, v, out, at<float>(lse), dq, dk, dv, threads);
      },
      Unlocked());
}

}  // namespace rango
