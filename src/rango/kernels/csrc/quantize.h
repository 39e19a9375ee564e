// Quantization to NF4 and int8, and back; numerics/nf4.py and numerics/int8.py are the plain
// statements, and the results are equal to theirs bit for bit.
// (No include guard: see each_isa.h.)
#include "weight.h"

namespace rango::RANGO_ISA {

// `count` weights in fp32, bf16 or fp16 -> packed [⌈count/2⌉] and absmax [⌈count/64⌉]. Returns false
// if one of them is NaN or infinite.
bool quantize_nf4(const void* from, Kind kind, int64_t count, uint8_t* packed, float* absmax,
                  int threads);

// Double quantization of `count` constants, less `offset`: codes [count] and nested_absmax, one for
// each `block` of them. `nearest` is the code of each of 65,536 even positions from -1 to 1.
void nest_constants(const float* absmax, int64_t count, float offset, int64_t block,
                    const uint8_t* nearest, uint8_t* codes, float* nested_absmax, int threads);

// (rows, columns) contiguous, in fp32, bf16 or fp16 -> codes (rows, columns) and scales [rows].
// Returns false if a weight is NaN or infinite.
bool quantize_int8(const void* from, Kind kind, int64_t rows, int64_t columns, int8_t* codes,
                   float* scales, int threads);

// An NF4 or int8 weight -> (rows, columns) contiguous, in fp32, bf16 or fp16.
void dequantize(const Weight& weight, Kind kind, void* to, int threads);

}  // namespace rango::RANGO_ISA
