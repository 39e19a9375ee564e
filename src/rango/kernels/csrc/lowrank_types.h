#pragma once

#include <cstdint>

namespace rango {

// h (rows, rank) = scale · x · Aᵀ for x (rows, depth) and A (rank, depth), all contiguous.
struct NarrowSide {
  const float *x, *A;
  float* h;
  int64_t rows, rank, depth;
  float scale;
};

}  // namespace rango
