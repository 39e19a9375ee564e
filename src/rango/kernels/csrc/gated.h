// Activations, plain and gated; numerics/gated.py is the plain statement.
// (No include guard: see each_isa.h.)
#include <cstdint>

namespace rango::RANGO_ISA {

// Everything is `rows` rows of n floats, *_row floats apart. activation: 0 silu, 1 gelu, 2 gelu
// with tanh, 3 relu. Any output may be any input.

// act(gate)·up, or act(gate) if up is null.
void gated(float* y, int64_t y_row, const float* gate, int64_t gate_row, const float* up,
           int64_t up_row, int64_t rows, int64_t n, int activation, int threads);

// d_up is not written if up is null: then d_gate = grad·act'(gate).
void gated_backward(float* d_gate, int64_t d_gate_row, float* d_up, int64_t d_up_row,
                    const float* grad, int64_t grad_row, const float* gate, int64_t gate_row,
                    const float* up, int64_t up_row, int64_t rows, int64_t n, int activation,
                    int threads);

}  // namespace rango::RANGO_ISA
