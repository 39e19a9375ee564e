#include "lowrank_types.h"

#include "parallel.h"
#include "simd.h"

#include "lowrank.h"

namespace rango::RANGO_ISA {
namespace {

constexpr int LINES = 4;            // of A, read side by side
constexpr int CHAINS = 2;           // of sums for each
constexpr int64_t AHEAD = 512;      // floats that the cache is asked for in advance
constexpr int64_t WORTH = 1 << 14;  // floats of A that a thread is worth waking for

// to[j] = scale · x · A[j] for `count` ≤ LINES lines of A.
template <int N>
RANGO_INLINE void dots(const float* x, const float* A, int64_t depth, float scale, float* to) {
  constexpr int64_t STEP = CHAINS * WIDTH;
  Vec sums[N][CHAINS] = {};
  int64_t k = 0;
  for (; k + STEP <= depth; k += STEP) {
    Vec values[CHAINS];
#pragma GCC unroll 2
    for (int c = 0; c < CHAINS; c++) values[c] = load(x + k + c * WIDTH);
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) {
      const float* line = A + j * depth + k;
      __builtin_prefetch(line + AHEAD);
#pragma GCC unroll 2
      for (int c = 0; c < CHAINS; c++)
        sums[j][c] = fma(load(line + c * WIDTH), values[c], sums[j][c]);
    }
  }
  for (; k < depth; k += WIDTH) {
    const int rest = static_cast<int>(depth - k < WIDTH ? depth - k : WIDTH);
    for (int j = 0; j < N; j++)
      sums[j][0] =
          fma(load_part(A + j * depth + k, rest), load_part(x + k, rest), sums[j][0]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < N; j++) to[j] = scale * sum(sums[j][0] + sums[j][1]);
}

void narrow_side(const NarrowSide& side) {
  const int64_t depth = side.depth;
  int64_t j = 0;
  for (; j + LINES <= side.rank; j += LINES)
    for (int64_t i = 0; i < side.rows; i++)
      dots<LINES>(side.x + i * depth, side.A + j * depth, depth, side.scale,
                  side.h + i * side.rank + j);
  for (; j < side.rank; j++)
    for (int64_t i = 0; i < side.rows; i++)
      dots<1>(side.x + i * depth, side.A + j * depth, depth, side.scale,
              side.h + i * side.rank + j);
}

}  // namespace

void narrow_sides(const NarrowSide* sides, int64_t count, int threads) {
  int64_t floats = 0;
  for (int64_t i = 0; i < count; i++) floats += sides[i].rank * sides[i].depth;
  const int64_t useful = floats / WORTH + 1;
  auto task = [&](int64_t index) { narrow_side(sides[index]); };
  by_turns(count, useful < threads ? static_cast<int>(useful) : threads, task);
}

}  // namespace rango::RANGO_ISA
