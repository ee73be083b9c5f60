// Scalar functions, the operators of tensors, and names that public kernels take from AscendC's own library.
#pragma once

#include "convert.h"
#include "elementwise.h"
#include "pipe.h"
#include "select.h"

namespace AscendC {

namespace Std {

using std::conditional;
using std::conditional_t;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_base_of;
using std::is_convertible;
using std::is_floating_point;
using std::is_integral;
using std::is_same;
using std::is_same_v;
using std::is_void;
using std::remove_cv_t;
using std::remove_reference_t;
using std::true_type;

template <typename T>
constexpr T min(const T a, const T b)
{
    return a < b ? a : b;
}

template <typename T>
constexpr T max(const T a, const T b)
{
    return a > b ? a : b;
}

}  // namespace Std

template <int countValue>
inline int64_t GetBitCount(uint64_t valueIn)
{
    return countValue == 1 ? __builtin_popcountll(valueIn) : 64 - __builtin_popcountll(valueIn);
}

inline int64_t CountLeadingZero(uint64_t valueIn)
{
    return valueIn == 0 ? 64 : __builtin_clzll(valueIn);
}

/// Return the place of the lowest bit that is `countValue`, or -1.
template <int countValue>
inline int64_t GetSFFValue(uint64_t valueIn)
{
    const uint64_t bits = countValue == 1 ? valueIn : ~valueIn;
    return bits == 0 ? -1 : __builtin_ctzll(bits);
}

// The older names.
template <int countValue>
inline int64_t ScalarGetCountOfValue(uint64_t valueIn) { return GetBitCount<countValue>(valueIn); }
inline int64_t ScalarCountLeadingZero(uint64_t valueIn) { return CountLeadingZero(valueIn); }
template <int countValue>
inline int64_t ScalarGetSFFValue(uint64_t valueIn) { return GetSFFValue<countValue>(valueIn); }

template <typename T, typename U, RoundMode roundMode>
inline U ScalarCast(T valueIn)
{
    if constexpr (std::is_integral_v<U>) {
        return neonext_twin::to_integer<U>(static_cast<double>(valueIn), roundMode);
    } else {
        return static_cast<U>(neonext_twin::convert_lane<U, T>(static_cast<neonext_twin::compute_t<T>>(valueIn),
                                                               roundMode));
    }
}

template <typename T, typename U, RoundMode roundMode>
inline U Cast(T valueIn)
{
    return ScalarCast<T, U, roundMode>(valueIn);
}

inline bfloat16_t ToBfloat16(const float& value) { return bfloat16_t(value); }
inline float ToFloat(const bfloat16_t& value) { return float(value); }

/// The result of an operator on two tensors: its assignment runs the function on the whole destination.
template <typename T>
class SymbolOverride {
public:
    using Function = void (*)(const LocalTensor<T>&, const LocalTensor<T>&, const LocalTensor<T>&, int64_t, Where);

    SymbolOverride(Function function, const LocalTensor<T>& a, const LocalTensor<T>& b)
        : function_(function), a_(a), b_(b)
    {}

    void run(const LocalTensor<T>& dst) const
    {
        // An operator cannot know its line, so errors name the line of the call before it.
        function_(dst, a_, b_, dst.GetSize(), Where{});
    }

private:
    Function function_;
    LocalTensor<T> a_;
    LocalTensor<T> b_;
};

template <typename T>
inline void LocalTensor<T>::operator=(const SymbolOverride<T>& expression)
{
    expression.run(*this);
}

#define NEONEXT_TWIN_OPERATOR(SYMBOL, FUNCTION)                                                             \
    template <typename T>                                                                                   \
    inline SymbolOverride<T> operator SYMBOL(const LocalTensor<T>& a, const LocalTensor<T>& b)              \
    {                                                                                                       \
        return SymbolOverride<T>(&FUNCTION<T>, a, b);                                                       \
    }
NEONEXT_TWIN_OPERATOR(+, Add)
NEONEXT_TWIN_OPERATOR(-, Sub)
NEONEXT_TWIN_OPERATOR(*, Mul)
NEONEXT_TWIN_OPERATOR(/, Div)
NEONEXT_TWIN_OPERATOR(&, And)
NEONEXT_TWIN_OPERATOR(|, Or)

/// Take the rest of the unified buffer behind the TPipe's buffers.
template <typename T, TPosition pos>
inline bool PopStackBuffer(LocalTensor<T>& popLocal, Where at = Where::here())
{
    machine.enter("PopStackBuffer", at);
    const uint32_t end = std::max(machine.usable_end(), machine.ub_end);
    const uint32_t elements = (end - machine.ub_end) / sizeof(T);
    if (elements == 0) {
        machine.reject(Rule::ub_overrun, "no unified buffer is left");
    }
    popLocal = LocalTensor<T>(pos, machine.ub_end, elements, at);
    return true;
}

}  // namespace AscendC
