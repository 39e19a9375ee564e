#include "isa.h"

#include <atomic>

#if defined(RANGO_HAS_AVX2)
#include <cpuid.h>
#endif

namespace rango {
namespace {
std::atomic<Isa> chosen{widest()};

#if defined(RANGO_HAS_AVX2)
// Asked of the processor itself: clang before 18 and GCC before 11 do not know the name "f16c".
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}
#endif
}  // namespace

Isa widest() {
#if defined(RANGO_HAS_AVX2)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
    return Isa::avx2;
#endif
  return Isa::portable;
}

Isa in_use() { return chosen; }

void use(Isa isa) { chosen = isa; }

}  // namespace rango
