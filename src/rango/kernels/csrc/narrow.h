// Sums of products with few rows, as in decoding: every byte of a weight is read once.
// (No include guard: see each_isa.h.)
#include "products_types.h"

namespace rango::RANGO_ISA {

// As sum_products, for at most 16 rows, if every term is transposed; else false, and nothing done.
// A row's result depends neither on the other rows nor on the number of threads.
bool narrow_products(float* c, int64_t c_row, int64_t rows, int64_t columns, const Term* terms,
                     int count, const float* start, int64_t start_row, int threads);

}  // namespace rango::RANGO_ISA
