#define RANGO_ISA portable
#include "parallel.h"

#include <dlfcn.h>

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

namespace rango {
namespace {

// PyTorch loads its OpenMP runtime for everyone to see; compiled with GCC's interface, `#pragma
// omp parallel` is a call of GOMP_parallel. Looking it up instead of linking a runtime of our own
// keeps one pool in the process.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();

struct Runtime {
  Parallel parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  Number number = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  Number count = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
};

struct Call {
  void (*body)(void*, int);
  void* context;
  int threads;
  const Runtime* runtime;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error = nullptr;

  // What a thread of the pool throws would end the process: the first is kept for the caller.
  void run(int thread) {
    try {
      body(context, thread);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  }
};

void enter(void* argument) {
  Call& call = *static_cast<Call*>(argument);
  // the runtime may give fewer threads than were asked for
  const int given = call.runtime->count();
  for (int i = call.runtime->number(); i < call.threads; i += given) call.run(i);
}

}  // namespace

void run_threads(int threads, void (*body)(void*, int), void* context) {
  static const Runtime runtime;
  Call call{body, context, threads, &runtime};
  if (runtime.parallel && runtime.number && runtime.count) {
    runtime.parallel(enter, &call, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    int started = 1;
    try {
      for (; started < threads; started++) others.emplace_back(&Call::run, &call, started);
    } catch (...) {
      // no more threads to be had: what is left is done by this one
    }
    call.run(0);
    for (int i = started; i < threads; i++) call.run(i);
    for (auto& other : others) other.join();
  }
  if (call.error) std::rethrow_exception(call.error);
}

}  // namespace rango
