// The activations of a block. Each has `value(x)`, and `value(x, &slope)` for the derivative too. NaN gives NaN.

#pragma once

#include "gelu.h"

namespace neonext {

struct Gelu {
  float value(float x) const { return gelu_value(x, tail(x)); }
  float value(float x, float *slope) const {
    const Tail t = tail(x);
    *slope = gelu_slope(x, t);
    return gelu_value(x, t);
  }
};

struct Relu {
  float value(float x) const { return x < 0 ? 0.0f : x; }
  float value(float x, float *slope) const {
    *slope = x > 0 ? 1.0f : 0.0f;
    return value(x);
  }
};

struct LeakyRelu {
  float negative;

  float value(float x) const { return x < 0 ? negative * x : x; }
  float value(float x, float *slope) const {
    *slope = x > 0 ? 1.0f : negative;
    return value(x);
  }
};

// x min(max(x + 3, 0), 6) / 6
struct HardSwish {
  float value(float x) const {
    const float low = x < -3 ? 0.0f : x + 3;
    return x * (x > 3 ? 6.0f : low) / 6;
  }
  float value(float x, float *slope) const {
    const float middle = x / 3 + 0.5f;
    *slope = x <= -3 ? 0.0f : (x >= 3 ? 1.0f : middle);
    return value(x);
  }
};

// Calls body with the activation of this kind: 0 GELU, 1 ReLU, 2 LeakyReLU with a slope for negative numbers, 3
// HardSwish.
template <typename Body>
inline void with_activation(const float *kind_and_slope, const Body &body) {
  switch (static_cast<int>(kind_and_slope[0])) {
    case 1: return body(Relu());
    case 2: return body(LeakyRelu{kind_and_slope[1]});
    case 3: return body(HardSwish());
    default: return body(Gelu());
  }
}

}  // namespace neonext
