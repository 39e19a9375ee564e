// The narrow side of adapters for a few tokens: many small products, read once from memory.
// (No include guard: see each_isa.h.)
#include "lowrank_types.h"

namespace rango::RANGO_ISA {

// h = scale · x · Aᵀ of each. A row's result depends neither on other rows nor on the threads.
void narrow_sides(const NarrowSide* sides, int64_t count, int threads);

}  // namespace rango::RANGO_ISA
