#pragma once

#include "weight.h"

namespace rango {

// a (to - from, depth) · B (depth, columns), for the rows [from, to) of the sum.
struct Term {
  const float* a;
  int64_t a_row, a_column;  // floats between rows, and between elements of a row
  int64_t depth;
  Weight b;
  bool transposed;  // B = bᵀ: b is (columns, depth); else b is (depth, columns)
  int64_t from, to;
};

}  // namespace rango
