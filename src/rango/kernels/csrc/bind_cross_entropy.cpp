#include "bind.h"

#define RANGO_HEADER "cross_entropy.h"
#include "each_isa.h"

namespace rango {

void bind_cross_entropy(nb::module_& module) {
  module.def(
      "linear_cross_entropy",
      [](Address hidden, int64_t tokens, const Weight& weight, Address bias, Address targets,
         float scale, float softcap, Address losses, Address correct, Address gradient,
         int threads) {
        RANGO_KERNEL(linear_cross_entropy)
        (at<float>(hidden), tokens, weight, at<float>(bias), at<int64_t>(targets), scale, softcap,
         at<float>(losses), at<bool>(correct), at<float>(gradient), threads);
      },
      Unlocked());
}

}  // namespace rango
