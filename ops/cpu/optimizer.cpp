// AdamW, and the moving average of weights, for all tensors of a model in one pass over the memory, which is what
// limits them, and with one launch.
//
//     g' = factor g,   m = m + (1 - beta1) (g' - m),   v = v + (1 - beta2) (g'^2 - v)
//     w = w - rate (m / (sqrt(v) + epsilon) + decay w)
//
// Weights, moments and averages are inputs that are changed in place.

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernel.h"
#include "parallel.h"

namespace {

constexpr int64_t kPiece = 1 << 14;

struct Piece {
  int tensor;
  int64_t first, last;
};

// Divides tensors into pieces. The first of them is input `from`.
std::vector<Piece> divide(int tensors, int from, const int *dims, int64_t **shapes) {
  std::vector<Piece> pieces;
  for (int tensor = 0; tensor < tensors; ++tensor) {
    const int64_t size = neonext::elements(dims[from + tensor], shapes[from + tensor]);
    for (int64_t first = 0; first < size; first += kPiece) {
      pieces.push_back({tensor, first, std::min(size, first + kPiece)});
    }
  }
  return pieces;
}

}  // namespace

// factor, rate, beta1, beta2, epsilon, factor of the decay (6); rate and decay of each tensor (n, 2); then n gradients,
// n weights, n first and n second moments -> 0 (1)
NEONEXT_KERNEL(adamw) {
  const float *const settings = static_cast<const float *>(data[0]), *const table = static_cast<const float *>(data[1]);
  const int tensors = (count - 3) / 4;
  const std::vector<Piece> pieces = divide(tensors, 2, dims, shapes);
  const Piece *const all = pieces.data();
  neonext::parallel(static_cast<int64_t>(pieces.size()), [=](int64_t index) {
    const Piece piece = all[index];
    const float *const gradient = static_cast<const float *>(data[2 + piece.tensor]);
    float *const weight = static_cast<float *>(data[2 + tensors + piece.tensor]);
    float *const first = static_cast<float *>(data[2 + 2 * tensors + piece.tensor]);
    float *const second = static_cast<float *>(data[2 + 3 * tensors + piece.tensor]);
    const float factor = settings[0], rate = settings[1] * table[2 * piece.tensor], keep_1 = 1 - settings[2],
                keep_2 = 1 - settings[3], epsilon = settings[4], decay = settings[5] * table[2 * piece.tensor + 1];
#pragma GCC ivdep
    for (int64_t i = piece.first; i < piece.last; ++i) {
      // The factor 0 discards the gradients of a step that overflowed, and 0 * inf would be NaN.
      const float g = factor == 0 ? 0.0f : factor * gradient[i];
      const float m = first[i] + keep_1 * (g - first[i]), v = second[i] + keep_2 * (g * g - second[i]);
      first[i] = m;
      second[i] = v;
      weight[i] -= rate * (m / (std::sqrt(v) + epsilon) + decay * weight[i]);
    }
  });
  *static_cast<float *>(data[count - 1]) = 0;
  return 0;
}

NEONEXT_SHAPE(adamw) { return {1}; }

// share (1), n averages, n tensors -> 0 (1); each average takes its share of the tensor
NEONEXT_KERNEL(moving_average) {
  const float share = *static_cast<const float *>(data[0]);
  const int tensors = (count - 2) / 2;
  const std::vector<Piece> pieces = divide(tensors, 1, dims, shapes);
  const Piece *const all = pieces.data();
  neonext::parallel(static_cast<int64_t>(pieces.size()), [=](int64_t index) {
    const Piece piece = all[index];
    float *const average = static_cast<float *>(data[1 + piece.tensor]);
    const float *const tensor = static_cast<const float *>(data[1 + tensors + piece.tensor]);
#pragma GCC ivdep
    for (int64_t i = piece.first; i < piece.last; ++i) {
      average[i] = average[i] * (1 - share) + tensor[i] * share;
    }
  });
  *static_cast<float *>(data[count - 1]) = 0;
  return 0;
}

NEONEXT_SHAPE(moving_average) { return {1}; }
