#include <cstring>

#include "bind.h"

namespace rango {
namespace {
const char* const NAMES[] = {"portable", "avx2"};
}

void bind_isa(nb::module_& module) {
  module.def("widest", [] { return NAMES[static_cast<int>(widest())]; });
  module.def("in_use", [] { return NAMES[static_cast<int>(in_use())]; });
  module.def("use", [](const char* name) {
    for (int i = 0; i <= static_cast<int>(widest()); i++)
      if (!std::strcmp(name, NAMES[i])) {
        use(static_cast<Isa>(i));
        return;
      }
    throw nb::value_error(name);
  });
}

}  // namespace rango
