// Operations of a training step on each gradient before the optimizer: the sum of squares for the global norm, and
// scaling for the loss scale and for clipping. x is float32 of any shape, factor is (1).
//
// Both are bound by memory, so the norm multiplies by the factor while it reads x instead of reading a scaled copy.
// Fixed pieces of 64 Ki values keep the order of the sums independent of the number of threads.

#include <algorithm>
#include <vector>

#include "kernel.h"
#include "parallel.h"
#include "sums.h"

namespace {
constexpr int64_t kPiece = 1 << 16;

int64_t pieces(int64_t size) { return (size + kPiece - 1) / kPiece; }
}  // namespace

// x, factor (1) -> the sum of squares of x * factor, (1)
NEONEXT_KERNEL(sum_of_squares) {
  const int64_t size = neonext::elements(dims[0], shapes[0]);
  const float *const x = static_cast<const float *>(data[0]);
  const float factor = *static_cast<const float *>(data[1]);
  // One sum per piece, added in order below, whichever thread computed it.
  std::vector<double> partial(pieces(size));
  double *const sums = partial.data();
  neonext::parallel(pieces(size), [=](int64_t piece) {
    const float *const from = x + piece * kPiece;
    const int64_t count = std::min(kPiece, size - piece * kPiece);
    const auto square = [=](int64_t i, float &sum, float &) { sum += (factor * from[i]) * (factor * from[i]); };
    sums[piece] = neonext::accumulate(count, square).first;
  });
  double sum = 0;
  for (const double part : partial) {
    sum += part;
  }
  *static_cast<float *>(data[2]) = static_cast<float>(sum);
  return 0;
}

NEONEXT_SHAPE(sum_of_squares) { return {1}; }

// x, factor (1) -> x * factor; zeros for the factor 0, whatever x is
NEONEXT_KERNEL(scaled) {
  const int64_t size = neonext::elements(dims[0], shapes[0]);
  const float *const x = static_cast<const float *>(data[0]);
  const float factor = *static_cast<const float *>(data[1]);
  float *const y = static_cast<float *>(data[2]);
  neonext::parallel(pieces(size), [=](int64_t piece) {
    const int64_t first = piece * kPiece, last = std::min(first + kPiece, size);
    // The factor 0 discards the gradients of a step that overflowed, and 0 * inf would be NaN.
    if (factor == 0) {
      std::fill(y + first, y + last, 0.0f);
      return;
    }
#pragma GCC ivdep
    for (int64_t i = first; i < last; ++i) {
      y[i] = factor * x[i];
    }
  });
  return 0;
}

NEONEXT_SHAPE(scaled) { return shape(0); }
