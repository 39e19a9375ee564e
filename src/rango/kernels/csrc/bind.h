// What the binding files share: tensors arrive as addresses, already checked in Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>

#include "isa.h"

namespace nb = nanobind;

namespace rango {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Every kernel runs without the interpreter's lock.
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

void bind_isa(nb::module_& module);
void bind_attention(nb::module_& module);
void bind_cross_entropy(nb::module_& module);
void bind_decoding(nb::module_& module);
void bind_products(nb::module_& module);
void bind_elementwise(nb::module_& module);
void bind_quantize(nb::module_& module);

}  // namespace rango
