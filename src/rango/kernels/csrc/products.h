// Sums of matrix products over frozen weights; numerics/products.py is the plain statement.
// (No include guard: see each_isa.h.)
#include "products_types.h"

namespace rango::RANGO_ISA {

// c[from:to of each term] = start + Σ a · B, where B is the term's weight or its transpose.
void sum_products(float* c, int64_t c_row, int64_t rows, int64_t columns, const Term* terms,
                  int count, const float* start, int64_t start_row, int threads);

}  // namespace rango::RANGO_ISA
