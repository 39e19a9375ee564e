#include "bind.h"

#define RANGO_HEADER "quantize.h"
#include "each_isa.h"

namespace rango {

void bind_quantize(nb::module_& module) {
  module.def(
      "quantize_nf4",
      [](Address from, int kind, int64_t count, Address packed, Address absmax, int threads) {
        return RANGO_KERNEL(quantize_nf4)(at<void>(from), static_cast<Kind>(kind), count,
                                          at<uint8_t>(packed), at<float>(absmax), threads);
      },
      Unlocked());
  module.def(
      "nest_constants",
      [](Address absmax, int64_t count, float offset, int64_t block, Address nearest,
         Address codes, Address nested_absmax, int threads) {
        RANGO_KERNEL(nest_constants)
        (at<float>(absmax), count, offset, block, at<uint8_t>(nearest), at<uint8_t>(codes),
         at<float>(nested_absmax), threads);
      },
      Unlocked());
  module.def(
      "quantize_int8",
      [](Address from, int kind, int64_t rows, int64_t columns, Address codes, Address scales,
         int threads) {
        return RANGO_KERNEL(quantize_int8)(at<void>(from), static_cast<Kind>(kind), rows, columns,
                                           at<int8_t>(codes), at<float>(scales), threads);
      },
      Unlocked());
  module.def(
      "dequantize",
      [](const Weight& weight, int kind, Address to, int threads) {
        RANGO_KERNEL(dequantize)(weight, static_cast<Kind>(kind), at<void>(to), threads);
      },
      Unlocked());
}

}  // namespace rango
