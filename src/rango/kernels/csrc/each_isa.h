// Declares the kernels of RANGO_HEADER once for each instruction set they are compiled for. Such a
// header has no include guard, and declares in namespace rango::RANGO_ISA.
#define RANGO_ISA portable
#include RANGO_HEADER
#undef RANGO_ISA
#if defined(RANGO_HAS_AVX2)
#define RANGO_ISA avx2
#include RANGO_HEADER
#undef RANGO_ISA
#endif
#undef RANGO_HEADER
