// Matrix products of row-major float32 matrices in one thread, for kernels that divide their work themselves.

#pragma once

#include <cstdint>

namespace neonext {

// A matrix as it is stored, or the transpose of what is stored; `stride` is the distance of the stored rows.
struct Factor {
  const float *values;
  int64_t stride;
  bool transposed = false;
};

// Computes result = left * right, or adds that to `result`; left is (rows, inner), right (inner, columns).
void product(int64_t rows, int64_t columns, int64_t inner, Factor left, Factor right, float *result, int64_t stride,
             bool add = false);

}  // namespace neonext
