// Type traits of AscendC that kernels use beside its functions.
#pragma once

#include <type_traits>

namespace AscendC {

template <typename T, typename U>
struct IsSameType : std::is_same<T, U> {};

template <bool condition, typename T, typename U>
struct Conditional : std::conditional<condition, T, U> {};

} // namespace AscendC
