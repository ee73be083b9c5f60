// GELU in its exact form, x * Phi(x), and its derivative, Phi(x) + x * phi(x). Phi and phi are the distribution
// function and the density of the standard normal distribution.
//
// The erf of the C library computes one value at a time, with branches. Here everything is branch-free arithmetic that
// the compiler vectorizes: Phi(-a) = exp(-a^2 / 2) * R(a) for a >= 0, with R a polynomial in
// t = 1 / (1 + 0.24 a). The coefficients were fitted so that the error of Phi is at most 3.2e-10 before rounding, far
// below the resolution of float32. Value and derivative share the exponential: phi(a) = exp(-a^2 / 2) / sqrt(2 pi).

#pragma once

#include "kernel.h"

namespace neonext {

// Returns exp(u) for -87 <= u <= 0 as 2^n * exp(r) with |r| <= ln(2) / 2, exp(r) by its Taylor polynomial.
inline float exponential(float u) {
  constexpr float kLog2E = 1.44269504088896341f, kRound = 12582912.0f;
  constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723e-6f;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits of the float.
  const float shifted = u * kLog2E + kRound;
  const float n = shifted - kRound;
  // ln(2) in two parts, the first with trailing zeros, so that n * kLn2High is exact.
  const float r = (u - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  // The integer n, moved into the exponent field, is 2^n.
  bits = (bits - 0x4B400000u + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

// a = |x| (clamped), exp(-a^2 / 2) and Phi(-a).
struct Tail {
  float magnitude, exponential, phi;
};

inline Tail tail(float x) {
  // Beyond this, Phi is 0 or 1 in float32. The clamp keeps the exponential a normal number, as subnormals are slow.
  constexpr float kFarthest = 13.0f;
  const float magnitude = x < 0 ? -x : x;
  const float a = magnitude > kFarthest ? kFarthest : magnitude;
  const float e = exponential(-0.5f * a * a);
  const float t = 1.0f / (1.0f + 0.24f * a);
  float p = -0.12510108062488956f;
  p = p * t + 0.5546524846397907f;
  p = p * t - 0.6462374539429867f;
  p = p * t + 0.6257783998150579f;
  p = p * t - 0.15416770986960013f;
  p = p * t + 0.15555347910409978f;
  p = p * t + 0.08952188056911257f;
  return {a, e, e * p * t};
}

// x Phi(x) = max(x, 0) - |x| Phi(-|x|): one formula for both signs, without cancellation.
inline float gelu_value(float x, const Tail &t) { return (x > 0 ? x : 0.0f) - t.magnitude * t.phi; }

inline float gelu_slope(float x, const Tail &t) {
  constexpr float kInverseSqrtTwoPi = 0.3989422804014327f;
  // The derivative at -|x|; at |x| it is 1 minus that.
  const float rest = t.phi - kInverseSqrtTwoPi * t.exponential * t.magnitude;
  return x > 0 ? 1.0f - rest : rest;
}

}  // namespace neonext
