// Memory that one thread works in: taken once, kept, and reused by every kernel.
#pragma once

#include <cstddef>

namespace rango {

// At least `bytes` bytes, aligned to 64, private to the calling thread and to `slot` (0 … 3): the
// next call for the same slot may overwrite or free it. Touching fresh memory costs several times
// what most kernels do with it.
void* scratch(int slot, size_t bytes);

}  // namespace rango
