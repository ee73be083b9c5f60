// Cast: conversion between data types with every rounding mode.
#pragma once

#include "vector.h"

namespace neonext_twin {

constexpr uint32_t round_bit(AscendC::RoundMode mode)
{
    return 1u << static_cast<int>(mode);
}

constexpr uint32_t round_none = round_bit(AscendC::RoundMode::CAST_NONE);
constexpr uint32_t round_rint = round_bit(AscendC::RoundMode::CAST_RINT);
constexpr uint32_t round_odd = round_bit(AscendC::RoundMode::CAST_ODD);
constexpr uint32_t round_directed =
    round_bit(AscendC::RoundMode::CAST_FLOOR) | round_bit(AscendC::RoundMode::CAST_CEIL) |
    round_bit(AscendC::RoundMode::CAST_ROUND) | round_bit(AscendC::RoundMode::CAST_TRUNC);
constexpr uint32_t round_five = round_rint | round_directed;

/// The rounding modes of one conversion.
struct CastSupport {
    uint32_t from;
    uint32_t to;
    PerArch modes;
};

constexpr CastSupport cast_table[] = {
    {type_i4, type_half, 0, round_none, 0},
    {type_half, type_i4, 0, round_five | round_none, 0},
    {type_i8, type_half, round_none, round_none, round_none},
    {type_u8, type_half, round_none, round_none, round_none},
    {type_i16, type_half, round_none, round_five | round_none, round_five | round_none},
    {type_i16, type_float, 0, round_none, round_none},
    {type_half, type_i8, round_directed | round_none, round_five | round_none, round_five | round_none},
    {type_half, type_u8, round_directed | round_none, round_five | round_none, round_five | round_none},
    {type_half, type_i16, round_rint, round_five, round_five},
    {type_half, type_i32, round_five, round_five, round_five},
    {type_half, type_float, round_none, round_none, round_none},
    {type_bf16, type_i32, 0, round_five, round_five},
    {type_bf16, type_float, 0, round_none, round_none},
    {type_i32, type_i16, round_none, round_none, round_none},
    // With SetDeqScale, and then the rounding mode has no effect; on 3002 without it, by way of float.
    {type_i32, type_half, ~0u, ~0u, round_five},
    {type_i32, type_float, round_none, round_five | round_none, round_five | round_none},
    {type_i32, type_i64, 0, round_none, round_none},
    {type_float, type_i16, 0, round_five, round_five},
    {type_float, type_half, round_none | round_odd, round_five | round_none | round_odd,
     round_five | round_none | round_odd},
    {type_float, type_bf16, 0, round_five, round_five},
    {type_float, type_i32, round_five, round_five, round_five},
    {type_float, type_float, 0, round_five, round_five},
    {type_float, type_i64, 0, round_five, round_five},
    {type_i64, type_i32, 0, round_none, round_none},
    {type_i64, type_float, 0, round_five, round_five},
};

inline const char* round_name(AscendC::RoundMode mode)
{
    static const char* const names[] = {"CAST_NONE", "CAST_RINT", "CAST_FLOOR", "CAST_CEIL",
                                        "CAST_ROUND", "CAST_TRUNC", "CAST_ODD"};
    return static_cast<int>(mode) < 7 ? names[static_cast<int>(mode)] : "an unknown mode";
}

template <typename D, typename A>
inline void check_cast(AscendC::RoundMode mode)
{
    const auto row = std::find_if(std::begin(cast_table), std::end(cast_table), [](const CastSupport& one) {
        return one.from == type_bit<A>() && one.to == type_bit<D>();
    });
    if (row == std::end(cast_table) || row->modes.here() == 0) {
        machine.reject(Rule::type_not_on_arch, "__NPU_ARCH__ %d (%s) has no conversion from %s to %s", __NPU_ARCH__,
                       machine.soc.c_str(), type_name<A>(), type_name<D>());
    } else if ((row->modes.here() & round_bit(mode)) == 0) {
        machine.reject(Rule::type_not_on_arch, "__NPU_ARCH__ %d (%s) has no %s from %s to %s", __NPU_ARCH__,
                       machine.soc.c_str(), round_name(mode), type_name<A>(), type_name<D>());
    }
}

/// Round a value to an integer. The type is wide, so that int64_t is exact where the host allows.
inline long double round_integer(long double value, AscendC::RoundMode mode)
{
    using AscendC::RoundMode;
    switch (mode) {
        case RoundMode::CAST_FLOOR: return std::floor(value);
        case RoundMode::CAST_CEIL: return std::ceil(value);
        case RoundMode::CAST_ROUND: return std::round(value);
        case RoundMode::CAST_TRUNC: return std::trunc(value);
        case RoundMode::CAST_ODD: {
            const long double down = std::floor(value);
            return down == value || std::fmod(down, 2.0L) != 0.0L ? down : down + 1.0L;
        }
        default: return std::nearbyint(value);
    }
}

/// A binary format: significant bits, exponent of the smallest normal number (as frexp counts), largest number.
struct Format {
    int digits;
    int least;
    double largest;
};

constexpr Format format_half{11, -13, 65504.0};
constexpr Format format_bfloat{8, -125, 3.3895313892515355e38};
constexpr Format format_float{24, -125, 3.4028234663852886e38};

inline float round_format(long double value, const Format& format, AscendC::RoundMode mode)
{
    if (!std::isfinite(value) || value == 0.0L) {
        return static_cast<float>(value);
    }
    int exponent = 0;
    std::frexp(value, &exponent);
    const int unit = std::max(exponent, format.least) - format.digits;
    const long double rounded = std::ldexp(round_integer(std::ldexp(value, -unit), mode), unit);
    if (std::abs(rounded) <= format.largest) {
        return static_cast<float>(std::copysign(rounded, value));
    }
    using AscendC::RoundMode;
    const bool stays = mode == RoundMode::CAST_TRUNC || mode == RoundMode::CAST_ODD ||
                       (mode == RoundMode::CAST_FLOOR && value > 0) || (mode == RoundMode::CAST_CEIL && value < 0);
    const double limit = stays ? format.largest : std::numeric_limits<double>::infinity();
    return static_cast<float>(std::copysign(limit, static_cast<double>(value)));
}

/// Convert a lane to an integer type: round, then saturate; not a number becomes 0.
template <typename D>
inline D to_integer(double value, AscendC::RoundMode mode)
{
    if (value != value) {
        return 0;
    }
    const long double rounded = round_integer(value, mode);
    if (rounded <= static_cast<long double>(std::numeric_limits<D>::min())) {
        return std::numeric_limits<D>::min();
    }
    if (rounded >= static_cast<long double>(std::numeric_limits<D>::max())) {
        return std::numeric_limits<D>::max();
    }
    return static_cast<D>(rounded);
}

template <typename D, typename A>
inline compute_t<D> convert_lane(compute_t<A> value, AscendC::RoundMode mode)
{
    using AscendC::RoundMode;
    if constexpr (std::is_integral_v<D> && std::is_integral_v<A>) {
        return static_cast<D>(std::clamp<int64_t>(value, std::numeric_limits<D>::min(), std::numeric_limits<D>::max()));
    } else if constexpr (std::is_integral_v<D>) {
        return to_integer<D>(value, mode);
    } else if constexpr (std::is_same_v<D, half> && std::is_same_v<A, int32_t>) {
        if constexpr (__NPU_ARCH__ == 3002) {
            return round_format(round_format(value, format_float, mode), format_half, mode);
        }
        return static_cast<float>(value) * float(machine.deq_scale);
    } else if constexpr (std::is_same_v<D, float> && std::is_same_v<A, float>) {
        return static_cast<float>(round_integer(value, mode));
    } else if constexpr (std::is_same_v<D, half> || std::is_same_v<D, bfloat16_t> ||
                         (std::is_same_v<D, float> && std::is_integral_v<A>)) {
        // Narrowing rounds to nearest even by itself.
        if (mode == RoundMode::CAST_NONE || mode == RoundMode::CAST_RINT) {
            return static_cast<float>(value);
        }
        constexpr Format format = std::is_same_v<D, half>         ? format_half
                                  : std::is_same_v<D, bfloat16_t> ? format_bfloat
                                                                  : format_float;
        return round_format(static_cast<long double>(value), format, mode);
    } else {
        return static_cast<compute_t<D>>(value);
    }
}

/// Return the byte of a tensor of int4b_t in which a lane lies; a block of 32 bytes holds 64 lanes.
inline uint64_t byte_of_int4(int repeat, int lane, int64_t block_stride, int64_t repeat_stride)
{
    return static_cast<uint64_t>(repeat * repeat_stride + lane / 64 * block_stride) * block_bytes + lane % 64 / 2;
}

/// Convert between half and int4b_t, whose lanes are half bytes, so that the blocks of a repeat are 8 and 2.
template <typename D, typename A>
inline void run_cast_int4(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& src,
                          AscendC::RoundMode mode, const Form<AscendC::UnaryRepeatParams>& form)
{
    constexpr bool narrows = std::is_same_v<D, AscendC::int4b_t>;
    constexpr int n = lanes_per_repeat<half>();
    AscendC::UnaryRepeatParams strides(1, 1, narrows ? 2 : 8, narrows ? 8 : 2);
    strides = form.strides == nullptr ? strides : *form.strides;
    const UnaryOperands operands = unary_operands(dst, src, &strides, n);
    const Lanes lanes = form.lanes(n);
    const uint32_t tick = machine.issue(pipe_v);
    count_vector(lanes);
    if constexpr (narrows) {
        Source<half> source(operands.a);
        check_operand<Access::read>(tick, lanes, source.operand);
        for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
            const float* values = source.load(repeat, n);
            for (int lane = 0; lane < n; ++lane) {
                if ((lanes.bits(repeat, lane) & 1) == 0) {
                    continue;
                }
                const int number = std::clamp<int>(to_integer<int8_t>(values[lane], mode), -8, 7);
                const uint64_t at = byte_of_int4(repeat, lane, operands.dst.block_stride, operands.dst.repeat_stride);
                uint8_t& pair = *dst.twin_view().write(pipe_v, tick, at, 1, "dst");
                pair = static_cast<uint8_t>(lane % 2 == 0 ? (pair & 0xf0) | (number & 15) : (pair & 15) | number << 4);
            }
        }
    } else {
        check_operand<Access::write>(tick, lanes, operands.dst);
        for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
            half stored[n] = {};
            for (int lane = 0; lane < n; ++lane) {
                if ((lanes.bits(repeat, lane) & 1) != 0) {
                    const uint64_t at = byte_of_int4(repeat, lane, operands.a.block_stride, operands.a.repeat_stride);
                    const int number = *src.twin_view().read(pipe_v, tick, at, 1, "src") >> (lane % 2 * 4) & 15;
                    stored[lane] = half(number < 8 ? number : number - 16);
                }
            }
            scatter_repeat<half>(operands.dst, repeat, Pattern(lanes, repeat, sizeof(half)), stored);
        }
    }
}

/// Convert lane by lane. Operands of different sizes may overlap as long as no repeat reads what an earlier one wrote.
template <typename D, typename A>
inline void run_Cast(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& src, AscendC::RoundMode mode,
                     const Form<AscendC::UnaryRepeatParams>& form, Where at)
{
    machine.enter("Cast", at);
    check_cast<D, A>(mode);
    if (std::is_same_v<D, half> && std::is_same_v<A, int32_t> && __NPU_ARCH__ != 3002 && !machine.has_deq_scale) {
        machine.reject(Rule::unwritten, "from int32_t to half multiplies by the scale that SetDeqScale sets, and the "
                                        "kernel has not called it");
    }
    if constexpr (std::is_same_v<D, AscendC::int4b_t> || std::is_same_v<A, AscendC::int4b_t>) {
        run_cast_int4(dst, src, mode, form);
    } else {
        run_unary<false>(dst, src, form,
                         [mode](compute_t<D>, compute_t<A> x) { return convert_lane<D, A>(x, mode); });
    }
}

}  // namespace neonext_twin

namespace AscendC {

NEONEXT_TWIN_FORMS(Cast, UnaryRepeatParams, (typename T, typename U),
                   (const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode),
                   (dst, src, roundMode))

inline void SetDeqScale(half scale, Where at = Where::here())
{
    machine.enter("SetDeqScale", at);
    if (__NPU_ARCH__ == 3002) {
        machine.reject(Rule::not_on_arch, "__NPU_ARCH__ 3002 (%s) has no SetDeqScale", machine.soc.c_str());
    }
    machine.deq_scale = scale;
    machine.has_deq_scale = true;
}

}  // namespace AscendC
