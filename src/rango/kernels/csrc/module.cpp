#include "bind.h"

NB_MODULE(_native, module) {
  module.doc() = "Rango's CPU kernels. Addresses come from rango.kernels, which checks them.";
  rango::bind_isa(module);
  rango::bind_attention(module);
  rango::bind_cross_entropy(module);
  rango::bind_products(module);
  rango::bind_decoding(module);
  rango::bind_elementwise(module);
  rango::bind_quantize(module);
}
