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
inline void check_compare(CMPMODE mode)
{
    static_assert(sizeof(U) == 1, "the result of a comparison is a tensor of int8_t or uint8_t");
    if (std::is_same_v<T, int32_t> && __NPU_ARCH__ == 2201 && mode != CMPMODE::EQ) {
        machine.reject(Rule::type_not_on_arch, "__NPU_ARCH__ 2201 compares int32_t with CMPMODE::EQ only");
    }
}

/// Return the lanes of a comparison: whole repeats, and on 2002 and 2201 all of their lanes whatever the mask.
template <typename Strides>
inline Lanes compare_lanes(Form<Strides> form, int per_repeat)
{
    if (form.strides == nullptr && form.count % per_repeat != 0) {
        machine.reject(Rule::count, "%lld elements; comparisons take whole repeats of 256 bytes (%d elements)",
                       static_cast<long long>(form.count), per_repeat);
    }
    if (form.strides != nullptr && __NPU_ARCH__ != 3002) {
        form.mask = per_repeat;
        form.sets_mask = true;
    }
    return form.lanes(per_repeat);
}

/// Compare lane by lane: test(a, b...) gives the bits. They go to `dst`, per_repeat / 8 bytes for each repeat, or
/// without `dst` into the register that Select's mode 0 reads.
template <typename F, typename T, typename... S>
inline void run_compare(const Lanes& lanes, const View* dst, F test, Source<T>& a, Source<S>&... b)
{
    const uint32_t tick = machine.issue(pipe_v);
    if (dst != nullptr) {
        dst->check_aligned("dst");
    }
    check_operand<Access::read>(tick, lanes, a.operand);
    (check_operand<Access::read>(tick, lanes, b.operand), ...);
    count_vector(lanes);
    const int n = lanes.per_repeat;
    for (int repeat = 0; repeat < lanes.repeats && lanes.active > 0; ++repeat) {
        uint64_t words[4] = {0, 0, 0, 0};
        const auto each_lane = [&](const auto*... values) {
            for (int lane = 0; lane < n; ++lane) {
                words[lane / 64] |= uint64_t{test(values[lane]...)} << (lane % 64);
            }
        };
        each_lane(a.load(repeat, n), b.load(repeat, n)...);
        if (__NPU_ARCH__ == 3002) {
            words[0] &= lanes.bits(repeat, 0);
            words[1] &= lanes.bits(repeat, 64);
        }
        if (dst != nullptr) {
            const uint64_t bytes = static_cast<uint64_t>(n) / 8;
            std::memcpy(dst->write(pipe_v, tick, repeat * bytes, bytes, "dst"), words, bytes);
        } else {
            std::memcpy(machine.compare_mask, words, sizeof(machine.compare_mask));
        }
    }
}

template <typename T, typename U>
inline void run_Compare(const AscendC::LocalTensor<U>& dst, const AscendC::LocalTensor<T>& src0,
                        const AscendC::LocalTensor<T>& src1, CMPMODE mode,
                        const Form<AscendC::BinaryRepeatParams>& form, Where at)
{
    NEONEXT_TWIN_ENTER("Compare", T, at);
    check_compare<T, U>(mode);
    constexpr int per_repeat = lanes_per_repeat<T>();
    const auto operands = binary_operands(dst.template ReinterpretCast<T>(), src0, src1, form.strides, per_repeat);
    Source<T> a(operands.a);
    Source<T> b(operands.b);
    run_compare(compare_lanes(form, per_repeat), &dst.twin_view(),
                [mode](auto x, auto y) { return compare(x, y, mode); }, a, b);
}

template <typename T, typename U>
inline void run_Compares(const char* name, const AscendC::LocalTensor<U>& dst, const AscendC::LocalTensor<T>& src,
                         T scalar, CMPMODE mode, const Form<AscendC::UnaryRepeatParams>& form, Where at)
{
    machine.enter(name, at);
    NEONEXT_TWIN_SUPPORT("Compares", T);
    check_compare<T, U>(mode);
    constexpr int per_repeat = lanes_per_repeat<T>();
    Source<T> a(unary_operands(src, src, form.strides, per_repeat).a);
    const auto s = static_cast<compute_t<T>>(scalar);
    run_compare(compare_lanes(form, per_repeat), &dst.twin_view(),
                [s, mode](auto x) { return compare(x, s, mode); }, a);
}

/// The bits by which Select chooses: for every repeat its own (`each`), or the same for all. Without a tensor they come
/// from the register that Compare or SetCmpMask filled.
class Choices {
public:
    Choices(const View* mask, int repeats, int per_repeat, bool each) : bytes_(per_repeat / 8), each_(each)
    {
        if (mask == nullptr) {
            bits_.resize(sizeof(machine.compare_mask));
            std::memcpy(bits_.data(), machine.compare_mask, sizeof(machine.compare_mask));
            return;
        }
        const uint32_t bytes = static_cast<uint32_t>(bytes_ * (each ? repeats : 1));
        mask->check_aligned("selMask");
        const uint8_t* bits = mask->read(pipe_v, machine.issue(pipe_v), 0, bytes, "selMask");
        bits_.assign(bits, bits + bytes);
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

/// dst = bit ? src0 : src1, where src1 is a tensor or, if that is none, a scalar. Lanes move as bits, whatever they
/// mean.
template <typename T>
inline void run_select(const Lanes& lanes, const BinaryOperands& operands, bool has_tensor, T scalar, const View* mask,
                       bool each)
{
    using W = word_t<sizeof(T)>;
    const Choices choices(mask, lanes.repeats, lanes.per_repeat, each);
    W other;
    std::memcpy(&other, &scalar, sizeof(other));
    int lane = -1;
    const auto first = [&] {
        ++lane;
        return choices.first(lane / lanes.per_repeat, lane % lanes.per_repeat);
    };
    Source<W> a(operands.a);
    if (has_tensor) {
        Source<W> b(operands.b);
        run_lanes<false, W>(lanes, operands.dst, [&](W, W x, W y) { return first() ? x : y; }, a, b);
    } else {
        run_lanes<false, W>(lanes, operands.dst, [&](W, W x) { return first() ? x : other; }, a);
    }
}

template <typename T, typename U>
inline void run_Select(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<U>& selMask,
                       const AscendC::LocalTensor<T>& src0, const AscendC::LocalTensor<T>* src1, T scalar, SELMODE mode,
                       Form<AscendC::BinaryRepeatParams> form, Where at)
{
    NEONEXT_TWIN_ENTER("Select", T, at);
    if ((mode == SELMODE::VSEL_TENSOR_SCALAR_MODE) != (src1 == nullptr)) {
        machine.reject(Rule::argument, "selMode %d with a %s for src1", static_cast<int>(mode),
                       src1 == nullptr ? "scalar" : "tensor");
    }
    if (mode != SELMODE::VSEL_CMPMASK_SPR) {
        machine.use_scratch();
    }
    constexpr int per_repeat = lanes_per_repeat<T>();
    const auto operands = binary_operands(dst, src0, src1 == nullptr ? src0 : *src1, form.strides, per_repeat);
    // Select sets the mask whatever isSetMask says.
    form.sets_mask = true;
    run_select(form.lanes(per_repeat), operands, src1 != nullptr, scalar, &selMask.twin_view(),
               mode != SELMODE::VSEL_CMPMASK_SPR);
}

}  // namespace neonext_twin

namespace AscendC {

NEONEXT_TWIN_FORMS(Compare, BinaryRepeatParams, (typename T, typename U),
                   (const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode),
                   (dst, src0, src1, cmpMode))

/// The result of one repeat goes into the register that Select's mode 0 reads.
template <typename T, bool isSetMask = true>
inline void Compare(const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode, const Mask& mask,
                    const BinaryRepeatParams& repeatParams, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("Compare", T, at);
    neonext_twin::check_compare<T, uint8_t>(cmpMode);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    const auto operands = neonext_twin::binary_operands(src0, src0, src1, &repeatParams, per_repeat);
    neonext_twin::Source<T> a(operands.a);
    neonext_twin::Source<T> b(operands.b);
    neonext_twin::run_compare(neonext_twin::lanes_of_mask(per_repeat, mask, 1, isSetMask), nullptr,
                              [cmpMode](auto x, auto y) { return neonext_twin::compare(x, y, cmpMode); }, a, b);
}

template <typename T>
inline void GetCmpMask(const LocalTensor<T>& dst, Where at = Where::here())
{
    machine.enter("GetCmpMask", at);
    dst.twin_view().check("dst");
    constexpr size_t bytes = sizeof(machine.compare_mask);
    const uint32_t tick = machine.issue(neonext_twin::pipe_v);
    std::memcpy(dst.twin_view().write(neonext_twin::pipe_v, tick, 0, bytes, "dst"), machine.compare_mask, bytes);
}

template <typename T>
inline void SetCmpMask(const LocalTensor<T>& src, Where at = Where::here())
{
    machine.enter("SetCmpMask", at);
    src.twin_view().check("src");
    constexpr size_t bytes = sizeof(machine.compare_mask);
    const uint32_t tick = machine.issue(neonext_twin::pipe_v);
    std::memcpy(machine.compare_mask, src.twin_view().read(neonext_twin::pipe_v, tick, 0, bytes, "src"), bytes);
}

}  // namespace AscendC

// Compares and CompareScalar are two names of one function.
#define NEONEXT_TWIN_COMPARES(NAME)                                                                                 \
    namespace neonext_twin {                                                                                        \
    template <typename T, typename U>                                                                               \
    inline void run_##NAME(const AscendC::LocalTensor<U>& dst, const AscendC::LocalTensor<T>& src, T scalar,        \
                           CMPMODE mode, const Form<AscendC::UnaryRepeatParams>& form, Where at)                    \
    {                                                                                                               \
        run_Compares(#NAME, dst, src, scalar, mode, form, at);                                                      \
    }                                                                                                               \
    }                                                                                                               \
    namespace AscendC {                                                                                             \
    NEONEXT_TWIN_FORMS(NAME, UnaryRepeatParams, (typename T, typename U),                                           \
                       (const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode), \
                       (dst, src0, src1Scalar, cmpMode))                                                            \
    }
NEONEXT_TWIN_COMPARES(Compares)
NEONEXT_TWIN_COMPARES(CompareScalar)

namespace AscendC {

NEONEXT_TWIN_FORMS(Select, BinaryRepeatParams, (typename T, typename U),
                   (const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
                    const LocalTensor<T>& src1, SELMODE selMode),
                   (dst, selMask, src0, &src1, T(0), selMode))
NEONEXT_TWIN_FORMS(Select, BinaryRepeatParams, (typename T, typename U),
                   (const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
                    SELMODE selMode),
                   (dst, selMask, src0, static_cast<const LocalTensor<T>*>(nullptr), src1, selMode))

/// Choose by the register that Compare or SetCmpMask filled, with the same bits in every repeat.
template <typename T, SELMODE selMode>
inline void Select(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
                   Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("Select", T, at);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    const auto operands = neonext_twin::binary_operands(dst, src0, src1, &repeatParams, per_repeat);
    neonext_twin::run_select<T>(neonext_twin::lanes_of_register(per_repeat, repeatTime), operands, true, T(0), nullptr,
                                false);
}

}  // namespace AscendC
