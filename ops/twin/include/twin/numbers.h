// half and bfloat16_t: stored in 16 bits, computed in float, rounded to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace neonext_twin {

// Kernels have constants of type half, which need a compiler that reads bits at compile time (GCC 11, Clang 9).
#if defined(__clang__) || __GNUC__ >= 11
#define NEONEXT_TWIN_CONSTEXPR constexpr
#define NEONEXT_TWIN_BITS(TYPE, VALUE) return __builtin_bit_cast(TYPE, VALUE)
#else
#define NEONEXT_TWIN_CONSTEXPR inline
#define NEONEXT_TWIN_BITS(TYPE, VALUE)           \
    TYPE bits;                                   \
    std::memcpy(&bits, &VALUE, sizeof(bits));    \
    return bits
#endif

NEONEXT_TWIN_CONSTEXPR uint32_t float_bits(float value)
{
    NEONEXT_TWIN_BITS(uint32_t, value);
}

NEONEXT_TWIN_CONSTEXPR float float_of(uint32_t value)
{
    NEONEXT_TWIN_BITS(float, value);
}

NEONEXT_TWIN_CONSTEXPR float half_to_float(uint16_t half)
{
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) {
        const uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0u;
        return float_of(sign | 0x7f800000u | quiet | ((magnitude & 0x3ffu) << 13));
    }
    if (magnitude < 0x0400u) {
        const float value = static_cast<float>(magnitude) * 0x1p-24f;
        return float_of(sign | float_bits(value));
    }
    return float_of(sign | ((magnitude << 13) + (112u << 23)));
}

NEONEXT_TWIN_CONSTEXPR uint16_t float_to_half(float value)
{
    const uint32_t bits = float_bits(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    }
    if (magnitude >= 0x477ff000u) {
        return static_cast<uint16_t>(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) {
        // Adding 0.5 lets the float adder round at the last bit of a subnormal half.
        const uint32_t rounded = float_bits(float_of(magnitude) + 0.5f) - 0x3f000000u;
        return static_cast<uint16_t>(sign | rounded);
    }
    const uint32_t even = (magnitude >> 13) & 1u;
    return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + even) >> 13));
}

NEONEXT_TWIN_CONSTEXPR float bfloat_to_float(uint16_t bits)
{
    return float_of(static_cast<uint32_t>(bits) << 16);
}

NEONEXT_TWIN_CONSTEXPR uint16_t float_to_bfloat(float value)
{
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return static_cast<uint16_t>((bits >> 16) | 0x40u);
    }
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#if defined(__x86_64__)
// F16C converts eight lanes at a time: conversion is most of the work that the simulator does. These are the compiler's
// own functions, because its header of intrinsics takes longer to compile than all the rest of the simulator.
using HalfVector = short __attribute__((vector_size(16)));
using FloatVector = float __attribute__((vector_size(32)));

inline const bool has_f16c = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");

/// Convert lanes in groups of eight; return how many were converted.
__attribute__((target("avx,f16c"))) inline int halves_to_floats_f16c(const uint16_t* from, float* to, int count)
{
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        HalfVector halves;
        std::memcpy(&halves, from + i, sizeof(halves));
        const FloatVector floats = __builtin_ia32_vcvtph2ps256(halves);
        std::memcpy(to + i, &floats, sizeof(floats));
    }
    return i;
}

__attribute__((target("avx,f16c"))) inline int floats_to_halves_f16c(const float* from, uint16_t* to, int count)
{
    constexpr int nearest_even = 0;
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        FloatVector floats;
        std::memcpy(&floats, from + i, sizeof(floats));
        const HalfVector halves = __builtin_ia32_vcvtps2ph256(floats, nearest_even);
        std::memcpy(to + i, &halves, sizeof(halves));
    }
    return i;
}
#else
constexpr bool has_f16c = false;
inline int halves_to_floats_f16c(const uint16_t*, float*, int) { return 0; }
inline int floats_to_halves_f16c(const float*, uint16_t*, int) { return 0; }
#endif

inline void halves_to_floats(const uint16_t* from, float* to, int count)
{
    for (int i = has_f16c ? halves_to_floats_f16c(from, to, count) : 0; i < count; ++i) {
        to[i] = half_to_float(from[i]);
    }
}

inline void floats_to_halves(const float* from, uint16_t* to, int count)
{
    for (int i = has_f16c ? floats_to_halves_f16c(from, to, count) : 0; i < count; ++i) {
        to[i] = float_to_half(from[i]);
    }
}

}  // namespace neonext_twin

struct half {
    uint16_t bits;

    half() = default;
    template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
    NEONEXT_TWIN_CONSTEXPR half(T value) : bits(neonext_twin::float_to_half(static_cast<float>(value)))
    {}
    NEONEXT_TWIN_CONSTEXPR operator float() const { return neonext_twin::half_to_float(bits); }
    half& operator+=(float other) { return *this = half(float(*this) + other); }
    half& operator-=(float other) { return *this = half(float(*this) - other); }
    half& operator*=(float other) { return *this = half(float(*this) * other); }
    half& operator/=(float other) { return *this = half(float(*this) / other); }
    constexpr half operator-() const { return of(static_cast<uint16_t>(bits ^ 0x8000u)); }

    static constexpr half of(uint16_t bits)
    {
        half value{};
        value.bits = bits;
        return value;
    }
};

struct bfloat16_t {
    uint16_t bits;

    bfloat16_t() = default;
    template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
    NEONEXT_TWIN_CONSTEXPR bfloat16_t(T value) : bits(neonext_twin::float_to_bfloat(static_cast<float>(value)))
    {}
    NEONEXT_TWIN_CONSTEXPR operator float() const { return neonext_twin::bfloat_to_float(bits); }

    static constexpr bfloat16_t of(uint16_t bits)
    {
        bfloat16_t value{};
        value.bits = bits;
        return value;
    }
};

static_assert(sizeof(half) == 2 && sizeof(bfloat16_t) == 2);
static_assert(std::is_trivially_copyable_v<half> && std::is_trivially_copyable_v<bfloat16_t>);

namespace std {
template <>
class numeric_limits<half> : public numeric_limits<float> {
public:
    static constexpr half max() { return half::of(0x7bff); }
    static constexpr half lowest() { return half::of(0xfbff); }
    static constexpr half min() { return half::of(0x0400); }
    static constexpr half epsilon() { return half::of(0x1400); }
    static constexpr half infinity() { return half::of(0x7c00); }
    static constexpr half quiet_NaN() { return half::of(0x7e00); }
};

template <>
class numeric_limits<bfloat16_t> : public numeric_limits<float> {
public:
    static constexpr bfloat16_t max() { return bfloat16_t::of(0x7f7f); }
    static constexpr bfloat16_t lowest() { return bfloat16_t::of(0xff7f); }
    static constexpr bfloat16_t min() { return bfloat16_t::of(0x0080); }
    static constexpr bfloat16_t epsilon() { return bfloat16_t::of(0x3c00); }
    static constexpr bfloat16_t infinity() { return bfloat16_t::of(0x7f80); }
    static constexpr bfloat16_t quiet_NaN() { return bfloat16_t::of(0x7fc0); }
};
}  // namespace std

namespace neonext_twin {

/// The type in which the lanes of a vector instruction on T are computed.
template <typename T>
using compute_t = std::conditional_t<std::is_same_v<T, half> || std::is_same_v<T, bfloat16_t>, float, T>;

template <typename T>
inline void widen(const T* from, compute_t<T>* to, int count)
{
    if constexpr (std::is_same_v<T, half>) {
        halves_to_floats(reinterpret_cast<const uint16_t*>(from), to, count);
    } else if constexpr (std::is_same_v<T, bfloat16_t>) {
        for (int i = 0; i < count; ++i) {
            to[i] = bfloat_to_float(from[i].bits);
        }
    } else {
        std::memcpy(to, from, sizeof(T) * count);
    }
}

/// Whether results are in the device's saturating mode: the largest number instead of infinity, 0 instead of NaN.
inline bool saturating = false;

template <typename T>
inline void saturate(T* lanes, int count)
{
    if (!saturating) {
        return;
    }
    constexpr uint16_t infinity = std::is_same_v<T, half> ? 0x7c00 : 0x7f80;
    for (int i = 0; i < count; ++i) {
        const uint16_t magnitude = lanes[i].bits & 0x7fffu;
        if (magnitude == infinity) {
            --lanes[i].bits;
        } else if (magnitude > infinity) {
            lanes[i].bits = 0;
        }
    }
}

template <typename T>
inline void narrow(const compute_t<T>* from, T* to, int count)
{
    if constexpr (std::is_same_v<T, half>) {
        floats_to_halves(from, reinterpret_cast<uint16_t*>(to), count);
        saturate(to, count);
    } else if constexpr (std::is_same_v<T, bfloat16_t>) {
        for (int i = 0; i < count; ++i) {
            to[i].bits = float_to_bfloat(from[i]);
        }
        saturate(to, count);
    } else {
        std::memcpy(to, from, sizeof(T) * count);
    }
}

}  // namespace neonext_twin
