// A kernel at the end of a graph that wakes a sleeping Python thread (operators.py, `Finish`); x -> x, of any shape.
//
// MindSpore spins while Python waits for a value, which keeps a processor from the kernels of the graph.

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "kernel.h"

namespace {
std::mutex mutex;
std::condition_variable changed;
int64_t runs = 0;
}  // namespace

// x -> x
NEONEXT_KERNEL(finished) {
  std::memcpy(data[1], data[0], neonext::elements(dims[0], shapes[0]) * sizeof(float));
  const std::lock_guard<std::mutex> lock(mutex);
  ++runs;
  changed.notify_all();
  return 0;
}

NEONEXT_SHAPE(finished) { return shape(0); }

// Returns how often `finished` has run in this process.
extern "C" int64_t finished_count() {
  const std::lock_guard<std::mutex> lock(mutex);
  return runs;
}

// Waits until `finished` has run `wanted` times, at most for some milliseconds; returns 1 if it has.
extern "C" int finished_wait(int64_t wanted, int milliseconds) {
  std::unique_lock<std::mutex> lock(mutex);
  return changed.wait_for(lock, std::chrono::milliseconds(milliseconds), [=] { return runs >= wanted; });
}
