#pragma once

#include <cstdint>

namespace rango {

// Heads of tokens: those of token t begin at data + t / length · batch + t % length · token, `head`
// floats apart; the elements of one are contiguous. Packed tokens lie in a single row.
struct Heads {
  float* data;
  int64_t token, head, batch, length;
};

// numerics/attention.py says what these mean.
struct Attention {
  int64_t heads, kv_heads, dim, tokens;  // tokens: of q
  int64_t sequences;
  const int64_t *bounds, *key_bounds;  // [sequences + 1]
  float scale;
  int64_t before, after;  // keys that a query sees before and after its own place
  float softcap;          // 0: none
};

}  // namespace rango
