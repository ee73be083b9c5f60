// Sums of float32 values that stay accurate however long they are.

#pragma once

#include "kernel.h"

namespace neonext {

struct Sums {
  double first = 0, second = 0;
};

// Adds term(i) of every i below size; the partial sums stay short enough for float32.
template <typename Term>
Sums accumulate(int64_t size, const Term &term) {
  constexpr int64_t kBlock = 512;
  Sums sums;
  for (int64_t start = 0; start < size; start += kBlock) {
    const int64_t last = start + kBlock < size ? start + kBlock : size;
    float first[kLanes] = {}, second[kLanes] = {};
    int64_t i = start;
    for (; i + kLanes <= last; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        term(i + lane, first[lane], second[lane]);
      }
    }
    for (; i < last; ++i) {
      term(i, first[0], second[0]);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      sums.first += first[lane];
      sums.second += second[lane];
    }
  }
  return sums;
}

}  // namespace neonext
