// Rotary embedding; numerics/rotary.py is the plain statement, and the bits are the same.
// (No include guard: see each_isa.h.)
#include <cstdint>

namespace rango::RANGO_ISA {

// x, y: `tokens` rows of `heads` heads of `dim`, x_row and y_row floats between rows; y may be x.
// cos, sin (tokens, rotated).
void rotate(float* y, int64_t y_row, const float* x, int64_t x_row, const float* cos,
            const float* sin, int64_t tokens, int64_t heads, int64_t dim, int64_t rotated,
            bool inverse, int threads);

}  // namespace rango::RANGO_ISA
