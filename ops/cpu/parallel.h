// One pool of threads for all kernels.
//
// MindSpore calls kernels from changing threads of its own, and OpenMP would create a team of spinning threads for each
// of them. Here all callers share one pool, and a kernel that finds the pool busy computes alone.

#pragma once

#include <cstdint>

namespace neonext {

// Returns the number of threads of a kernel: that of neonext_set_threads, or else the CPUs this process may use.
int threads();

// Sets the number of threads; has no effect after the first kernel.
extern "C" void neonext_set_threads(int count);

// A function pointer instead of std::function, which would allocate memory at every call of a kernel.
using Task = void (*)(const void *body, int64_t index);

void run(int64_t count, Task task, const void *body);

// Calls body(0) to body(count - 1), each once, on several threads in any order. Kernels choose `count` by sizes alone,
// never by the number of threads, so that the number of threads changes no bit of a result.
template <typename Body>
void parallel(int64_t count, const Body &body) {
  run(count, [](const void *self, int64_t index) { (*static_cast<const Body *>(self))(index); }, &body);
}

}  // namespace neonext
