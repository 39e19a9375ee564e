// Attention over packed sequences; numerics/attention.py is the plain statement.
// (No include guard: see each_isa.h.)
#include "attention_types.h"

namespace rango::RANGO_ISA {

// out = softmax(cap(scale · q · kᵀ)) · v, and lse (heads, tokens).
void attention(const Attention& call, Heads q, Heads k, Heads v, Heads out, float* lse,
               int threads);

// The gradients of q, k and v from that of out. dq may overlap grad, q or out.
void attention_backward(const Attention& call, Heads grad, Heads q, Heads k, Heads v, Heads out,
                        const float* lse, Heads dq, Heads dk, Heads dv, int threads);

}  // namespace rango::RANGO_ISA
