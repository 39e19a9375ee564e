// Threads: PyTorch's own pool where it can be found, so that the two never compete for the cores.
// As with PyTorch, a forked child must not use the pool once its parent has: it has no threads there.
#pragma once

#include <cstdint>

#define RANGO_INLINE_PARALLEL static inline __attribute__((always_inline))

namespace rango {

// Call body(context, 0 … threads-1), each on a thread of its own, and wait. The first exception
// that any of them throws is thrown again once all have ended.
void run_threads(int threads, void (*body)(void* context, int thread), void* context);

namespace RANGO_ISA {

// body(thread) on each of `threads` threads.
template <class Body>
RANGO_INLINE_PARALLEL void on_threads(int threads, Body& body) {
  if (threads <= 1) {
    body(0);
    return;
  }
  struct Call {
    static void enter(void* context, int thread) { (*static_cast<Body*>(context))(thread); }
  };
  run_threads(threads, Call::enter, &body);
}

// body(begin, end) over [0, count) in one even piece a thread, none smaller than `grain`.
template <class Body>
RANGO_INLINE_PARALLEL void in_pieces(int64_t count, int64_t grain, int threads, Body& body) {
  const int64_t most = (count + grain - 1) / grain;
  const int used = most < threads ? static_cast<int>(most) : threads;
  if (used <= 1) {
    if (count > 0) body(static_cast<int64_t>(0), count);
    return;
  }
  auto piece = [&](int thread) {
    const int64_t begin = count * thread / used, end = count * (thread + 1) / used;
    if (begin < end) body(begin, end);
  };
  on_threads(used, piece);
}

// body(task) for each task in [0, tasks); threads take the next one as they become free.
template <class Body>
RANGO_INLINE_PARALLEL void by_turns(int64_t tasks, int threads, Body& body) {
  const int used = tasks < threads ? static_cast<int>(tasks) : threads;
  int64_t next = 0;
  auto worker = [&](int) {
    for (;;) {
      const int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (task >= tasks) return;
      body(task);
    }
  };
  on_threads(used, worker);
}

}  // namespace RANGO_ISA
}  // namespace rango
