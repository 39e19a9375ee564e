// A language model's head and its loss; numerics/cross_entropy.py is the plain statement.
// (No include guard: see each_isa.h.)
#include "weight.h"

namespace rango::RANGO_ISA {

// For each token: losses = log Σ exp(l) - l[target], correct = target is the first largest l, and
// gradient (tokens, weight.columns) = d loss / d hidden, unless it is null; l = scale · (hidden ·
// weightᵀ + bias), then softcap · tanh(l / softcap) unless softcap is 0. bias may be null.
void linear_cross_entropy(const float* hidden, int64_t tokens, const Weight& weight,
                          const float* bias, const int64_t* targets, float scale, float softcap,
                          float* losses, bool* correct, float* gradient, int threads);

}  // namespace rango::RANGO_ISA
