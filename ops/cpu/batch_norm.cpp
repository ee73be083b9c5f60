// Gradients of BatchNorm in training with respect to x, gamma and beta. x and dy are (N, C, H, W), gamma is (C).
//
// With m and v the mean and variance of a channel over N, H and W, n = N * H * W and r = 1 / sqrt(v + epsilon):
//
//     dbeta = sum dy,   dgamma = r * sum dy (x - m),   dx = gamma * r * (dy - dbeta / n - (x - m) * r * dgamma / n)
//
// MindSpore's own kernel adds in float32 one by one; BatchNorm in neonext_ms/models/neonext.py says what that costs.
// Here the statistics are computed again instead of being passed from the forward pass, because that takes no memory
// and gives both passes over x sums that end in float64. One thread takes a channel with all its images, so the order
// of the sums is fixed.

#include "kernel.h"
#include "parallel.h"
#include "sums.h"

// x, dy (N, C, H, W), gamma (C), epsilon (1) -> dx (N, C, H, W), dgamma (C), dbeta (C)
NEONEXT_KERNEL(batch_norm_grad) {
  const int64_t images = shapes[0][0], channels = shapes[0][1], area = shapes[0][2] * shapes[0][3];
  const float *const x = static_cast<const float *>(data[0]);
  const float *const dy = static_cast<const float *>(data[1]);
  const float *const gamma = static_cast<const float *>(data[2]);
  const double epsilon = *static_cast<const float *>(data[3]);
  float *const dx = static_cast<float *>(data[4]);
  float *const dgamma = static_cast<float *>(data[5]);
  float *const dbeta = static_cast<float *>(data[6]);
  neonext::parallel(channels, [=](int64_t channel) {
    const double count = static_cast<double>(images * area);
    neonext::Sums plain, centred;
    for (int64_t n = 0; n < images; ++n) {
      const float *const from = x + (n * channels + channel) * area;
      const float *const up = dy + (n * channels + channel) * area;
      const neonext::Sums sums = neonext::accumulate(area, [=](int64_t i, float &first, float &second) {
        first += from[i];
        second += up[i];
      });
      plain.first += sums.first;
      plain.second += sums.second;
    }
    // A second pass around the mean: sums of squares minus the squared mean would cancel.
    const float mean = static_cast<float>(plain.first / count);
    for (int64_t n = 0; n < images; ++n) {
      const float *const from = x + (n * channels + channel) * area;
      const float *const up = dy + (n * channels + channel) * area;
      const neonext::Sums sums = neonext::accumulate(area, [=](int64_t i, float &first, float &second) {
        const float difference = from[i] - mean;
        first += difference * difference;
        second += difference * up[i];
      });
      centred.first += sums.first;
      centred.second += sums.second;
    }
    // `rest` is the rounding error of the float32 mean. The corrections for it below are exact.
    const double rest = plain.first / count - mean;
    const double variance = centred.first / count - rest * rest;
    const double inverse = neonext::inverse_deviation(variance, epsilon);
    const double covariance = centred.second - rest * plain.second;
    dgamma[channel] = static_cast<float>(covariance * inverse);
    dbeta[channel] = static_cast<float>(plain.second);
    // dx = scale * (dy - dbeta / count - (x - mean - rest) * slope), with everything but dy and x in one constant each.
    const double slope = covariance * inverse * inverse / count;
    const float scale = static_cast<float>(gamma[channel] * inverse);
    const float factor = static_cast<float>(slope);
    const float shift = static_cast<float>(plain.second / count - rest * slope);
    for (int64_t n = 0; n < images; ++n) {
      const float *const from = x + (n * channels + channel) * area;
      const float *const up = dy + (n * channels + channel) * area;
      float *const to = dx + (n * channels + channel) * area;
#pragma GCC ivdep
      for (int64_t i = 0; i < area; ++i) {
        to[i] = scale * (up[i] - shift - (from[i] - mean) * factor);
      }
    }
  });
  return 0;
}

NEONEXT_SHAPES(batch_norm_grad, 3) { return {shape(0), shape(2), shape(2)}; }
