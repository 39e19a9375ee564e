// AdamW over the rows of tables; numerics/adamw.py is the plain statement.
// (No include guard: see each_isa.h.)
#include <cstdint>

namespace rango::RANGO_ISA {

// One step, in place. Each table is `rows` rows of n floats, *_row floats apart. bias1, bias2
// (rows,): 1 - βᵗ. rates: learning rates, rates_row doubles between rows (0: one line for all) and
// rates_column between elements (0 or 1).
void adamw(float* parameters, int64_t parameters_row, const float* gradients, int64_t gradients_row,
           float* exp_avg, int64_t exp_avg_row, float* exp_avg_sq, int64_t exp_avg_sq_row,
           int64_t rows, int64_t n, const double* bias1, const double* bias2, const double* rates,
           int64_t rates_row, int64_t rates_column, double beta1, double beta2, double eps,
           double weight_decay, int threads);

// The Euclidean norm of each row, the same for any number of threads.
void row_norms(float* norms, const float* table, int64_t table_row, int64_t rows, int64_t n,
               int threads);

}  // namespace rango::RANGO_ISA
