// Element-wise functions of AscendC's library that public kernels call. The real ones consist of many vector
// instructions and use temporary space. Here each is one step, computed in double, rounded once and counted as one
// instruction, so the counts are too low and the last bits may differ from the device's.
#pragma once

#include "elementwise.h"

namespace neonext_twin {

/// Start a function of the library. 3002 has few of them, and Rint is one of the 950: the real headers leave the bodies
/// of the others empty there, so that nothing is computed and nothing is said.
inline void enter_library(const char* name, Where at)
{
    machine.enter(name, at);
    const bool here =
        __NPU_ARCH__ == 3002 ? has_name("Floor Xor SoftMax SimpleSoftMax", name) : !has_name("Rint", name);
    if (!here) {
        machine.reject(Rule::not_on_arch, "__NPU_ARCH__ %d (%s) has no %s", __NPU_ARCH__, machine.soc.c_str(), name);
    }
    machine.note(std::string(name) + ": counted as one instruction; the device's library runs several, so the counts "
                 "of V are too low");
}

template <typename T, typename F>
inline void run_library(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                        int64_t count, Where at, F f)
{
    static_assert(is_float_or_half<T>, "library functions take half and float");
    enter_library(name, at);
    run_unary<false>(dst, src, Form<AscendC::UnaryRepeatParams>::counted(count),
                     [&](float, float x) { return static_cast<float>(f(static_cast<double>(x))); });
}

/// dst = f(a, b), a function of the library of two tensors.
template <typename T, typename F>
inline void run_library(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src0,
                        const AscendC::LocalTensor<T>& src1, int64_t count, Where at, F f)
{
    static_assert(is_float_or_half<T>, "library functions take half and float");
    enter_library(name, at);
    run_binary<false>(dst, src0, src1, Form<AscendC::BinaryRepeatParams>::counted(count), [&](float, float x, float y) {
        return static_cast<float>(f(static_cast<double>(x), static_cast<double>(y)));
    });
}

inline double swish(double x, double beta)
{
    return x / (1.0 + std::exp(-beta * x));
}

/// The library's GELU is the form with tanh, up to 4.7e-4 from the one with erf.
inline double gelu(double x)
{
    return swish(x, 1.5957691216057308 * (1.0 + 0.044715 * x * x));
}

inline double faster_gelu_v2(double x)
{
    const double distance = std::min(std::abs(0.7071 * x), 1.769) - 1.769;
    return x * (0.5 + std::copysign(0.5 - 0.1444 * distance * distance, x));
}

inline double sign(double x)
{
    return x > 0 ? 1.0 : x < 0 ? -1.0 : x;
}

}  // namespace neonext_twin

// A function of one tensor with and without a count, with and without temporary space; EXPRESSION uses x.
#define NEONEXT_TWIN_LIBRARY(NAME, EXPRESSION)                                                                      \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count,                    \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        neonext_twin::run_library(#NAME, dst, src, count, at, [](double x) { return EXPRESSION; });                 \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, Where at = Where::here())                \
    {                                                                                                               \
        NAME<T, isReuseSource, config...>(dst, src, src.GetSize(), at);                                             \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint8_t>&,             \
                     const uint32_t count, Where at = Where::here())                                                \
    {                                                                                                               \
        NAME<T, isReuseSource, config...>(dst, src, count, at);                                                     \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint8_t>&,             \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        NAME<T, isReuseSource, config...>(dst, src, src.GetSize(), at);                                             \
    }

namespace AscendC {

NEONEXT_TWIN_LIBRARY(Tanh, std::tanh(x))
NEONEXT_TWIN_LIBRARY(Sinh, std::sinh(x))
NEONEXT_TWIN_LIBRARY(Cosh, std::cosh(x))
NEONEXT_TWIN_LIBRARY(Sin, std::sin(x))
NEONEXT_TWIN_LIBRARY(Cos, std::cos(x))
NEONEXT_TWIN_LIBRARY(Tan, std::tan(x))
NEONEXT_TWIN_LIBRARY(Asin, std::asin(x))
NEONEXT_TWIN_LIBRARY(Acos, std::acos(x))
NEONEXT_TWIN_LIBRARY(Atan, std::atan(x))
NEONEXT_TWIN_LIBRARY(Asinh, std::asinh(x))
NEONEXT_TWIN_LIBRARY(Acosh, std::acosh(x))
NEONEXT_TWIN_LIBRARY(Atanh, std::atanh(x))
NEONEXT_TWIN_LIBRARY(Erf, std::erf(x))
NEONEXT_TWIN_LIBRARY(Erfc, std::erfc(x))
NEONEXT_TWIN_LIBRARY(Ceil, std::ceil(x))
NEONEXT_TWIN_LIBRARY(Floor, std::floor(x))
NEONEXT_TWIN_LIBRARY(Round, std::nearbyint(x))
NEONEXT_TWIN_LIBRARY(Rint, std::nearbyint(x))
NEONEXT_TWIN_LIBRARY(Trunc, std::trunc(x))
NEONEXT_TWIN_LIBRARY(Frac, x - std::trunc(x))
NEONEXT_TWIN_LIBRARY(Sign, neonext_twin::sign(x))
NEONEXT_TWIN_LIBRARY(Log, std::log(x))
NEONEXT_TWIN_LIBRARY(Log2, std::log2(x))
NEONEXT_TWIN_LIBRARY(Log10, std::log10(x))
NEONEXT_TWIN_LIBRARY(Sigmoid, 1.0 / (1.0 + std::exp(-x)))
NEONEXT_TWIN_LIBRARY(Silu, neonext_twin::swish(x, 1.0))
NEONEXT_TWIN_LIBRARY(Gelu, neonext_twin::gelu(x))
NEONEXT_TWIN_LIBRARY(FasterGelu, neonext_twin::swish(x, 1.702))
NEONEXT_TWIN_LIBRARY(FasterGeluV2, neonext_twin::faster_gelu_v2(x))

// Functions with a scalar; EXPRESSION uses x and s.
#define NEONEXT_TWIN_LIBRARY_SCALAR(NAME, EXPRESSION)                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, const uint32_t count,   \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        const double s = static_cast<double>(static_cast<float>(scalar));                                           \
        neonext_twin::run_library(#NAME, dst, src, count, at, [s](double x) { return EXPRESSION; });                \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar,                         \
                     const LocalTensor<uint8_t>&, const uint32_t count, Where at = Where::here())                   \
    {                                                                                                               \
        NAME<T, isReuseSource, config...>(dst, src, scalar, count, at);                                             \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint8_t>&,             \
                     const T& scalar, const uint32_t count, Where at = Where::here())                               \
    {                                                                                                               \
        NAME<T, isReuseSource, config...>(dst, src, scalar, count, at);                                             \
    }

// A function of two tensors in the same forms; EXPRESSION uses x and y.
#define NEONEXT_TWIN_LIBRARY_BINARY(NAME, EXPRESSION)                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,             \
                     const uint32_t count, Where at = Where::here())                                                \
    {                                                                                                               \
        neonext_twin::run_library(#NAME, dst, src0, src1, count, at, [](double x, double y) { return EXPRESSION; }); \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,             \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        NAME<T, isReuseSource, config...>(dst, src0, src1, src0.GetSize(), at);                                     \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,             \
                     const LocalTensor<uint8_t>&, const uint32_t count, Where at = Where::here())                   \
    {                                                                                                               \
        NAME<T, isReuseSource, config...>(dst, src0, src1, count, at);                                              \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false, auto... config>                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,             \
                     const LocalTensor<uint8_t>&, Where at = Where::here())                                         \
    {                                                                                                               \
        NAME<T, isReuseSource, config...>(dst, src0, src1, src0.GetSize(), at);                                     \
    }

NEONEXT_TWIN_LIBRARY_BINARY(GeGLU, x * neonext_twin::gelu(y))
NEONEXT_TWIN_LIBRARY_BINARY(ReGlu, x * std::max(y, 0.0))
NEONEXT_TWIN_LIBRARY_BINARY(Fmod, std::fmod(x, y))
NEONEXT_TWIN_LIBRARY_BINARY(Power, std::pow(x, y))

NEONEXT_TWIN_LIBRARY_SCALAR(Power, std::pow(x, s))
NEONEXT_TWIN_LIBRARY_SCALAR(ClampMax, x > s ? s : x)
NEONEXT_TWIN_LIBRARY_SCALAR(ClampMin, x < s ? s : x)

// Power also takes a number as the base, and tensors without a count.
#define NEONEXT_TWIN_POWER(PARAMETERS, ARGUMENTS, TENSOR)                                                           \
    template <typename T, bool isReuseSource = false>                                                               \
    inline void Power(const LocalTensor<T>& dst, NEONEXT_TWIN_BARE PARAMETERS, Where at = Where::here())             \
    {                                                                                                               \
        Power<T, isReuseSource>(dst, NEONEXT_TWIN_BARE ARGUMENTS, TENSOR.GetSize(), at);                            \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false>                                                               \
    inline void Power(const LocalTensor<T>& dst, NEONEXT_TWIN_BARE PARAMETERS, const LocalTensor<uint8_t>&,         \
                      Where at = Where::here())                                                                     \
    {                                                                                                               \
        Power<T, isReuseSource>(dst, NEONEXT_TWIN_BARE ARGUMENTS, TENSOR.GetSize(), at);                            \
    }

template <typename T, bool isReuseSource = false>
inline void Power(const LocalTensor<T>& dst, const T& base, const LocalTensor<T>& src, const uint32_t count,
                  Where at = Where::here())
{
    const double b = static_cast<double>(static_cast<float>(base));
    neonext_twin::run_library("Power", dst, src, count, at, [b](double x) { return std::pow(b, x); });
}

template <typename T, bool isReuseSource = false>
inline void Power(const LocalTensor<T>& dst, const T& base, const LocalTensor<T>& src, const LocalTensor<uint8_t>&,
                  const uint32_t count, Where at = Where::here())
{
    Power<T, isReuseSource>(dst, base, src, count, at);
}

NEONEXT_TWIN_POWER((const T& base, const LocalTensor<T>& src), (base, src), src)
NEONEXT_TWIN_POWER((const LocalTensor<T>& src, const T& exponent), (src, exponent), src)

/// Exp of the library, whose accuracy a level of the series chooses; the simulator rounds once.
template <typename T, uint8_t taylorExpandLevel, bool isReuseSource = false>
inline void Exp(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count, Where at = Where::here())
{
    if (__NPU_ARCH__ != 2201) {
        machine.enter("Exp with taylorExpandLevel", at);
        machine.reject(Rule::not_on_arch, "__NPU_ARCH__ %d (%s) does not have it", __NPU_ARCH__, machine.soc.c_str());
    }
    neonext_twin::run_library("Exp", dst, src, count, at, [](double x) { return std::exp(x); });
}

template <typename T, uint8_t taylorExpandLevel, bool isReuseSource = false>
inline void Exp(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint8_t>&,
                const uint32_t count, Where at = Where::here())
{
    Exp<T, taylorExpandLevel, isReuseSource>(dst, src, count, at);
}

/// Axpy with temporary space, which its library form asks for.
template <typename T, typename U, bool isReuseSource = false>
inline void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue,
                 const LocalTensor<uint8_t>&, const uint32_t count, Where at = Where::here())
{
    neonext_twin::run_Axpy(dst, src, scalarValue, Form<UnaryRepeatParams>::counted(count), at);
}

/// dst = a ^ b, bit by bit.
template <typename T, bool isReuseSource = false>
inline void Xor(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                const uint32_t count, Where at = Where::here())
{
    static_assert(std::is_same_v<T, int16_t> || std::is_same_v<T, uint16_t>, "Xor takes int16_t and uint16_t");
    neonext_twin::enter_library("Xor", at);
    neonext_twin::run_binary<false>(dst, src0, src1, Form<BinaryRepeatParams>::counted(count),
                                    [](T, T x, T y) { return static_cast<T>(x ^ y); });
}

template <typename T, bool isReuseSource = false>
inline void Xor(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                Where at = Where::here())
{
    Xor<T, isReuseSource>(dst, src0, src1, src0.GetSize(), at);
}

template <typename T, bool isReuseSource = false>
inline void Xor(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                const LocalTensor<uint8_t>&, const uint32_t count, Where at = Where::here())
{
    Xor<T, isReuseSource>(dst, src0, src1, count, at);
}

template <typename T, bool isReuseSource = false>
inline void Xor(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                const LocalTensor<uint8_t>&, Where at = Where::here())
{
    Xor<T, isReuseSource>(dst, src0, src1, src0.GetSize(), at);
}

template <typename T, bool isReuseSource = false>
inline void Swish(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count, const T& beta,
                  Where at = Where::here())
{
    const double b = static_cast<double>(static_cast<float>(beta));
    neonext_twin::run_library("Swish", dst, src, count, at, [b](double x) { return neonext_twin::swish(x, b); });
}

template <typename T, bool isReuseSource = false>
inline void SwiGLU(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                   const float& beta, const uint32_t count, Where at = Where::here())
{
    neonext_twin::run_library("SwiGLU", dst, src0, src1, count, at,
                              [beta](double x, double y) { return x * neonext_twin::swish(y, beta); });
}

template <typename T, bool isReuseSource = false>
inline void SwiGLU(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                   const float& beta, const LocalTensor<uint8_t>&, const uint32_t count, Where at = Where::here())
{
    SwiGLU<T>(dst, src0, src1, beta, count, at);
}

template <typename T, bool isReuseSource = false>
inline void SwiGLU(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                   const float& beta, const LocalTensor<uint8_t>&, Where at = Where::here())
{
    SwiGLU<T>(dst, src0, src1, beta, src0.GetSize(), at);
}

template <typename T, bool isReuseSource = false>
inline void SwiGLU(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                   const float& beta, Where at = Where::here())
{
    SwiGLU<T>(dst, src0, src1, beta, src0.GetSize(), at);
}

}  // namespace AscendC
