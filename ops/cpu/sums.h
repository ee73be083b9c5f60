// Sums over a whole map or batch, accurate for any length.
//
// A single float32 sum over a batch of maps loses digits, and float64 arithmetic halves the width of the vectors.
// Therefore 16 float32 sums add blocks of 512 values, 32 per sum, and float64 adds the blocks.

#pragma once

#include <cmath>
#include <limits>

#include "kernel.h"

namespace neonext {

struct Sums {
  double first = 0, second = 0;
};

// Returns two sums over i = 0 .. size - 1; term(i, first, second) adds its values to `first` and `second`. The order of
// additions depends on `size` alone.
template <typename Term>
Sums accumulate(int64_t size, const Term &term) {
  constexpr int64_t kBlock = 512;
  constexpr int kParts = 16;
  Sums sums;
  for (int64_t start = 0; start < size; start += kBlock) {
    const int64_t last = start + kBlock < size ? start + kBlock : size;
    float first[kParts] = {}, second[kParts] = {};
    int64_t i = start;
    for (; i + kParts <= last; i += kParts) {
      for (int part = 0; part < kParts; ++part) {
        term(i + part, first[part], second[part]);
      }
    }
    for (; i < last; ++i) {
      term(i, first[0], second[0]);
    }
    for (int part = 0; part < kParts; ++part) {
      sums.first += first[part];
      sums.second += second[part];
    }
  }
  return sums;
}

// Returns 1 / sqrt(variance + epsilon), or NaN for a variance that has overflowed: 0 would make zeros of the map and of
// all gradients, and nothing would show that the network has diverged.
inline double inverse_deviation(double variance, double epsilon) {
  return std::isinf(variance) ? std::numeric_limits<double>::quiet_NaN() : 1 / std::sqrt(variance + epsilon);
}

}  // namespace neonext
