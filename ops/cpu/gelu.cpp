// GELU (gelu.h) and its gradient on tensors of any shape.

#include "gelu.h"

#include <algorithm>

#include "kernel.h"
#include "parallel.h"

namespace {
constexpr int64_t kBlock = 8192;
}  // namespace

// x -> y
NEONEXT_KERNEL(gelu) {
  const int64_t size = neonext::elements(dims[0], shapes[0]);
  const float *const x = static_cast<const float *>(data[0]);
  float *const y = static_cast<float *>(data[1]);
  neonext::parallel((size + kBlock - 1) / kBlock, [=](int64_t block) {
    const int64_t last = std::min(size, (block + 1) * kBlock);
#pragma GCC ivdep
    for (int64_t i = block * kBlock; i < last; ++i) {
      y[i] = neonext::gelu_value(x[i], neonext::tail(x[i]));
    }
  });
  return 0;
}

NEONEXT_SHAPE(gelu) { return shape(0); }

// x, dy -> dx
NEONEXT_KERNEL(gelu_grad) {
  const int64_t size = neonext::elements(dims[0], shapes[0]);
  const float *const x = static_cast<const float *>(data[0]);
  const float *const dy = static_cast<const float *>(data[1]);
  float *const dx = static_cast<float *>(data[2]);
  neonext::parallel((size + kBlock - 1) / kBlock, [=](int64_t block) {
    const int64_t last = std::min(size, (block + 1) * kBlock);
#pragma GCC ivdep
    for (int64_t i = block * kBlock; i < last; ++i) {
      dx[i] = dy[i] * neonext::gelu_slope(x[i], neonext::tail(x[i]));
    }
  });
  return 0;
}

NEONEXT_SHAPE(gelu_grad) { return shape(0); }
