// RMSNorm and LayerNorm; numerics/norm.py is the plain statement. Results do not depend on the
// number of threads. (No include guard: see each_isa.h.)
#include <cstdint>

namespace rango::RANGO_ISA {

// x, y (rows, n); y may be x.
void rms_norm(float* y, const float* x, const float* weight, int64_t rows, int64_t n, float eps,
              float offset, int threads);

// dx (rows, n), set or added to; it may be grad where it is set.
void rms_norm_backward(float* dx, const float* grad, const float* x, const float* weight,
                       int64_t rows, int64_t n, float eps, float offset, bool add, int threads);

// weight and bias may be null: 1 and 0.
void layer_norm(float* y, const float* x, const float* weight, const float* bias, int64_t rows,
                int64_t n, float eps, int threads);
void layer_norm_backward(float* dx, const float* grad, const float* x, const float* weight,
                         int64_t rows, int64_t n, float eps, bool add, int threads);

}  // namespace rango::RANGO_ISA
