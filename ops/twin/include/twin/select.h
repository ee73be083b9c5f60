// Compare, Compares and Select: results and choices are bits, lane by lane, from the lowest.
#pragma once

#include "vector.h"

namespace neonext_twin {

using AscendC::CMPMODE;
using AscendC::SELMODE;

template <typename C>
inline bool compare(C a, C b, CMPMODE mode)
{
    switch (mode) {
        case CMPMODE::LT: return a < b;
        case CMPMODE::GT: return a > b;
        case CMPMODE::EQ: return a == b;
        case CMPMODE::LE: return a <= b;
        case CMPMODE::GE: return a >= b;
        default: return a != b;
    }
}

template <typename T, typename U>
inline void check_compare(const Support& row, CMPMODE mode)
{
    static_assert(sizeof(U) == 1, "the result of a comparison is a tensor of int8_t or uint8_t");
    check_support(row, type_bit<T>(), type_name<T>());
    if (std::is_same_v<T, int32_t> && __NPU_ARCH__ == 2201 && mode != CMPMODE::EQ) {
        machine.refuse(Rule::type_not_on_arch, "__NPU_ARCH__ 2201 compares int32_t with CMPMODE::EQ only");
    }
}

/// Lanes of a comparison: 2002 and 2201 ignore the mask.
template <bool set, typename Mask>
inline Lanes compare_lanes(int per_repeat, const Mask& mask, const Field<uint8_t>& repeats)
{
    if (__NPU_ARCH__ == 3002) {
        return lanes_of<set>(per_repeat, mask, repeats);
    }
    return lanes_of<true>(per_repeat, static_cast<uint64_t>(per_repeat), repeats);
}

inline Lanes compare_count(int per_repeat, int64_t count)
{
    if (count % per_repeat != 0) {
        machine.refuse(Rule::count, "%lld elements; comparisons take whole repeats of 256 bytes (%d elements)",
                       static_cast<long long>(count), per_repeat);
    }
    return lanes_of_count(per_repeat, count);
}

/// Writes the bits of all repeats one after another: per_repeat / 8 bytes for each.
inline void put_bits_of(uint32_t tick, const View& dst, int repeat, int per_repeat, const uint64_t* words)
{
    const uint64_t bytes = static_cast<uint64_t>(per_repeat) / 8;
    const uint64_t offset = static_cast<uint64_t>(repeat) * bytes;
    dst.check_range("dst", offset, bytes);
    const uint32_t address = dst.address + static_cast<uint32_t>(offset);
    machine.write_bytes(pipe_v, tick, address, static_cast<uint32_t>(bytes), "dst");
    std::memcpy(machine.ub + address, words, bytes);
}

template <typename T, typename F>
inline void run_compare(const Lanes& lanes, const View* dst, const Operand& a, const Operand* b, F test)
{
    const uint32_t tick = machine.issue(pipe_v);
    if (dst != nullptr) {
        dst->check("dst");
        dst->check_aligned("dst");
    }
    check_operand<Access::read>(tick, lanes, a);
    if (b != nullptr) {
        check_operand<Access::read>(tick, lanes, *b);
    }
    count_vector(lanes);
    const int n = lanes.per_repeat;
    alignas(64) T gathered[most_lanes];
    compute_t<T> wide_a[most_lanes];
    compute_t<T> wide_b[most_lanes] = {};
    for (int repeat = 0; repeat < lanes.repeats && lanes.active > 0; ++repeat) {
        widen(gather_repeat<T>(a, repeat, n, gathered), wide_a, n);
        if (b != nullptr) {
            widen(gather_repeat<T>(*b, repeat, n, gathered), wide_b, n);
        }
        uint64_t words[4] = {0, 0, 0, 0};
        for (int lane = 0; lane < n; ++lane) {
            if (test(wide_a[lane], wide_b[lane])) {
                words[lane / 64] |= uint64_t{1} << (lane % 64);
            }
        }
        if (__NPU_ARCH__ == 3002) {
            words[0] &= lanes.low_of(repeat);
            words[1] &= lanes.high_of(repeat);
        }
        if (dst != nullptr) {
            put_bits_of(tick, *dst, repeat, n, words);
        } else {
            machine.compare_mask[0] = words[0];
            machine.compare_mask[1] = words[1];
        }
    }
}

/// The bits that Select chooses by, for every repeat.
class Choices {
public:
    Choices(uint32_t tick, const View* mask, int repeats, int per_repeat, bool each)
        : bytes_(per_repeat / 8), each_(each)
    {
        if (mask == nullptr) {
            bits_.resize(16);
            std::memcpy(bits_.data(), machine.compare_mask, 16);
            return;
        }
        const uint32_t bytes = static_cast<uint32_t>(bytes_ * (each ? repeats : 1));
        mask->check("selMask");
        mask->check_aligned("selMask");
        mask->check_range("selMask", 0, bytes);
        machine.read_bytes(pipe_v, tick, mask->address, bytes, "selMask");
        bits_.assign(machine.ub + mask->address, machine.ub + mask->address + bytes);
    }

    bool first(int repeat, int lane) const
    {
        return (bits_[(each_ ? repeat * bytes_ : 0) + lane / 8] >> (lane % 8) & 1) != 0;
    }

private:
    int bytes_;
    bool each_;
    std::vector<uint8_t> bits_;
};

template <typename T>
inline void run_select(const Lanes& lanes, const Operand& dst, const Operand& a, const Operand* b, T scalar,
                       const View* mask, bool each)
{
    const uint32_t tick = machine.issue(pipe_v);
    check_destination(lanes, dst);
    check_overlap(lanes, dst, a);
    check_operand<Access::read>(tick, lanes, a);
    if (b != nullptr) {
        check_overlap(lanes, dst, *b);
        check_operand<Access::read>(tick, lanes, *b);
    }
    const Choices choices(tick, mask, lanes.repeats, lanes.per_repeat, each);
    check_operand<Access::write>(tick, lanes, dst);
    count_vector(lanes);
    if (lanes.active == 0) {
        return;
    }
    const int n = lanes.per_repeat;
    alignas(64) T gathered_a[most_lanes];
    alignas(64) T gathered_b[most_lanes];
    alignas(64) T stored[most_lanes];
    const Pattern body(lanes, 0, sizeof(T));
    const Pattern tail(lanes, lanes.repeats - 1, sizeof(T));
    for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
        const T* from_a = gather_repeat<T>(a, repeat, n, gathered_a);
        const T* from_b = b == nullptr ? nullptr : gather_repeat<T>(*b, repeat, n, gathered_b);
        for (int lane = 0; lane < n; ++lane) {
            stored[lane] = choices.first(repeat, lane) ? from_a[lane] : from_b == nullptr ? scalar : from_b[lane];
        }
        scatter_repeat<T>(dst, repeat, repeat == lanes.repeats - 1 ? tail : body, stored);
    }
}

inline void check_mode(SELMODE mode, bool scalar)
{
    if ((mode == SELMODE::VSEL_TENSOR_SCALAR_MODE) != scalar) {
        machine.refuse(Rule::argument, "selMode %d with a %s for src1", static_cast<int>(mode),
                       scalar ? "scalar" : "tensor");
    }
}

}  // namespace neonext_twin

namespace AscendC {

template <typename T, typename U, bool isSetMask = true>
inline void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
                    const MaskBits& mask, Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams,
                    Where at = Where::here())
{
    machine.enter("Compare", at);
    neonext_twin::check_compare<T, U>(*neonext_twin::support_of("Compare"), cmpMode);
    const auto operands = neonext_twin::binary_operands(dst.template ReinterpretCast<T>(), src0, src1, repeatParams);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    neonext_twin::run_compare<T>(neonext_twin::compare_lanes<isSetMask>(per_repeat, mask, repeatTime),
                                 &dst.twin_view(), operands.a, &operands.b,
                                 [cmpMode](auto a, auto b) { return neonext_twin::compare(a, b, cmpMode); });
}

template <typename T, typename U, bool isSetMask = true>
inline void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
                    const uint64_t mask, Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams,
                    Where at = Where::here())
{
    machine.enter("Compare", at);
    neonext_twin::check_compare<T, U>(*neonext_twin::support_of("Compare"), cmpMode);
    const auto operands = neonext_twin::binary_operands(dst.template ReinterpretCast<T>(), src0, src1, repeatParams);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    neonext_twin::run_compare<T>(neonext_twin::compare_lanes<isSetMask>(per_repeat, mask, repeatTime),
                                 &dst.twin_view(), operands.a, &operands.b,
                                 [cmpMode](auto a, auto b) { return neonext_twin::compare(a, b, cmpMode); });
}

template <typename T, typename U>
inline void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
                    uint32_t count, Where at = Where::here())
{
    machine.enter("Compare", at);
    neonext_twin::check_compare<T, U>(*neonext_twin::support_of("Compare"), cmpMode);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    const auto operands = neonext_twin::binary_operands(dst.template ReinterpretCast<T>(), src0, src1, per_repeat);
    neonext_twin::run_compare<T>(neonext_twin::compare_count(per_repeat, count), &dst.twin_view(), operands.a,
                                 &operands.b,
                                 [cmpMode](auto a, auto b) { return neonext_twin::compare(a, b, cmpMode); });
}

/// The result of one repeat goes into the register that Select's mode 0 reads.
template <typename T, bool isSetMask = true>
inline void Compare(const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode, const MaskBits& mask,
                    const BinaryRepeatParams& repeatParams, Where at = Where::here())
{
    machine.enter("Compare", at);
    neonext_twin::check_compare<T, uint8_t>(*neonext_twin::support_of("Compare"), cmpMode);
    const auto operands = neonext_twin::binary_operands(src0, src0, src1, repeatParams);
    neonext_twin::run_compare<T>(neonext_twin::lanes_of<isSetMask>(neonext_twin::lanes_per_repeat<T>(), mask, 1),
                                 nullptr, operands.a, &operands.b,
                                 [cmpMode](auto a, auto b) { return neonext_twin::compare(a, b, cmpMode); });
}

template <typename T, bool isSetMask = true>
inline void Compare(const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode, const uint64_t mask,
                    const BinaryRepeatParams& repeatParams, Where at = Where::here())
{
    machine.enter("Compare", at);
    neonext_twin::check_compare<T, uint8_t>(*neonext_twin::support_of("Compare"), cmpMode);
    const auto operands = neonext_twin::binary_operands(src0, src0, src1, repeatParams);
    neonext_twin::run_compare<T>(neonext_twin::lanes_of<isSetMask>(neonext_twin::lanes_per_repeat<T>(), mask, 1),
                                 nullptr, operands.a, &operands.b,
                                 [cmpMode](auto a, auto b) { return neonext_twin::compare(a, b, cmpMode); });
}

template <typename T>
inline void GetCmpMask(const LocalTensor<T>& dst, Where at = Where::here())
{
    machine.enter("GetCmpMask", at);
    dst.twin_view().check("dst");
    dst.twin_view().check_range("dst", 0, sizeof(machine.compare_mask));
    const uint32_t tick = machine.issue(neonext_twin::pipe_v);
    machine.write_bytes(neonext_twin::pipe_v, tick, dst.twin_view().address, sizeof(machine.compare_mask), "dst");
    std::memcpy(machine.ub + dst.twin_view().address, machine.compare_mask, sizeof(machine.compare_mask));
}

template <typename T>
inline void SetCmpMask(const LocalTensor<T>& src, Where at = Where::here())
{
    machine.enter("SetCmpMask", at);
    src.twin_view().check("src");
    src.twin_view().check_range("src", 0, sizeof(machine.compare_mask));
    const uint32_t tick = machine.issue(neonext_twin::pipe_v);
    machine.read_bytes(neonext_twin::pipe_v, tick, src.twin_view().address, sizeof(machine.compare_mask), "src");
    std::memcpy(machine.compare_mask, machine.ub + src.twin_view().address, sizeof(machine.compare_mask));
}

}  // namespace AscendC

#define NEONEXT_TWIN_COMPARES(NAME)                                                                                 \
    template <typename T, typename U, bool isSetMask = true>                                                        \
    inline void NAME(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode,    \
                     const MaskBits& mask, Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,        \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        twin_Compares<T, U, isSetMask>(#NAME, dst, src0, src1Scalar, cmpMode, mask, repeatTime, repeatParams, at);  \
    }                                                                                                               \
    template <typename T, typename U, bool isSetMask = true>                                                        \
    inline void NAME(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode,    \
                     const uint64_t mask, Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,         \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        twin_Compares<T, U, isSetMask>(#NAME, dst, src0, src1Scalar, cmpMode, mask, repeatTime, repeatParams, at);  \
    }                                                                                                               \
    template <typename T, typename U>                                                                               \
    inline void NAME(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode,    \
                     uint32_t count, Where at = Where::here())                                                      \
    {                                                                                                               \
        machine.enter(#NAME, at);                                                                                   \
        neonext_twin::check_compare<T, U>(*neonext_twin::support_of("Compares"), cmpMode);                          \
        constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();                                             \
        const auto operand = neonext_twin::operand_of(src0, "src0", 1, DEFAULT_REPEAT_STRIDE);                      \
        twin_run_compares<T>(neonext_twin::compare_count(per_repeat, count), dst.twin_view(), operand, src1Scalar,  \
                             cmpMode);                                                                              \
    }

namespace AscendC {

template <typename T>
inline void twin_run_compares(const neonext_twin::Lanes& lanes, const neonext_twin::View& dst,
                              const neonext_twin::Operand& operand, T scalar, CMPMODE mode)
{
    const auto s = static_cast<neonext_twin::compute_t<T>>(scalar);
    neonext_twin::run_compare<T>(lanes, &dst, operand, nullptr,
                                 [s, mode](auto a, auto) { return neonext_twin::compare(a, s, mode); });
}

template <typename T, typename U, bool isSetMask, typename Mask>
inline void twin_Compares(const char* name, const LocalTensor<U>& dst, const LocalTensor<T>& src0, T scalar,
                          CMPMODE mode, const Mask& mask, Field<uint8_t> repeatTime, const UnaryRepeatParams& params,
                          Where at)
{
    machine.enter(name, at);
    neonext_twin::check_compare<T, U>(*neonext_twin::support_of("Compares"), mode);
    const auto operands = neonext_twin::unary_operands(src0, src0, params);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    twin_run_compares<T>(neonext_twin::compare_lanes<isSetMask>(per_repeat, mask, repeatTime), dst.twin_view(),
                         operands.a, scalar, mode);
}

NEONEXT_TWIN_COMPARES(Compares)
NEONEXT_TWIN_COMPARES(CompareScalar)

template <typename T, typename U, typename Mask>
inline void twin_Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
                        const LocalTensor<T>* src1, T scalar, SELMODE selMode, const Mask& mask,
                        Field<uint8_t> repeatTime, const BinaryRepeatParams& params, Where at)
{
    machine.enter("Select", at);
    NEONEXT_TWIN_SUPPORT("Select", T);
    neonext_twin::check_mode(selMode, src1 == nullptr);
    const auto operands = neonext_twin::binary_operands(dst, src0, src1 == nullptr ? src0 : *src1, params);
    const auto lanes = neonext_twin::lanes_of<true>(neonext_twin::lanes_per_repeat<T>(), mask, repeatTime);
    neonext_twin::run_select<T>(lanes, operands.dst, operands.a, src1 == nullptr ? nullptr : &operands.b, scalar,
                                &selMask.twin_view(), selMode != SELMODE::VSEL_CMPMASK_SPR);
}

template <typename T, typename U>
inline void twin_Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
                        const LocalTensor<T>* src1, T scalar, SELMODE selMode, uint32_t count, Where at)
{
    machine.enter("Select", at);
    NEONEXT_TWIN_SUPPORT("Select", T);
    neonext_twin::check_mode(selMode, src1 == nullptr);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    const auto operands = neonext_twin::binary_operands(dst, src0, src1 == nullptr ? src0 : *src1, per_repeat);
    const auto lanes = neonext_twin::lanes_of_count(per_repeat, count);
    neonext_twin::run_select<T>(lanes, operands.dst, operands.a, src1 == nullptr ? nullptr : &operands.b, scalar,
                                &selMask.twin_view(), selMode != SELMODE::VSEL_CMPMASK_SPR);
}

template <typename T, typename U, bool isSetMask = true>
inline void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
                   const LocalTensor<T>& src1, SELMODE selMode, const MaskBits& mask, Field<uint8_t> repeatTime,
                   const BinaryRepeatParams& repeatParams, Where at = Where::here())
{
    twin_Select(dst, selMask, src0, &src1, T(0), selMode, mask, repeatTime, repeatParams, at);
}

template <typename T, typename U, bool isSetMask = true>
inline void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
                   const LocalTensor<T>& src1, SELMODE selMode, uint64_t mask, Field<uint8_t> repeatTime,
                   const BinaryRepeatParams& repeatParams, Where at = Where::here())
{
    twin_Select(dst, selMask, src0, &src1, T(0), selMode, mask, repeatTime, repeatParams, at);
}

template <typename T, typename U>
inline void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
                   const LocalTensor<T>& src1, SELMODE selMode, uint32_t count, Where at = Where::here())
{
    twin_Select(dst, selMask, src0, &src1, T(0), selMode, count, at);
}

template <typename T, typename U, bool isSetMask = true>
inline void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
                   SELMODE selMode, const MaskBits& mask, Field<uint8_t> repeatTime,
                   const BinaryRepeatParams& repeatParams, Where at = Where::here())
{
    twin_Select<T, U>(dst, selMask, src0, nullptr, src1, selMode, mask, repeatTime, repeatParams, at);
}

template <typename T, typename U, bool isSetMask = true>
inline void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
                   SELMODE selMode, uint64_t mask, Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams,
                   Where at = Where::here())
{
    twin_Select<T, U>(dst, selMask, src0, nullptr, src1, selMode, mask, repeatTime, repeatParams, at);
}

template <typename T, typename U>
inline void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
                   SELMODE selMode, uint32_t count, Where at = Where::here())
{
    twin_Select<T, U>(dst, selMask, src0, nullptr, src1, selMode, count, at);
}

/// Chooses by the register that Compare or SetCmpMask filled, the same bits in every repeat.
template <typename T, SELMODE selMode>
inline void Select(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                   Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams, Where at = Where::here())
{
    machine.enter("Select", at);
    NEONEXT_TWIN_SUPPORT("Select", T);
    const auto operands = neonext_twin::binary_operands(dst, src0, src1, repeatParams);
    const auto lanes = neonext_twin::lanes_of_register(neonext_twin::lanes_per_repeat<T>(), repeatTime);
    neonext_twin::run_select<T>(lanes, operands.dst, operands.a, &operands.b, T(0), nullptr, false);
}

}  // namespace AscendC
