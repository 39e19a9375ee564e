// A frozen weight (rows, columns) as it lies in memory; see decode.h for reading it.
#pragma once

#include <cstdint>

namespace rango {

enum class Kind : int { fp32 = 0, bf16 = 1, fp16 = 2, int8 = 3, nf4 = 4 };

// Row-major. Which of the pointers below `data` count depends on the kind.
struct Weight {
  Kind kind = Kind::fp32;
  const void* data = nullptr;
  int64_t rows = 0, columns = 0;
  int64_t stride = 0;  // elements between rows; NF4 and int8 are always contiguous

  const float* scales = nullptr;  // int8: the absmax of each row

  // NF4 (numerics/nf4.py): two weights a byte, the first in the high nibble
  const float* code = nullptr;             // [16]
  int64_t block = 64;                      // weights that share a constant; even
  const float* absmax = nullptr;           // the constants, or null when they are nested:
  const uint8_t* absmax_codes = nullptr;   // constant = map[code] · nested[block / nest] + offset
  const float* nested_absmax = nullptr;
  const float* nested_code = nullptr;  // [256]
  int64_t nested_block = 256;
  float offset = 0.0f;
};

}  // namespace rango
