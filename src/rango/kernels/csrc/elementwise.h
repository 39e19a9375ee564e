// Walking over rows of floats, for kernels that do little to each: they are bound by memory.
#pragma once

#include "simd.h"

namespace rango::RANGO_ISA {

// Elements worth a thread of their own: below this, waking one costs more than it saves.
constexpr int64_t GRAIN = 32768;

// The rows that hold so many.
RANGO_INLINE int64_t rows_a_thread(int64_t n) { return n < GRAIN ? GRAIN / (n ? n : 1) : 1; }

// How a body reaches its WIDTH elements, or those that are left at the end of a row.
struct All {
  RANGO_MEMBER Vec load(const float* from) const { return RANGO_ISA::load(from); }
  RANGO_MEMBER void store(float* to, Vec v) const { RANGO_ISA::store(to, v); }
};
struct Rest {
  int count;
  RANGO_MEMBER Vec load(const float* from) const { return load_part(from, count); }
  RANGO_MEMBER void store(float* to, Vec v) const { store_part(to, v, count); }
  // v, but zero in the lanes that are not there
  RANGO_MEMBER Vec only(Vec v) const {
    float lanes[WIDTH];
    RANGO_ISA::store(lanes, v);
    return load_part(lanes, count);
  }
};

// body(i, lanes) for i = 0, WIDTH, … < n. Each element meets the same operations wherever it lies.
template <class Body>
RANGO_INLINE void each(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) body(i, All{});
  if (i < n) body(i, Rest{static_cast<int>(n - i)});
}

// Σ term over a row, where add(sum, i, lanes) returns sum + the terms of its lanes: eight chains
// over stretches of 4096 elements, these in double, always in the same order.
template <class Add>
RANGO_INLINE double total(int64_t n, Add add) {
  constexpr int CHAINS = 8;
  constexpr int64_t STRETCH = 4096;
  double result = 0;
  for (int64_t begin = 0; begin < n; begin += STRETCH) {
    const int64_t end = begin + STRETCH < n ? begin + STRETCH : n;
    Vec sums[CHAINS] = {};
    int64_t i = begin;
    for (; i + CHAINS * WIDTH <= end; i += CHAINS * WIDTH)
#pragma GCC unroll 8
      for (int k = 0; k < CHAINS; k++) sums[k] = add(sums[k], i + k * WIDTH, All{});
    for (; i + WIDTH <= end; i += WIDTH) sums[0] = add(sums[0], i, All{});
    if (i < end) {
      const Rest rest{static_cast<int>(end - i)};
      sums[1] = sums[1] + rest.only(add(Vec{}, i, rest));
    }
#pragma GCC unroll 3
    for (int half = CHAINS / 2; half; half /= 2)
#pragma GCC unroll 4
      for (int k = 0; k < half; k++) sums[k] = sums[k] + sums[k + half];
    result += sum(sums[0]);
  }
  return result;
}

}  // namespace rango::RANGO_ISA
