#include "elementwise.h"
#include "parallel.h"

#include "rotary.h"

namespace rango::RANGO_ISA {

void rotate(float* y, int64_t y_row, const float* x, int64_t x_row, const float* cos,
            const float* sin, int64_t tokens, int64_t heads, int64_t dim, int64_t rotated,
            bool inverse, int threads) {
  const int64_t half = rotated / 2;
  auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; token++) {
      const float *c = cos + token * rotated, *s = sin + token * rotated;
      for (int64_t head = 0; head < heads; head++) {
        const float* from = x + token * x_row + head * dim;
        float* to = y + token * y_row + head * dim;
        each(half, [=](int64_t i, auto lanes) {
          const Vec first = lanes.load(from + i), second = lanes.load(from + half + i);
          const Vec s1 = lanes.load(s + i), s2 = lanes.load(s + half + i);
          const Vec a = first * lanes.load(c + i), b = second * lanes.load(c + half + i);
          lanes.store(to + i, inverse ? a + second * s2 : a - second * s1);
          lanes.store(to + half + i, inverse ? b - first * s1 : b + first * s2);
        });
        if (to != from && rotated < dim)
          memcpy(to + rotated, from + rotated, (dim - rotated) * sizeof(float));
      }
    }
  };
  in_pieces(tokens, rows_a_thread(heads * dim), threads, piece);
}

}  // namespace rango::RANGO_ISA
