// Functions that work lane by lane: arithmetic, comparisons that give values, bits, shifts, multiply-add.
//
// half and bfloat16_t lanes are computed in float and rounded once, to nearest even. MulAddDst, Axpy, FusedMulAdd and
// their like round the product and the sum of half lanes once, because the product of two halves is exact in float and
// no document says more; with NEONEXT_TWIN_ROUND_PRODUCT defined the product is rounded to half first. In float the
// product is rounded, then the sum.
#pragma once

#include "vector.h"

namespace neonext_twin {

/// An integer result keeps its low bits, the documented default (CTRL[53]) where the documents name one.
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

}  // namespace neonext_twin

// The three forms of a function of two tensors. EXPRESSION uses x, y (and o, the destination's lane before, when
// ACCUMULATE) of type C, the type that lanes of T are computed in.
#define NEONEXT_TWIN_BINARY(NAME, ACCUMULATE, REUSES, EXPRESSION)                                                   \
    template <typename T>                                                                                           \
    inline void twin_##NAME(const neonext_twin::Lanes& lanes, const neonext_twin::BinaryOperands& operands)         \
    {                                                                                                               \
        using C = neonext_twin::compute_t<T>;                                                                       \
        const bool reuses = (REUSES) && (std::is_same_v<T, half> || std::is_same_v<T, float> ||                     \
                                         std::is_same_v<T, int32_t>) &&                                             \
                            (operands.dst.repeat_stride == 0 || operands.b.repeat_stride == 0);                     \
        neonext_twin::run_binary<ACCUMULATE, T, T, T>(                                                              \
            lanes, operands.dst, operands.a, operands.b,                                                            \
            [](C* out, const C* a, const C* b, int n) {                                                             \
                for (int i = 0; i < n; ++i) {                                                                       \
                    const C x = a[i];                                                                               \
                    const C y = b[i];                                                                               \
                    [[maybe_unused]] const C o = out[i];                                                            \
                    out[i] = static_cast<C>(EXPRESSION);                                                            \
                }                                                                                                   \
            },                                                                                                      \
            reuses);                                                                                                \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,             \
                     const MaskBits& mask, Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams,       \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        const auto operands = neonext_twin::binary_operands(dst, src0, src1, repeatParams);                         \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        twin_##NAME<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands);                  \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,             \
                     uint64_t mask, Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams,              \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        const auto operands = neonext_twin::binary_operands(dst, src0, src1, repeatParams);                         \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        twin_##NAME<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands);                  \
    }                                                                                                               \
    template <typename T>                                                                                           \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,             \
                     const int32_t& count, Where at = Where::here())                                                \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        const auto operands = neonext_twin::binary_operands(dst, src0, src1, per_repeat);                           \
        twin_##NAME<T>(neonext_twin::lanes_of_count(per_repeat, count), operands);                                  \
    }

// The three forms of a function of one tensor; EXPRESSION uses x.
#define NEONEXT_TWIN_UNARY(NAME, EXPRESSION)                                                                        \
    template <typename T>                                                                                           \
    inline void twin_##NAME(const neonext_twin::Lanes& lanes, const neonext_twin::UnaryOperands& operands)          \
    {                                                                                                               \
        using C = neonext_twin::compute_t<T>;                                                                       \
        neonext_twin::run_unary<false, T, T>(lanes, operands.dst, operands.a, [](C* out, const C* a, int n) {       \
            for (int i = 0; i < n; ++i) {                                                                           \
                const C x = a[i];                                                                                   \
                out[i] = static_cast<C>(EXPRESSION);                                                                \
            }                                                                                                       \
        });                                                                                                         \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const MaskBits& mask,                    \
                     Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, Where at = Where::here())    \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        const auto operands = neonext_twin::unary_operands(dst, src, repeatParams);                                 \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        twin_##NAME<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands);                  \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask,                           \
                     Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, Where at = Where::here())    \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        const auto operands = neonext_twin::unary_operands(dst, src, repeatParams);                                 \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        twin_##NAME<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands);                  \
    }                                                                                                               \
    template <typename T>                                                                                           \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count,                    \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        const auto operands = neonext_twin::unary_operands(dst, src, per_repeat);                                   \
        twin_##NAME<T>(neonext_twin::lanes_of_count(per_repeat, count), operands);                                  \
    }

// The three forms of a function of a tensor and a scalar; EXPRESSION uses x and s.
#define NEONEXT_TWIN_SCALAR(NAME, EXPRESSION)                                                                       \
    template <typename T>                                                                                           \
    inline void twin_##NAME(const neonext_twin::Lanes& lanes, const neonext_twin::UnaryOperands& operands,          \
                            const T& scalar)                                                                        \
    {                                                                                                               \
        using C = neonext_twin::compute_t<T>;                                                                       \
        const C s = static_cast<C>(scalar);                                                                         \
        neonext_twin::run_unary<false, T, T>(lanes, operands.dst, operands.a, [s](C* out, const C* a, int n) {      \
            for (int i = 0; i < n; ++i) {                                                                           \
                const C x = a[i];                                                                                   \
                out[i] = static_cast<C>(EXPRESSION);                                                                \
            }                                                                                                       \
        });                                                                                                         \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,                    \
                     const MaskBits& mask, Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,        \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        const auto operands = neonext_twin::unary_operands(dst, src, repeatParams);                                 \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        twin_##NAME<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands, scalarValue);     \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, uint64_t mask,     \
                     Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, Where at = Where::here())    \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        const auto operands = neonext_twin::unary_operands(dst, src, repeatParams);                                 \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        twin_##NAME<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands, scalarValue);     \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,                    \
                     const int32_t& count, Where at = Where::here())                                                \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        const auto operands = neonext_twin::unary_operands(dst, src, per_repeat);                                   \
        twin_##NAME<T>(neonext_twin::scalar_count_lanes<isSetMask>(per_repeat, count), operands, scalarValue);      \
    }

namespace neonext_twin {

/// The count forms of functions with a scalar can leave the mask to the caller.
template <bool set>
inline Lanes scalar_count_lanes(int per_repeat, int64_t count)
{
    if constexpr (set) {
        return lanes_of_count(per_repeat, count);
    } else {
        return lanes_of_register(per_repeat, 1);
    }
}

}  // namespace neonext_twin

namespace AscendC {

NEONEXT_TWIN_BINARY(Add, false, true, neonext_twin::sum<T>(x, y))
NEONEXT_TWIN_BINARY(Sub, false, true, neonext_twin::difference<T>(x, y))
NEONEXT_TWIN_BINARY(Mul, false, true, neonext_twin::product<T>(x, y))
NEONEXT_TWIN_BINARY(Div, false, false, x / y)
NEONEXT_TWIN_BINARY(Max, false, true, neonext_twin::larger(x, y))
NEONEXT_TWIN_BINARY(Min, false, true, neonext_twin::smaller(x, y))
NEONEXT_TWIN_BINARY(And, false, false, static_cast<uint64_t>(x) & static_cast<uint64_t>(y))
NEONEXT_TWIN_BINARY(Or, false, false, static_cast<uint64_t>(x) | static_cast<uint64_t>(y))
NEONEXT_TWIN_BINARY(AddRelu, false, true, neonext_twin::relu(neonext_twin::sum<T>(x, y)))
NEONEXT_TWIN_BINARY(SubRelu, false, true, neonext_twin::relu(neonext_twin::difference<T>(x, y)))
// src0 * dst + src1
NEONEXT_TWIN_BINARY(FusedMulAdd, true, false, neonext_twin::product<T>(x, o) + y)
NEONEXT_TWIN_BINARY(FusedMulAddRelu, true, false, neonext_twin::relu(neonext_twin::product<T>(x, o) + y))
NEONEXT_TWIN_BINARY(MulAddRelu, true, false, neonext_twin::relu(neonext_twin::product<T>(x, o) + y))

NEONEXT_TWIN_UNARY(Relu, neonext_twin::relu(x))
NEONEXT_TWIN_UNARY(Exp, std::exp(x))
NEONEXT_TWIN_UNARY(Ln, std::log(x))
NEONEXT_TWIN_UNARY(Abs, std::abs(x))
NEONEXT_TWIN_UNARY(Reciprocal, C(1) / x)
NEONEXT_TWIN_UNARY(Rsqrt, C(1) / std::sqrt(x))
NEONEXT_TWIN_UNARY(Sqrt, std::sqrt(x))
NEONEXT_TWIN_UNARY(Not, ~static_cast<uint64_t>(x))

NEONEXT_TWIN_SCALAR(Adds, neonext_twin::sum<T>(x, s))
NEONEXT_TWIN_SCALAR(Muls, neonext_twin::product<T>(x, s))
NEONEXT_TWIN_SCALAR(Maxs, neonext_twin::larger(x, s))
NEONEXT_TWIN_SCALAR(Mins, neonext_twin::smaller(x, s))
NEONEXT_TWIN_SCALAR(LeakyRelu, x >= C(0) ? x : x * s)

}  // namespace AscendC

namespace neonext_twin {

constexpr bool has_mixed_multiply_add()
{
    return __NPU_ARCH__ != 3002;
}

/// dst += a * b, with a and b of the type of dst, or of half when dst is float.
template <typename T, typename U>
inline void check_multiply_add(const char* name)
{
    constexpr bool same = std::is_same_v<T, U>;
    constexpr bool floating = same && (std::is_same_v<T, half> || std::is_same_v<T, float>);
    constexpr bool widening = std::is_same_v<T, float> && std::is_same_v<U, half>;
    constexpr bool integer = same && (type_bit<T>() & integers) != 0 && __NPU_ARCH__ == 3002;
    if (!(floating || integer || (widening && has_mixed_multiply_add()))) {
        machine.refuse(Rule::type_not_on_arch, "__NPU_ARCH__ %d (%s) has no %s of %s into %s", __NPU_ARCH__,
                       machine.soc.c_str(), name, type_name<U>(), type_name<T>());
    }
}

template <typename T, typename U>
constexpr int multiply_add_lanes()
{
    return repeat_bytes / (sizeof(T) > sizeof(U) ? sizeof(T) : sizeof(U));
}

template <typename T, typename U>
inline void multiply_add(const Lanes& lanes, const BinaryOperands& operands)
{
    run_binary<true, T, U, U>(lanes, operands.dst, operands.a, operands.b,
                              [](compute_t<T>* out, const compute_t<U>* a, const compute_t<U>* b, int n) {
                                  for (int i = 0; i < n; ++i) {
                                      out[i] = out[i] + product<T>(a[i], b[i]);
                                  }
                              });
}

}  // namespace neonext_twin

namespace AscendC {

template <typename T, typename U, bool isSetMask = true>
inline void MulAddDst(const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1,
                      const MaskBits& mask, Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams,
                      Where at = Where::here())
{
    machine.enter("MulAddDst", at);
    neonext_twin::check_multiply_add<T, U>("MulAddDst");
    const auto operands = neonext_twin::binary_operands(dst, src0, src1, repeatParams);
    constexpr int per_repeat = neonext_twin::multiply_add_lanes<T, U>();
    neonext_twin::multiply_add<T, U>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands);
}

template <typename T, typename U, bool isSetMask = true>
inline void MulAddDst(const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1, uint64_t mask,
                      Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams, Where at = Where::here())
{
    machine.enter("MulAddDst", at);
    neonext_twin::check_multiply_add<T, U>("MulAddDst");
    const auto operands = neonext_twin::binary_operands(dst, src0, src1, repeatParams);
    constexpr int per_repeat = neonext_twin::multiply_add_lanes<T, U>();
    neonext_twin::multiply_add<T, U>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands);
}

template <typename T, typename U>
inline void MulAddDst(const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1,
                      const int32_t& count, Where at = Where::here())
{
    machine.enter("MulAddDst", at);
    neonext_twin::check_multiply_add<T, U>("MulAddDst");
    constexpr int per_repeat = neonext_twin::multiply_add_lanes<T, U>();
    const auto operands = neonext_twin::binary_operands(dst, src0, src1, per_repeat);
    neonext_twin::multiply_add<T, U>(neonext_twin::lanes_of_count(per_repeat, count), operands);
}

template <typename T, typename U>
inline void twin_Axpy(const neonext_twin::Lanes& lanes, const neonext_twin::UnaryOperands& operands, const U& scalar)
{
    using C = neonext_twin::compute_t<T>;
    const neonext_twin::compute_t<U> s = static_cast<neonext_twin::compute_t<U>>(scalar);
    neonext_twin::run_unary<true, T, U>(lanes, operands.dst, operands.a,
                                        [s](C* out, const neonext_twin::compute_t<U>* a, int n) {
                                            for (int i = 0; i < n; ++i) {
                                                out[i] = out[i] + neonext_twin::product<T>(a[i], s);
                                            }
                                        });
}

template <typename T, typename U, bool isSetMask = true>
inline void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, const MaskBits& mask,
                 Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, Where at = Where::here())
{
    machine.enter("Axpy", at);
    neonext_twin::check_multiply_add<T, U>("Axpy");
    const auto operands = neonext_twin::unary_operands(dst, src, repeatParams);
    constexpr int per_repeat = neonext_twin::multiply_add_lanes<T, U>();
    twin_Axpy<T, U>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands, scalarValue);
}

template <typename T, typename U, bool isSetMask = true>
inline void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, uint64_t mask,
                 Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, Where at = Where::here())
{
    machine.enter("Axpy", at);
    neonext_twin::check_multiply_add<T, U>("Axpy");
    const auto operands = neonext_twin::unary_operands(dst, src, repeatParams);
    constexpr int per_repeat = neonext_twin::multiply_add_lanes<T, U>();
    twin_Axpy<T, U>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands, scalarValue);
}

template <typename T, typename U>
inline void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, const int32_t& count,
                 Where at = Where::here())
{
    machine.enter("Axpy", at);
    neonext_twin::check_multiply_add<T, U>("Axpy");
    constexpr int per_repeat = neonext_twin::multiply_add_lanes<T, U>();
    const auto operands = neonext_twin::unary_operands(dst, src, per_repeat);
    twin_Axpy<T, U>(neonext_twin::lanes_of_count(per_repeat, count), operands, scalarValue);
}

}  // namespace AscendC

namespace neonext_twin {

template <typename T>
inline int check_shift(const T& amount)
{
    const int64_t bits = static_cast<int64_t>(amount);
    if (bits < 0 || bits > static_cast<int64_t>(8 * sizeof(T))) {
        machine.refuse(Rule::argument, "a shift by %lld; %s takes 0 to %d", static_cast<long long>(bits),
                       type_name<T>(), static_cast<int>(8 * sizeof(T)));
    }
    return static_cast<int>(bits);
}

template <typename T>
inline T shift_left(T value, int bits)
{
    return bits >= static_cast<int>(8 * sizeof(T)) ? T(0) : static_cast<T>(static_cast<uint64_t>(value) << bits);
}

template <typename T>
inline T shift_right(T value, int bits, bool round)
{
    const int64_t wide = static_cast<int64_t>(value);
    const int64_t half_unit = round && std::is_signed_v<T> && bits > 0 ? int64_t{1} << (bits - 1) : 0;
    return static_cast<T>((wide + half_unit) >> bits);
}

template <typename T>
inline void run_shift(const Lanes& lanes, const UnaryOperands& operands, const T& amount, bool left, bool round)
{
    const int bits = check_shift(amount);
    run_unary<false, T, T>(lanes, operands.dst, operands.a, [=](T* out, const T* a, int n) {
        for (int i = 0; i < n; ++i) {
            out[i] = left ? shift_left(a[i], bits) : shift_right(a[i], bits, round);
        }
    });
}

}  // namespace neonext_twin

#define NEONEXT_TWIN_SHIFT(NAME, LEFT, ROUND_PARAMETER, ROUND)                                                      \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,                    \
                     const MaskBits& mask, Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams         \
                         ROUND_PARAMETER,                                                                           \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        const auto operands = neonext_twin::unary_operands(dst, src, repeatParams);                                 \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        neonext_twin::run_shift<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands,       \
                                   scalarValue, LEFT, ROUND);                                                       \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, uint64_t mask,     \
                     Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams ROUND_PARAMETER,              \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        const auto operands = neonext_twin::unary_operands(dst, src, repeatParams);                                 \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        neonext_twin::run_shift<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operands,       \
                                   scalarValue, LEFT, ROUND);                                                       \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,                    \
                     const int32_t& count, Where at = Where::here())                                                \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        NEONEXT_TWIN_SUPPORT(#NAME, T);                                                                             \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        const auto operands = neonext_twin::unary_operands(dst, src, per_repeat);                                   \
        neonext_twin::run_shift<T>(neonext_twin::scalar_count_lanes<isSetMask>(per_repeat, count), operands,        \
                                   scalarValue, LEFT, false);                                                       \
    }

#define NEONEXT_TWIN_NO_ROUND
#define NEONEXT_TWIN_ROUND , bool roundEn = false

namespace AscendC {

NEONEXT_TWIN_SHIFT(ShiftLeft, true, NEONEXT_TWIN_NO_ROUND, false)
NEONEXT_TWIN_SHIFT(ShiftRight, false, NEONEXT_TWIN_ROUND, roundEn)

template <typename T, bool isSetMask = true>
inline void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, uint64_t mask, Field<uint8_t> repeatTime,
                      Field<uint16_t> dstBlockStride, Field<uint8_t> dstRepeatStride, Where at = Where::here())
{
    machine.enter("Duplicate", at);
    NEONEXT_TWIN_SUPPORT("Duplicate", T);
    const auto operand = neonext_twin::operand_of(dst, "dst", dstBlockStride.checked("dstBlockStride"),
                                                  dstRepeatStride.checked("dstRepeatStride"));
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    neonext_twin::run_fill<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operand, scalarValue);
}

template <typename T, bool isSetMask = true>
inline void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const MaskBits& mask,
                      Field<uint8_t> repeatTime, Field<uint16_t> dstBlockStride, Field<uint8_t> dstRepeatStride,
                      Where at = Where::here())
{
    machine.enter("Duplicate", at);
    NEONEXT_TWIN_SUPPORT("Duplicate", T);
    const auto operand = neonext_twin::operand_of(dst, "dst", dstBlockStride.checked("dstBlockStride"),
                                                  dstRepeatStride.checked("dstRepeatStride"));
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    neonext_twin::run_fill<T>(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), operand, scalarValue);
}

template <typename T>
inline void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int32_t& count, Where at = Where::here())
{
    machine.enter("Duplicate", at);
    NEONEXT_TWIN_SUPPORT("Duplicate", T);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    const auto operand = neonext_twin::operand_of(dst, "dst", 1, DEFAULT_REPEAT_STRIDE);
    neonext_twin::run_fill<T>(neonext_twin::lanes_of_count(per_repeat, count), operand, scalarValue);
}

}  // namespace AscendC
