// Work shared between threads.
//
// MindSpore runs kernels on threads of its own that change, and OpenMP would make a team of spinning threads for each
// of them. This is one pool for all; a kernel that finds it taken works alone.

#pragma once

#include <cstdint>

namespace neonext {

// Threads that a kernel can have: OMP_NUM_THREADS, as for MindSpore, or the CPUs that this process may use.
int threads();

using Task = void (*)(const void *body, int64_t index);

void run(int64_t count, Task task, const void *body);

// Calls body(0) to body(count - 1), each once, on several threads in any order.
template <typename Body>
void parallel(int64_t count, const Body &body) {
  run(count, [](const void *self, int64_t index) { (*static_cast<const Body *>(self))(index); }, &body);
}

}  // namespace neonext
