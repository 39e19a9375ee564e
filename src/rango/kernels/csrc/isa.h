// Which build of the kernels runs on this machine.
#pragma once

namespace rango {

enum class Isa { portable = 0, avx2 = 1 };

// The widest that both this build and the processor have.
Isa widest();

// The one in use: the widest, until `use` chooses another.
Isa in_use();
void use(Isa isa);

}  // namespace rango

// RANGO_KERNEL(name)(arguments): the build in use of a kernel declared through each_isa.h.
#if defined(RANGO_HAS_AVX2)
#define RANGO_KERNEL(name) (rango::in_use() == rango::Isa::avx2 ? avx2::name : portable::name)
#else
#define RANGO_KERNEL(name) (portable::name)
#endif
