// The data types of every function on every architecture, as one table. It follows the type checks in asc-devkit's
// impl/basic_api for dav_m200 (2002), dav_c220 (2201) and dav_m300 (3002), and the tables of its documents.
#pragma once

#include <string_view>

#include "types.h"

namespace neonext_twin {

enum TypeBit : uint32_t {
    type_half = 1u << 0,
    type_float = 1u << 1,
    type_bf16 = 1u << 2,
    type_i8 = 1u << 3,
    type_u8 = 1u << 4,
    type_i16 = 1u << 5,
    type_u16 = 1u << 6,
    type_i32 = 1u << 7,
    type_u32 = 1u << 8,
    type_i64 = 1u << 9,
    type_u64 = 1u << 10,
    type_double = 1u << 11,
    type_i4 = 1u << 12,
};

/// A data type: its bit in the tables below, and its name in errors.
struct Type {
    uint32_t bit;
    const char* name;
};

template <typename T>
constexpr Type type_of()
{
    if constexpr (std::is_same_v<T, half>) {
        return {type_half, "half"};
    } else if constexpr (std::is_same_v<T, bfloat16_t>) {
        return {type_bf16, "bfloat16_t"};
    } else if constexpr (std::is_same_v<T, float>) {
        return {type_float, "float"};
    } else if constexpr (std::is_same_v<T, AscendC::int4b_t>) {
        return {type_i4, "int4b_t"};
    } else if constexpr (std::is_same_v<T, double>) {
        return {type_double, "double"};
    } else if constexpr (std::is_integral_v<T>) {
        // bool is one byte wide and goes where uint8_t goes.
        constexpr bool is_signed = std::is_signed_v<T>;
        switch (sizeof(T)) {
            case 1:
                return is_signed ? Type{type_i8, "int8_t"}
                                 : Type{type_u8, std::is_same_v<T, bool> ? "bool" : "uint8_t"};
            case 2: return is_signed ? Type{type_i16, "int16_t"} : Type{type_u16, "uint16_t"};
            case 4: return is_signed ? Type{type_i32, "int32_t"} : Type{type_u32, "uint32_t"};
            default: return is_signed ? Type{type_i64, "int64_t"} : Type{type_u64, "uint64_t"};
        }
    } else {
        return {0, "another type"};
    }
}

template <typename T>
constexpr uint32_t type_bit()
{
    return type_of<T>().bit;
}

template <typename T>
constexpr const char* type_name()
{
    return type_of<T>().name;
}

/// Bits of a set on 2002, 2201 and 3002; 0 where the architecture has nothing of the kind.
struct PerArch {
    uint32_t on_2002;
    uint32_t on_2201;
    uint32_t on_3002;

    constexpr uint32_t here() const
    {
        return __NPU_ARCH__ == 2002 ? on_2002 : __NPU_ARCH__ == 2201 ? on_2201 : on_3002;
    }
};

/// The types that functions take: names with a space between them, and the types.
struct Support {
    const char* names;
    PerArch types;
};

constexpr uint32_t floats = type_half | type_float;
constexpr uint32_t arithmetic = floats | type_i16 | type_i32;
constexpr uint32_t words16 = type_i16 | type_u16;
constexpr uint32_t integers = words16 | type_i32 | type_u32;
constexpr uint32_t plain = floats | integers;
constexpr uint32_t copied = plain | type_i8 | type_u8 | type_i64 | type_u64 | type_double;
constexpr uint32_t small = plain | type_i8 | type_u8;

constexpr Support support_table[] = {
    {"DataCopy", copied, copied | type_bf16, copied | type_bf16},
    {"DataCopyPad", 0, copied | type_bf16, small | type_bf16},
    {"Copy", 0, plain | type_bf16, plain | type_bf16},
    {"Add Sub Mul Max Min Adds Muls Maxs Mins CreateVecIndex", arithmetic, arithmetic, arithmetic},
    {"Div FusedMulAdd FusedMulAddRelu MulAddRelu LeakyRelu Select", floats, floats, floats},
    {"Exp Ln Reciprocal Rsqrt Sqrt", floats, floats, floats},
    {"ReduceRepeat ReduceDataBlock ReducePairElem ReduceSum", floats, floats, floats},
    {"And Or Not", words16, words16, words16},
    {"AddRelu SubRelu", floats | type_i16, floats | type_i16, floats},
    {"ShiftLeft ShiftRight", 0, integers, integers},
    {"Relu", floats | type_i32, floats | type_i32, floats | type_i32},
    {"Abs", floats, floats, floats | type_i16},
    {"Duplicate", plain, plain | type_bf16, plain | type_bf16},
    {"Brcb", plain, plain | type_bf16, 0},
    {"Compare Compares", floats, floats | type_i32, plain},
    {"Gather", plain, plain | type_bf16, small},
    {"Scatter", type_half | type_float | type_u16 | type_u32, 0, plain},
    {"Gatherb", 0, type_u16 | type_u32, small | type_bf16 | type_i64},
    {"GatherMask", plain, plain | type_bf16, plain},
    {"Transpose", words16 | type_half, words16 | type_half, words16 | type_half},
    {"TransDataTo5HD", small, small, small},
};

/// Return whether `name` is one of the words in `names`.
constexpr bool has_name(std::string_view names, std::string_view name)
{
    while (names.substr(0, names.find(' ')) != name) {
        if (names.find(' ') == names.npos) {
            return false;
        }
        names.remove_prefix(names.find(' ') + 1);
    }
    return true;
}

constexpr const PerArch* support_of(const char* name)
{
    for (const Support& row : support_table) {
        if (has_name(row.names, name)) {
            return &row.types;
        }
    }
    return nullptr;
}

[[gnu::cold, gnu::noinline]] inline void reject_type(const char* name, const char* type)
{
    machine.reject(Rule::type_not_on_arch, "__NPU_ARCH__ %d (%s) has no %s of %s", __NPU_ARCH__, machine.soc.c_str(),
                   name, type);
}

inline void check_support(const char* name, const PerArch& types, const Type& type)
{
    if (types.here() == 0) {
        machine.reject(Rule::not_on_arch, "__NPU_ARCH__ %d (%s) has no %s", __NPU_ARCH__, machine.soc.c_str(), name);
    } else if ((types.here() & type.bit) == 0) {
        reject_type(name, type.name);
    }
}

}  // namespace neonext_twin

// NAME is in the table: a name without a row does not compile.
#define NEONEXT_TWIN_SUPPORT(NAME, T)                                                                       \
    do {                                                                                                    \
        constexpr const neonext_twin::PerArch* twin_types = neonext_twin::support_of(NAME);                 \
        static_assert(twin_types != nullptr, "no row in support_table");                                    \
        neonext_twin::check_support(NAME, *twin_types, neonext_twin::type_of<T>());                         \
    } while (false)

// The beginning of a public function: errors from here on name it and its caller `at`, and it must support T.
#define NEONEXT_TWIN_ENTER(NAME, T, at) \
    machine.enter(NAME, at);            \
    NEONEXT_TWIN_SUPPORT(NAME, T)
