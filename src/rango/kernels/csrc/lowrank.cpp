#include "lowrank_types.h"

#include "parallel.h"
#include "simd.h"

#include "lowrank.h"

namespace rango::RANGO_ISA {
namespace {

constexpr int CHAINS = 4;           // of sums for one product
constexpr int64_t AHEAD = 512;      // floats that the cache is asked for in advance
constexpr int64_t PIECE = 1 << 13;  // floats of A that are worth a turn
constexpr int64_t WORTH = 1 << 14;  // floats of A that a thread is worth waking for

// x · line over `depth` floats. One line of A after the other, so that all of it is one stream.
RANGO_INLINE float dot(const float* x, const float* line, int64_t depth) {
  constexpr int64_t STEP = CHAINS * WIDTH;
  Vec sums[CHAINS] = {};
  int64_t k = 0;
  for (; k + STEP <= depth; k += STEP) {
    for (int64_t at = k; at < k + STEP; at += 16) __builtin_prefetch(line + at + AHEAD);
#pragma GCC unroll 4
    for (int c = 0; c < CHAINS; c++)
      sums[c] = fma(load(line + k + c * WIDTH), load(x + k + c * WIDTH), sums[c]);
  }
  for (; k < depth; k += WIDTH) {
    const int rest = static_cast<int>(depth - k < WIDTH ? depth - k : WIDTH);
    sums[0] = rest == WIDTH ? fma(load(line + k), load(x + k), sums[0])
                            : fma(load_part(line + k, rest), load_part(x + k, rest), sums[0]);
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The lines [from, to) of A.
void narrow_side(const NarrowSide& side, int64_t from, int64_t to) {
  for (int64_t j = from; j < to; j++)
    for (int64_t i = 0; i < side.rows; i++)
      side.h[i * side.rank + j] =
          side.scale * dot(side.x + i * side.depth, side.A + j * side.depth, side.depth);
}

}  // namespace

void narrow_sides(const NarrowSide* sides, int64_t count, int threads) {
  int64_t floats = 0, lines = 0;
  for (int64_t i = 0; i < count; i++) {
    floats += sides[i].rank * sides[i].depth;
    lines += sides[i].rank;
  }
  // all lines of all sides, in even turns
  const int64_t turn = PIECE * lines / (floats + 1) + 1;
  auto task = [&](int64_t index) {
    int64_t from = index * turn, to = from + turn;
    for (int64_t i = 0; i < count && to > 0; i++) {
      const int64_t rank = sides[i].rank;
      if (from < rank) narrow_side(sides[i], from > 0 ? from : 0, to < rank ? to : rank);
      from -= rank;
      to -= rank;
    }
  };
  const int64_t useful = floats / WORTH + 1;
  by_turns((lines + turn - 1) / turn, useful < threads ? static_cast<int>(useful) : threads, task);
}

}  // namespace rango::RANGO_ISA
