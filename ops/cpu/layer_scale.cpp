// Layer scale, y = gamma_c * x for every channel c, and its gradients dx = gamma_c * dy, dgamma_c = sum x * dy.
// x and dy are (N, C, H, W), gamma is (C).
//
// Both kernels are bound by memory, so the gradient computes dgamma and dx of a map while the map is in the cache. One
// thread takes a channel with all its images, so that the order of the sum is fixed.

#include "kernel.h"
#include "parallel.h"
#include "sums.h"

// x (N, C, H, W), gamma (C) -> y
NEONEXT_KERNEL(layer_scale) {
  const int64_t channels = shapes[0][1], area = shapes[0][2] * shapes[0][3];
  const float *const x = static_cast<const float *>(data[0]);
  const float *const gamma = static_cast<const float *>(data[1]);
  float *const y = static_cast<float *>(data[2]);
  neonext::parallel(shapes[0][0] * channels, [=](int64_t map) {
    const float factor = gamma[map % channels];
#pragma GCC ivdep
    for (int64_t i = map * area; i < (map + 1) * area; ++i) {
      y[i] = factor * x[i];
    }
  });
  return 0;
}

NEONEXT_SHAPE(layer_scale) { return shape(0); }

// x, dy (N, C, H, W), gamma (C) -> dx, dgamma
NEONEXT_KERNEL(layer_scale_grad) {
  const int64_t images = shapes[0][0], channels = shapes[0][1], area = shapes[0][2] * shapes[0][3];
  const float *const x = static_cast<const float *>(data[0]);
  const float *const dy = static_cast<const float *>(data[1]);
  const float *const gamma = static_cast<const float *>(data[2]);
  float *const dx = static_cast<float *>(data[3]);
  float *const dgamma = static_cast<float *>(data[4]);
  neonext::parallel(channels, [=](int64_t channel) {
    const float factor = gamma[channel];
    double sum = 0;
    for (int64_t n = 0; n < images; ++n) {
      const int64_t start = (n * channels + channel) * area;
      const float *const from = x + start, *const up = dy + start;
      float *const to = dx + start;
      sum += neonext::accumulate(area, [=](int64_t i, float &products, float &) { products += from[i] * up[i]; }).first;
#pragma GCC ivdep
      for (int64_t i = 0; i < area; ++i) {
        to[i] = factor * up[i];
      }
    }
    dgamma[channel] = static_cast<float>(sum);
  });
  return 0;
}

NEONEXT_SHAPES(layer_scale_grad, 2) { return {shape(0), shape(2)}; }
