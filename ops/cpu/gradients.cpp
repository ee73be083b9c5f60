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

struct Piece {
  const float *values;
  int64_t size;
  double sum;
};

int64_t pieces(int64_t size) { return (size + kPiece - 1) / kPiece; }
}  // namespace

// factor (1), any number of tensors -> the sum of squares of all their values times the factor, (1)
NEONEXT_KERNEL(sum_of_squares) {
  const float factor = *static_cast<const float *>(data[0]);
  // One sum per piece, added in order below, whichever thread computed it.
  std::vector<Piece> parts;
  for (int tensor = 1; tensor + 1 < count; ++tensor) {
    const int64_t size = neonext::elements(dims[tensor], shapes[tensor]);
    for (int64_t first = 0; first < size; first += kPiece) {
      parts.push_back({static_cast<const float *>(data[tensor]) + first, std::min(kPiece, size - first), 0});
    }
  }
  Piece *const all = parts.data();
  neonext::parallel(static_cast<int64_t>(parts.size()), [=](int64_t index) {
    const float *const from = all[index].values;
    const auto square = [=](int64_t i, float &sum, float &) { sum += (factor * from[i]) * (factor * from[i]); };
    all[index].sum = neonext::accumulate(all[index].size, square).first;
  });
  double sum = 0;
  for (const Piece &part : parts) {
    sum += part.sum;
  }
  *static_cast<float *>(data[count - 1]) = static_cast<float>(sum);
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
