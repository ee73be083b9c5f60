// Functions that work lane by lane: arithmetic, larger and smaller, bits, shifts, multiply-add.
//
// half and bfloat16_t lanes are computed in float and rounded once, to nearest even. MulAddDst, Axpy, FusedMulAdd and
// the like round the sum of half lanes but not the product: the product of two halves is exact in float, and no
// document says more. With NEONEXT_TWIN_ROUND_PRODUCT defined, the product is rounded to half first. In float the
// product is rounded, then the sum.
#pragma once

#include "vector.h"

namespace neonext_twin {

/// Return an integer result's low bits, the documented default (CTRL[53]) where the documents name one. The arithmetic
/// is unsigned, because signed overflow is undefined in C++.
template <typename T, typename F>
inline T wrapped(T a, T b, F f)
{
    return static_cast<T>(f(static_cast<uint64_t>(a), static_cast<uint64_t>(b)));
}

template <typename T>
inline compute_t<T> product(compute_t<T> a, compute_t<T> b)
{
    if constexpr (std::is_integral_v<T>) {
        return wrapped<T>(a, b, [](uint64_t x, uint64_t y) { return x * y; });
    } else {
#ifdef NEONEXT_TWIN_ROUND_PRODUCT
        if constexpr (std::is_same_v<T, half>) {
            const float exact = a * b;
            half product;
            narrow(&exact, &product, 1);
            return product;
        }
#endif
        return a * b;
    }
}

template <typename T>
inline compute_t<T> sum(compute_t<T> a, compute_t<T> b)
{
    if constexpr (std::is_integral_v<T>) {
        return wrapped<T>(a, b, [](uint64_t x, uint64_t y) { return x + y; });
    } else {
        return a + b;
    }
}

template <typename T>
inline compute_t<T> difference(compute_t<T> a, compute_t<T> b)
{
    if constexpr (std::is_integral_v<T>) {
        return wrapped<T>(a, b, [](uint64_t x, uint64_t y) { return x - y; });
    } else {
        return a - b;
    }
}

template <typename C>
inline C relu(C value)
{
    return value > C(0) ? value : (value == value ? C(0) : value);
}

template <typename C>
inline C larger(C a, C b)
{
    return a != a ? a : b != b ? b : a > b ? a : b;
}

template <typename C>
inline C smaller(C a, C b)
{
    return a != a ? a : b != b ? b : a < b ? a : b;
}

template <typename T>
constexpr bool is_float_or_half = std::is_same_v<T, half> || std::is_same_v<T, float>;

}  // namespace neonext_twin

// dst = EXPRESSION of x and y, lanes of src0 and src1, and, if ACCUMULATE, of o, the destination's lane before. C is
// the type that lanes of T are computed in. REUSES: the documents let src1 be the destination of earlier repeats.
#define NEONEXT_TWIN_BINARY(NAME, ACCUMULATE, REUSES, EXPRESSION)                                                   \
    namespace neonext_twin {                                                                                        \
    template <typename T>                                                                                           \
    inline void run_##NAME(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src0,                 \
                           const AscendC::LocalTensor<T>& src1, const Form<AscendC::BinaryRepeatParams>& form,      \
                           Where at)                                                                                \
    {                                                                                                               \
        using C = compute_t<T>;                                                                                     \
        NEONEXT_TWIN_ENTER(#NAME, T, at);                                                                           \
        run_binary<ACCUMULATE>(                                                                                     \
            dst, src0, src1, form, []([[maybe_unused]] C o, C x, C y) { return static_cast<C>(EXPRESSION); },       \
            (REUSES) && (is_float_or_half<T> || std::is_same_v<T, int32_t>));                                       \
    }                                                                                                               \
    }                                                                                                               \
    namespace AscendC {                                                                                             \
    NEONEXT_TWIN_FORMS(NAME, BinaryRepeatParams, (typename T),                                                      \
                       (const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1),         \
                       (dst, src0, src1))                                                                           \
    }

// dst = EXPRESSION of x, a lane of src.
#define NEONEXT_TWIN_UNARY(NAME, EXPRESSION)                                                                        \
    namespace neonext_twin {                                                                                        \
    template <typename T>                                                                                           \
    inline void run_##NAME(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,                  \
                           const Form<AscendC::UnaryRepeatParams>& form, Where at)                                  \
    {                                                                                                               \
        using C = compute_t<T>;                                                                                     \
        NEONEXT_TWIN_ENTER(#NAME, T, at);                                                                           \
        run_unary<false>(dst, src, form, [](C, C x) { return static_cast<C>(EXPRESSION); });                        \
    }                                                                                                               \
    }                                                                                                               \
    namespace AscendC {                                                                                             \
    NEONEXT_TWIN_FORMS(NAME, UnaryRepeatParams, (typename T),                                                       \
                       (const LocalTensor<T>& dst, const LocalTensor<T>& src), (dst, src))                          \
    }

// The two forms of a function of a tensor and a scalar.
#define NEONEXT_TWIN_SCALAR_FORMS(NAME)                                                                             \
    NEONEXT_TWIN_MASK_FORM(NAME, UnaryRepeatParams, (typename T),                                                   \
                           (const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue),            \
                           (dst, src, scalarValue))                                                                 \
    NEONEXT_TWIN_SCALAR_COUNT_FORM(NAME, (typename T),                                                              \
                                   (const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue),    \
                                   (dst, src, scalarValue))

// dst = EXPRESSION of x, a lane of src, and s, the scalar.
#define NEONEXT_TWIN_SCALAR(NAME, EXPRESSION)                                                                       \
    namespace neonext_twin {                                                                                        \
    template <typename T>                                                                                           \
    inline void run_##NAME(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const T& scalar, \
                           const Form<AscendC::UnaryRepeatParams>& form, Where at)                                  \
    {                                                                                                               \
        using C = compute_t<T>;                                                                                     \
        NEONEXT_TWIN_ENTER(#NAME, T, at);                                                                           \
        run_unary<false>(dst, src, form,                                                                            \
                         [s = static_cast<C>(scalar)](C, C x) { return static_cast<C>(EXPRESSION); });              \
    }                                                                                                               \
    }                                                                                                               \
    namespace AscendC {                                                                                             \
    NEONEXT_TWIN_SCALAR_FORMS(NAME)                                                                                 \
    }

NEONEXT_TWIN_BINARY(Add, false, true, sum<T>(x, y))
NEONEXT_TWIN_BINARY(Sub, false, true, difference<T>(x, y))
NEONEXT_TWIN_BINARY(Mul, false, true, product<T>(x, y))
NEONEXT_TWIN_BINARY(Div, false, false, x / y)
NEONEXT_TWIN_BINARY(Max, false, true, larger(x, y))
NEONEXT_TWIN_BINARY(Min, false, true, smaller(x, y))
NEONEXT_TWIN_BINARY(And, false, false, static_cast<uint64_t>(x) & static_cast<uint64_t>(y))
NEONEXT_TWIN_BINARY(Or, false, false, static_cast<uint64_t>(x) | static_cast<uint64_t>(y))
NEONEXT_TWIN_BINARY(AddRelu, false, true, relu(sum<T>(x, y)))
NEONEXT_TWIN_BINARY(SubRelu, false, true, relu(difference<T>(x, y)))
// src0 * dst + src1
NEONEXT_TWIN_BINARY(FusedMulAdd, true, false, product<T>(x, o) + y)
NEONEXT_TWIN_BINARY(FusedMulAddRelu, true, false, relu(product<T>(x, o) + y))
NEONEXT_TWIN_BINARY(MulAddRelu, true, false, relu(product<T>(x, o) + y))

NEONEXT_TWIN_UNARY(Relu, relu(x))
NEONEXT_TWIN_UNARY(Exp, std::exp(x))
NEONEXT_TWIN_UNARY(Ln, std::log(x))
NEONEXT_TWIN_UNARY(Abs, std::abs(x))
NEONEXT_TWIN_UNARY(Reciprocal, C(1) / x)
NEONEXT_TWIN_UNARY(Rsqrt, C(1) / std::sqrt(x))
NEONEXT_TWIN_UNARY(Sqrt, std::sqrt(x))
NEONEXT_TWIN_UNARY(Not, ~static_cast<uint64_t>(x))

NEONEXT_TWIN_SCALAR(Adds, sum<T>(x, s))
NEONEXT_TWIN_SCALAR(Muls, product<T>(x, s))
NEONEXT_TWIN_SCALAR(Maxs, larger(x, s))
NEONEXT_TWIN_SCALAR(Mins, smaller(x, s))
NEONEXT_TWIN_SCALAR(LeakyRelu, x >= C(0) ? x : x * s)

namespace neonext_twin {

/// Reject the types that MulAddDst and Axpy do not have: factors have the type of dst, or are half where dst is float.
template <typename T, typename U>
inline void check_multiply_add(const char* name)
{
    constexpr bool same = std::is_same_v<T, U>;
    constexpr bool integer = same && (type_bit<T>() & integers) != 0 && __NPU_ARCH__ == 3002;
    constexpr bool widening = std::is_same_v<T, float> && std::is_same_v<U, half> && __NPU_ARCH__ != 3002;
    if (!((same && is_float_or_half<T>) || integer || widening)) {
        machine.reject(Rule::type_not_on_arch, "__NPU_ARCH__ %d (%s) has no %s of %s into %s", __NPU_ARCH__,
                       machine.soc.c_str(), name, type_name<U>(), type_name<T>());
    }
}

/// dst += a * b
template <typename T, typename U>
inline void run_MulAddDst(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<U>& a,
                          const AscendC::LocalTensor<U>& b, const Form<AscendC::BinaryRepeatParams>& form, Where at)
{
    machine.enter("MulAddDst", at);
    check_multiply_add<T, U>("MulAddDst");
    run_binary<true>(dst, a, b, form,
                     [](compute_t<T> old, compute_t<U> x, compute_t<U> y) { return old + product<T>(x, y); });
}

/// dst += a * scalar
template <typename T, typename U>
inline void run_Axpy(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<U>& a, const U& scalar,
                     const Form<AscendC::UnaryRepeatParams>& form, Where at)
{
    machine.enter("Axpy", at);
    check_multiply_add<T, U>("Axpy");
    const auto s = static_cast<compute_t<U>>(scalar);
    run_unary<true>(dst, a, form, [s](compute_t<T> old, compute_t<U> x) { return old + product<T>(x, s); });
}

template <bool left, typename T>
inline void run_shift(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const T& amount,
                      bool round, const Form<AscendC::UnaryRepeatParams>& form)
{
    const int64_t bits = static_cast<int64_t>(amount);
    constexpr int width = 8 * sizeof(T);
    if (bits < 0 || bits > width) {
        machine.reject(Rule::argument, "a shift by %lld; %s takes 0 to %d", static_cast<long long>(bits),
                       type_name<T>(), width);
    }
    // Half of the last bit that stays, for rounding.
    const int64_t half_unit = round && std::is_signed_v<T> && bits > 0 ? int64_t{1} << (bits - 1) : 0;
    run_unary<false>(dst, src, form, [=](T, T x) {
        if constexpr (left) {
            return bits >= width ? T(0) : static_cast<T>(static_cast<uint64_t>(x) << bits);
        } else {
            return static_cast<T>((static_cast<int64_t>(x) + half_unit) >> bits);
        }
    });
}

template <typename T>
inline void run_ShiftLeft(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const T& amount,
                          const Form<AscendC::UnaryRepeatParams>& form, Where at)
{
    NEONEXT_TWIN_ENTER("ShiftLeft", T, at);
    run_shift<true>(dst, src, amount, false, form);
}

template <typename T>
inline void run_ShiftRight(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const T& amount,
                           const Form<AscendC::UnaryRepeatParams>& form, Where at, bool round = false)
{
    NEONEXT_TWIN_ENTER("ShiftRight", T, at);
    run_shift<false>(dst, src, amount, round, form);
}

/// Write one value to all lanes. Its bits are stored as they are: Duplicate neither rounds nor saturates.
template <typename T>
inline void run_Duplicate(const AscendC::LocalTensor<T>& dst, const T& value, const Lanes& lanes,
                          int64_t block_stride, int64_t repeat_stride)
{
    word_t<sizeof(T)> bits;
    std::memcpy(&bits, &value, sizeof(bits));
    run_lanes<false, word_t<sizeof(T)>>(lanes, operand_of(dst, "dst", block_stride, repeat_stride),
                                        [bits](auto) { return bits; });
}

}  // namespace neonext_twin

namespace AscendC {

NEONEXT_TWIN_FORMS(MulAddDst, BinaryRepeatParams, (typename T, typename U),
                   (const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1),
                   (dst, src0, src1))
NEONEXT_TWIN_FORMS(Axpy, UnaryRepeatParams, (typename T, typename U),
                   (const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue),
                   (dst, src, scalarValue))

NEONEXT_TWIN_SCALAR_FORMS(ShiftLeft)
NEONEXT_TWIN_SCALAR_COUNT_FORM(ShiftRight, (typename T),
                               (const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue),
                               (dst, src, scalarValue))

template <typename T, bool isSetMask = true>
inline void ShiftRight(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, const Mask& mask,
                       Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, bool roundEn = false,
                       Where at = Where::here())
{
    neonext_twin::run_ShiftRight(dst, src, scalarValue,
                                 Form<UnaryRepeatParams>::masked(mask, repeatTime, repeatParams, isSetMask), at,
                                 roundEn);
}

template <typename T, bool isSetMask = true>
inline void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const Mask& mask, Field<uint8_t> repeatTime,
                      Field<uint16_t> dstBlockStride, Field<uint8_t> dstRepeatStride, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("Duplicate", T, at);
    const int64_t block_stride = dstBlockStride.checked("dstBlockStride");
    const int64_t repeat_stride = dstRepeatStride.checked("dstRepeatStride");
    const auto lanes = neonext_twin::lanes_of_mask(neonext_twin::lanes_per_repeat<T>(), mask, repeatTime, isSetMask);
    neonext_twin::run_Duplicate(dst, scalarValue, lanes, block_stride, repeat_stride);
}

template <typename T>
inline void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int64_t count, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("Duplicate", T, at);
    const auto lanes = neonext_twin::lanes_of_count(neonext_twin::lanes_per_repeat<T>(), count);
    neonext_twin::run_Duplicate(dst, scalarValue, lanes, 1, DEFAULT_REPEAT_STRIDE);
}

}  // namespace AscendC
