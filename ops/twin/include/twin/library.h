// Element-wise functions of AscendC's library that public kernels call. The real ones consist of many vector
// instructions and use temporary space. Here each is one step, computed in double, rounded once and counted as one
// instruction, so the counts are too low and the last bits may differ from the device's.
#pragma once

#include "elementwise.h"

namespace neonext_twin {

template <typename T, typename F>
inline void run_library(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                        int64_t count, Where at, F f)
{
    static_assert(is_float_or_half<T>, "library functions take half and float");
    machine.enter(name, at);
    machine.note(std::string(name) + ": counted as one instruction; the device's library runs several, so the counts "
                 "of V are too low");
    run_unary<false>(dst, src, Form<AscendC::UnaryRepeatParams>::counted(count),
                     [&](float, float x) { return static_cast<float>(f(static_cast<double>(x))); });
}

inline double gelu(double x)
{
    return 0.5 * x * (1.0 + std::erf(x * 0.70710678118654752));
}

inline double sign(double x)
{
    return x > 0 ? 1.0 : x < 0 ? -1.0 : x;
}

}  // namespace neonext_twin

// A function of one tensor with and without a count, with and without temporary space; EXPRESSION uses x.
#define NEONEXT_TWIN_LIBRARY(NAME, EXPRESSION)                                                                      \
    template <typename T, bool isReuseSource = false>                                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count,                    \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        neonext_twin::run_library(#NAME, dst, src, count, at, [](double x) { return EXPRESSION; });                 \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false>                                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, Where at = Where::here())                \
    {                                                                                                               \
        NAME<T, isReuseSource>(dst, src, src.GetSize(), at);                                                        \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false>                                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint8_t>&,             \
                     const uint32_t count, Where at = Where::here())                                                \
    {                                                                                                               \
        NAME<T, isReuseSource>(dst, src, count, at);                                                                \
    }                                                                                                               \
    template <typename T, bool isReuseSource = false>                                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint8_t>&,             \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        NAME<T, isReuseSource>(dst, src, src.GetSize(), at);                                                        \
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
NEONEXT_TWIN_LIBRARY(Silu, x / (1.0 + std::exp(-x)))
NEONEXT_TWIN_LIBRARY(Gelu, neonext_twin::gelu(x))

// Functions with a scalar; EXPRESSION uses x and s.
#define NEONEXT_TWIN_LIBRARY_SCALAR(NAME, EXPRESSION)                                                               \
    template <typename T, bool isReuseSource = false>                                                               \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, const uint32_t count,   \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        const double s = static_cast<double>(static_cast<float>(scalar));                                           \
        neonext_twin::run_library(#NAME, dst, src, count, at, [s](double x) { return EXPRESSION; });                \
    }

NEONEXT_TWIN_LIBRARY_SCALAR(Power, std::pow(x, s))
NEONEXT_TWIN_LIBRARY_SCALAR(ClampMax, x > s ? s : x)
NEONEXT_TWIN_LIBRARY_SCALAR(ClampMin, x < s ? s : x)

}  // namespace AscendC
