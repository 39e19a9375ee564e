#include "scratch.h"

#include <cstdlib>
#include <new>

namespace rango {
namespace {

struct Slot {
  void* memory = nullptr;
  size_t size = 0;
  ~Slot() { std::free(memory); }
};

thread_local Slot slots[4];

}  // namespace

void* scratch(int slot, size_t bytes) {
  Slot& held = slots[slot];
  if (held.size < bytes) {
    std::free(held.memory);
    held.memory = nullptr;
    held.size = (bytes + 4095) / 4096 * 4096;
    held.memory = std::aligned_alloc(4096, held.size);
    if (!held.memory) {
      held.size = 0;
      throw std::bad_alloc();
    }
  }
  return held.memory;
}

}  // namespace rango
