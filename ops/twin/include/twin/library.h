// Element-wise functions of AscendC's library that public kernels call. The real ones are made of many vector
// instructions and temporary space; here each is one step, computed in double and rounded once, and counted as one
// instruction. Their counts are therefore too low and their last bits may differ from the device's.
#pragma once

#include "vector.h"

namespace neonext_twin {

inline void note_library(const char* name)
{
    machine.note(std::string(name) + ": counted as one instruction; the device's library runs several, so the counts "
                 "of V are too low");
}

template <typename T, typename F>
inline void run_library(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                        int64_t count, Where at, F f)
{
    static_assert(std::is_same_v<T, half> || std::is_same_v<T, float>, "library functions take half and float");
    machine.enter(name, at);
    note_library(name);
    constexpr int per_repeat = lanes_per_repeat<T>();
    const auto operands = unary_operands(dst, src, per_repeat);
    run_unary<false, T, T>(lanes_of_count(per_repeat, count), operands.dst, operands.a,
                           [&](float* out, const float* a, int n) {
                               for (int i = 0; i < n; ++i) {
                                   out[i] = static_cast<float>(f(static_cast<double>(a[i])));
                               }
                           });
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

template <typename T, bool isReuseSource = false>
inline void Power(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const T& src1, uint32_t count,
                  Where at = Where::here())
{
    const double exponent = static_cast<double>(static_cast<float>(src1));
    neonext_twin::run_library("Power", dst, src0, count, at, [=](double x) { return std::pow(x, exponent); });
}

template <typename T, bool isReuseSource = false>
inline void ClampMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T scalar, const uint32_t count,
                     Where at = Where::here())
{
    const double most = static_cast<double>(static_cast<float>(scalar));
    neonext_twin::run_library("ClampMax", dst, src, count, at, [=](double x) { return x > most ? most : x; });
}

template <typename T, bool isReuseSource = false>
inline void ClampMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T scalar, const uint32_t count,
                     Where at = Where::here())
{
    const double least = static_cast<double>(static_cast<float>(scalar));
    neonext_twin::run_library("ClampMin", dst, src, count, at, [=](double x) { return x < least ? least : x; });
}

}  // namespace AscendC
