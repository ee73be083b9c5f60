// A linear layer over the channels of a map (a 1x1 convolution), y[n] = weight * x[n] + bias, and its gradients
// dx[n] = weight' * dy[n], dweight = sum_n dy[n] * x[n]', dbias = sum dy. x is (N, I, H, W), weight (O, I), bias (O),
// y (N, O, H, W); x[n] is the matrix (I, H * W).
//
// NCHW already is that matrix for each image, so nothing is transposed. The products are those of oneDNN, which
// MindSpore has loaded. Every thread computes a part with a sequential product. A product needs a hundred columns or
// more to be efficient, so small maps of several images are first copied side by side.

#include <algorithm>
#include <vector>

#include "kernel.h"
#include "parallel.h"
#include "product.h"
#include "sums.h"

namespace neonext {
namespace {

// Least columns and most rows of one product.
constexpr int64_t kColumns = 192;
constexpr int64_t kRows = 192;

// Returns the number of images whose columns form one product.
int64_t images_together(int64_t count, int64_t area) {
  return std::max<int64_t>(1, std::min(count, (kColumns + area - 1) / area));
}

// Returns one of two buffers that each thread keeps from call to call.
std::vector<float> &scratch(int which, int64_t size) {
  static thread_local std::vector<float> buffers[2];
  if (static_cast<int64_t>(buffers[which].size()) < size) {
    buffers[which].resize(size);
  }
  return buffers[which];
}

// Copies the columns of several images side by side: (images, channels, area) to (channels, images * area).
void gather(const float *from, float *to, int64_t images, int64_t stride, int64_t channels, int64_t area) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t n = 0; n < images; ++n) {
      std::memcpy(to + (c * images + n) * area, from + n * stride + c * area, area * sizeof(float));
    }
  }
}

// Computes y[n] = matrix * x[n] + bias. The matrix is (rows, inner), or (inner, rows) if transposed.
void multiply(const float *matrix, bool transposed, const float *x, const float *bias, float *y, int64_t count,
              int64_t inner, int64_t rows, int64_t area) {
  const int64_t together = images_together(count, area), groups = (count + together - 1) / together;
  // The last bits of a product depend on its number of rows, so the parts must not depend on the number of threads.
  const int64_t parts = (rows + kRows - 1) / kRows;
  parallel(groups * parts, [=](int64_t index) {
    const int64_t first = index / parts * together, images = std::min(together, count - first);
    const int64_t part = index % parts, low = rows * part / parts, high = rows * (part + 1) / parts;
    const int64_t columns = images * area;
    const float *source = x + first * inner * area;
    float *const target = y + (first * rows + low) * area;
    float *destination = target;
    if (images > 1) {
      float *const merged = scratch(0, inner * columns).data();
      gather(source, merged, images, inner * area, inner, area);
      source = merged;
      destination = scratch(1, (high - low) * columns).data();
    }
    const Factor left =
        transposed ? Factor{matrix + low, rows, true} : Factor{matrix + low * inner, inner};
    product(high - low, columns, inner, left, {source, columns}, destination, columns);
    if (images == 1 && bias == nullptr) {
      return;
    }
    for (int64_t row = 0; row < high - low; ++row) {
      const float shift = bias == nullptr ? 0.0f : bias[low + row];
      for (int64_t n = 0; n < images; ++n) {
        const float *const from = destination + (row * images + n) * area;
        float *const to = target + (n * rows + row) * area;
#pragma GCC ivdep
        for (int64_t i = 0; i < area; ++i) {
          to[i] = from[i] + shift;
        }
      }
    }
  });
}

int64_t area_of(int dims, const int64_t *shape) { return elements(dims - 2, shape + 2); }

}  // namespace
}  // namespace neonext

// x (N, I, H, W), weight (O, I) -> y (N, O, H, W)
NEONEXT_KERNEL(pointwise) {
  neonext::multiply(static_cast<const float *>(data[1]), false, static_cast<const float *>(data[0]), nullptr,
                    static_cast<float *>(data[2]), shapes[0][0], shapes[0][1], shapes[1][0],
                    neonext::area_of(dims[0], shapes[0]));
  return 0;
}

NEONEXT_SHAPE(pointwise) { return {shapes[0][0], shapes[1][0], shapes[0][2], shapes[0][3]}; }

// x (N, I, H, W), weight (O, I), bias (O) -> y (N, O, H, W)
NEONEXT_KERNEL(pointwise_bias) {
  neonext::multiply(static_cast<const float *>(data[1]), false, static_cast<const float *>(data[0]),
                    static_cast<const float *>(data[2]), static_cast<float *>(data[3]), shapes[0][0], shapes[0][1],
                    shapes[1][0], neonext::area_of(dims[0], shapes[0]));
  return 0;
}

NEONEXT_SHAPE(pointwise_bias) { return {shapes[0][0], shapes[1][0], shapes[0][2], shapes[0][3]}; }

// dy (N, O, H, W), weight (O, I) -> dx (N, I, H, W)
NEONEXT_KERNEL(pointwise_grad_x) {
  const int64_t area = neonext::area_of(dims[0], shapes[0]);
  neonext::multiply(static_cast<const float *>(data[1]), true, static_cast<const float *>(data[0]), nullptr,
                    static_cast<float *>(data[2]), shapes[0][0], shapes[0][1], shapes[1][1], area);
  return 0;
}

NEONEXT_SHAPE(pointwise_grad_x) { return {shapes[0][0], shapes[1][1], shapes[0][2], shapes[0][3]}; }

// x (N, I, H, W), dy (N, O, H, W) -> dweight (O, I), dbias (O)
NEONEXT_KERNEL(pointwise_grad_weight) {
  const int64_t images = shapes[0][0], inputs = shapes[0][1], outputs = shapes[1][1];
  const int64_t area = neonext::area_of(dims[0], shapes[0]);
  const float *const x = static_cast<const float *>(data[0]);
  const float *const dy = static_cast<const float *>(data[1]);
  float *const dweight = static_cast<float *>(data[2]);
  float *const dbias = static_cast<float *>(data[3]);
  const int64_t together = neonext::images_together(images, area);
  // Each part reads all of x, hence few parts.
  const int64_t parts = std::min<int64_t>(outputs, outputs > neonext::kRows ? 4 : 2);
  neonext::parallel(parts, [=](int64_t part) {
    const int64_t low = outputs * part / parts, rows = outputs * (part + 1) / parts - low;
    for (int64_t first = 0; first < images; first += together) {
      const int64_t merged = std::min(together, images - first), columns = merged * area;
      const float *left = dy + (first * outputs + low) * area, *right = x + first * inputs * area;
      if (merged > 1) {
        float *const from_left = neonext::scratch(0, rows * columns).data();
        float *const from_right = neonext::scratch(1, inputs * columns).data();
        neonext::gather(left, from_left, merged, outputs * area, rows, area);
        neonext::gather(right, from_right, merged, inputs * area, inputs, area);
        left = from_left;
        right = from_right;
      }
      neonext::product(rows, inputs, columns, {left, columns}, {right, columns, true}, dweight + low * inputs, inputs,
                       first > 0);
    }
    for (int64_t o = low; o < low + rows; ++o) {
      double shift = 0;
      for (int64_t n = 0; n < images; ++n) {
        const float *const up = dy + (n * outputs + o) * area;
        shift += neonext::accumulate(area, [=](int64_t i, float &sum, float &) { sum += up[i]; }).first;
      }
      dbias[o] = static_cast<float>(shift);
    }
  });
  return 0;
}

NEONEXT_SHAPES(pointwise_grad_weight, 2) { return {{shapes[1][1], shapes[0][1]}, {shapes[1][1]}}; }
