// Memory for the packed factors of matrix products.

#pragma once

#include <cstdint>
#include <vector>

#include "kernel.h"

namespace neonext {

// Returns one of two buffers, at a vector boundary, that each thread keeps from call to call.
inline float *packed_factor(int which, int64_t size) {
  static thread_local std::vector<Vector> buffers[2];
  const int64_t vectors = blocks(size, kLanes);
  if (static_cast<int64_t>(buffers[which].size()) < vectors) {
    buffers[which].resize(vectors);
  }
  return reinterpret_cast<float *>(buffers[which].data());
}

}  // namespace neonext
