// Reductions: over a repeat, a block, neighbouring pairs, or a whole tensor.
//
// Sums of a repeat are a binary tree of neighbours, each sum rounded to the element type, lanes outside of the mask
// counting as zero. Functions on whole tensors are counted as one instruction with the repeats of their first pass.
#pragma once

#include "vector.h"

namespace AscendC {

enum class ReduceType : uint8_t { SUM = 0, MAX, MIN };

}  // namespace AscendC

namespace neonext_twin {

using AscendC::ReduceOrder;
using AscendC::ReduceType;

/// Lanes of one repeat, widened; `active` tells which the mask selects.
template <typename T>
struct RepeatLanes {
    compute_t<T> value[most_lanes];
    bool active[most_lanes];
};

template <typename T>
inline void load_repeat(const Lanes& lanes, const Operand& src, int repeat, RepeatLanes<T>& out)
{
    alignas(64) T gathered[most_lanes];
    widen(gather_repeat<T>(src, repeat, lanes.per_repeat, gathered), out.value, lanes.per_repeat);
    for (int lane = 0; lane < lanes.per_repeat; ++lane) {
        const uint64_t word = lane < 64 ? lanes.low_of(repeat) >> lane : lanes.high_of(repeat) >> (lane - 64);
        out.active[lane] = (word & 1) != 0;
    }
}

template <typename T>
inline compute_t<T> rounded(compute_t<T> value)
{
    T narrowed;
    compute_t<T> widened;
    narrow(&value, &narrowed, 1);
    widen(&narrowed, &widened, 1);
    return widened;
}

template <typename T>
inline compute_t<T> tree_sum(const compute_t<T>* value, int count)
{
    compute_t<T> level[most_lanes];
    std::copy(value, value + count, level);
    while (count > 1) {
        for (int i = 0; i < count / 2; ++i) {
            level[i] = rounded<T>(level[2 * i] + level[2 * i + 1]);
        }
        if (count % 2 != 0) {
            level[count / 2] = level[count - 1];
        }
        count = (count + 1) / 2;
    }
    return level[0];
}

template <typename T>
struct Extreme {
    compute_t<T> value;
    int index = -1;

    /// Takes a lane when it is better; of equal ones the first stays.
    void offer(compute_t<T> other, int place, bool largest)
    {
        if (index < 0 || (largest ? other > value : other < value) || (other != other && value == value)) {
            value = other;
            index = place;
        }
    }
};

template <typename T>
inline T index_bits(uint32_t index)
{
    T result{};
    std::memcpy(&result, &index, sizeof(T));
    return result;
}

template <typename T>
inline void put(uint32_t tick, const View& dst, uint64_t offset, compute_t<T> value)
{
    T narrowed;
    narrow(&value, &narrowed, 1);
    dst.check_range("dst", offset, sizeof(T));
    machine.write_bytes(pipe_v, tick, dst.address + static_cast<uint32_t>(offset), sizeof(T), "dst");
    std::memcpy(machine.ub + dst.address + offset, &narrowed, sizeof(T));
}

template <typename T>
inline void put_bits(uint32_t tick, const View& dst, uint64_t offset, T bits)
{
    dst.check_range("dst", offset, sizeof(T));
    machine.write_bytes(pipe_v, tick, dst.address + static_cast<uint32_t>(offset), sizeof(T), "dst");
    std::memcpy(machine.ub + dst.address + offset, &bits, sizeof(T));
}

template <typename T>
inline Operand reduce_source(const AscendC::LocalTensor<T>& src, int64_t block_stride, int64_t repeat_stride)
{
    if (block_stride < 0 || block_stride > 65535 || repeat_stride < 0 || repeat_stride > 65535) {
        machine.refuse(Rule::stride, "strides %lld and %lld of the source; they are 0 to 65535",
                       static_cast<long long>(block_stride), static_cast<long long>(repeat_stride));
    }
    return operand_of(src, "src", block_stride, repeat_stride);
}

inline void check_target_stride(int64_t stride)
{
    if (stride < 0 || stride > 65535) {
        machine.refuse(Rule::stride, "dstRepStride is %lld; it is 0 to 65535", static_cast<long long>(stride));
    }
}

/// What is left of the sources that the destination may cover: results go to where lanes were read already.
template <typename T, typename F>
inline void run_reduce(const Lanes& lanes, const Operand& src, const View& dst, uint32_t alignment, F reduce)
{
    const uint32_t tick = machine.issue(pipe_v);
    dst.check("dst");
    dst.check_aligned("dst", alignment);
    check_operand<Access::read>(tick, lanes, src);
    count_vector(lanes);
    RepeatLanes<T> repeat_lanes;
    for (int repeat = 0; repeat < lanes.repeats && lanes.active > 0; ++repeat) {
        load_repeat(lanes, src, repeat, repeat_lanes);
        reduce(tick, repeat, repeat_lanes);
    }
}

template <typename T>
inline void reduce_repeat(ReduceType type, const AscendC::LocalTensor<T>& dst, const Operand& src, const Lanes& lanes,
                          int64_t target_stride, ReduceOrder order)
{
    check_target_stride(target_stride);
    const View& view = dst.twin_view();
    const bool pair = type != ReduceType::SUM &&
                      (order == ReduceOrder::ORDER_VALUE_INDEX || order == ReduceOrder::ORDER_INDEX_VALUE);
    if (type != ReduceType::SUM) {
        const bool known = order == ReduceOrder::ORDER_VALUE_INDEX || __NPU_ARCH__ == 2201 ||
                           (__NPU_ARCH__ == 2002 && order == ReduceOrder::ORDER_INDEX_VALUE) ||
                           (__NPU_ARCH__ == 3002 && order == ReduceOrder::ORDER_ONLY_VALUE);
        if (!known) {
            machine.refuse(Rule::not_on_arch, "__NPU_ARCH__ %d does not have this ReduceOrder", __NPU_ARCH__);
        }
    }
    const bool only_index = type != ReduceType::SUM && order == ReduceOrder::ORDER_ONLY_INDEX;
    const uint32_t step = pair ? 2 * sizeof(T) : only_index ? sizeof(uint32_t) : sizeof(T);
    run_reduce<T>(lanes, src, view, step, [&](uint32_t tick, int repeat, RepeatLanes<T>& in) {
        const uint64_t offset = static_cast<uint64_t>(repeat) * target_stride * step;
        if (type == ReduceType::SUM) {
            for (int lane = 0; lane < lanes.per_repeat; ++lane) {
                in.value[lane] = in.active[lane] ? in.value[lane] : compute_t<T>(0);
            }
            const compute_t<T> total = tree_sum<T>(in.value, lanes.per_repeat);
            machine.reduce_sum = static_cast<float>(total);
            put<T>(tick, view, offset, total);
            return;
        }
        Extreme<T> best;
        for (int lane = 0; lane < lanes.per_repeat; ++lane) {
            if (in.active[lane]) {
                best.offer(in.value[lane], lane, type == ReduceType::MAX);
            }
        }
        if (best.index < 0) {
            return;
        }
        machine.reduce_value = static_cast<float>(best.value);
        machine.reduce_index = static_cast<uint32_t>(best.index);
        const uint32_t index = static_cast<uint32_t>(best.index);
        if (only_index) {
            put_bits<uint32_t>(tick, view, offset, index);
        } else if (order == ReduceOrder::ORDER_INDEX_VALUE) {
            put_bits<T>(tick, view, offset, index_bits<T>(index));
            put<T>(tick, view, offset + sizeof(T), best.value);
        } else {
            put<T>(tick, view, offset, best.value);
            if (pair) {
                put_bits<T>(tick, view, offset + sizeof(T), index_bits<T>(index));
            }
        }
    });
}

template <typename T>
inline void reduce_blocks(ReduceType type, const AscendC::LocalTensor<T>& dst, const Operand& src, const Lanes& lanes,
                          int64_t target_stride)
{
    check_target_stride(target_stride);
    const View& view = dst.twin_view();
    constexpr int per_block = block_bytes / sizeof(T);
    constexpr uint32_t step = 8 * sizeof(T);
    run_reduce<T>(lanes, src, view, step, [&](uint32_t tick, int repeat, RepeatLanes<T>& in) {
        for (int block = 0; block < 8; ++block) {
            Extreme<T> best;
            for (int lane = block * per_block; lane < (block + 1) * per_block; ++lane) {
                if (in.active[lane]) {
                    best.offer(in.value[lane], lane, type == ReduceType::MAX);
                } else {
                    in.value[lane] = 0;
                }
            }
            if (best.index < 0) {
                continue;
            }
            const compute_t<T> result =
                type == ReduceType::SUM ? tree_sum<T>(in.value + block * per_block, per_block) : best.value;
            put<T>(tick, view, static_cast<uint64_t>(repeat) * target_stride * step + block * sizeof(T), result);
        }
    });
}

template <typename T>
inline void reduce_pairs(const AscendC::LocalTensor<T>& dst, const Operand& src, const Lanes& lanes,
                         int64_t target_stride)
{
    check_target_stride(target_stride);
    const View& view = dst.twin_view();
    const uint32_t step = lanes.per_repeat / 2 * sizeof(T);
    run_reduce<T>(lanes, src, view, block_bytes, [&](uint32_t tick, int repeat, RepeatLanes<T>& in) {
        for (int pair = 0; pair < lanes.per_repeat / 2; ++pair) {
            const bool first = in.active[2 * pair];
            const bool second = in.active[2 * pair + 1];
            if (first || second) {
                const compute_t<T> a = first ? in.value[2 * pair] : compute_t<T>(0);
                const compute_t<T> b = second ? in.value[2 * pair + 1] : compute_t<T>(0);
                put<T>(tick, view, static_cast<uint64_t>(repeat) * target_stride * step + pair * sizeof(T), a + b);
            }
        }
    });
}

/// Space that a reduction of a whole tensor uses for what its repeats give.
template <typename T>
inline void use_work_space(const AscendC::LocalTensor<T>& work, uint32_t tick, int results)
{
    constexpr int per_block = block_bytes / sizeof(T);
    const uint64_t bytes = static_cast<uint64_t>((results + per_block - 1) / per_block) * block_bytes;
    const View& view = work.twin_view();
    view.check("sharedTmpBuffer");
    view.check_aligned("sharedTmpBuffer");
    view.check_range("sharedTmpBuffer", 0, bytes);
    machine.write_bytes(pipe_v, tick, view.address, static_cast<uint32_t>(bytes), "sharedTmpBuffer");
}

template <typename T>
inline void reduce_tensor(ReduceType type, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& work,
                          const Operand& src, const Lanes& lanes, bool index, bool needs_work)
{
    const View& view = dst.twin_view();
    const bool sum = type == ReduceType::SUM;
    std::vector<compute_t<T>> sums;
    Extreme<T> best;
    const uint32_t alignment = sum || !index ? sizeof(T) : 2 * sizeof(T);
    run_reduce<T>(lanes, src, view, alignment, [&](uint32_t tick, int repeat, RepeatLanes<T>& in) {
        for (int lane = 0; lane < lanes.per_repeat; ++lane) {
            if (!in.active[lane]) {
                in.value[lane] = 0;
            } else if (!sum) {
                best.offer(in.value[lane], repeat * lanes.per_repeat + lane, type == ReduceType::MAX);
            }
        }
        if (sum) {
            sums.push_back(tree_sum<T>(in.value, lanes.per_repeat));
        }
        if (repeat != lanes.repeats - 1) {
            return;
        }
        if (needs_work) {
            use_work_space(work, tick, lanes.repeats * (sum ? 1 : 2));
        }
        if (!sum) {
            put<T>(tick, view, 0, best.value);
            if (index) {
                put_bits<T>(tick, view, sizeof(T), index_bits<T>(static_cast<uint32_t>(best.index)));
            }
            return;
        }
        while (needs_work && sums.size() > 1) {
            std::vector<compute_t<T>> next;
            for (size_t i = 0; i < sums.size(); i += lanes.per_repeat) {
                const int count = static_cast<int>(std::min<size_t>(lanes.per_repeat, sums.size() - i));
                next.push_back(tree_sum<T>(&sums[i], count));
            }
            sums.swap(next);
        }
        compute_t<T> total = sums[0];
        for (size_t i = 1; i < sums.size(); ++i) {
            total = rounded<T>(total + sums[i]);
        }
        put<T>(tick, view, 0, total);
    });
}

}  // namespace neonext_twin

namespace AscendC {

template <ReduceType reduceType, typename T, typename U, bool isSetMask = true, typename Mask>
inline void twin_ReduceRepeat(const char* name, const LocalTensor<T>& dst, const LocalTensor<U>& src, const Mask& mask,
                              int64_t repeatTime, int64_t dstRepStride, int64_t srcBlkStride, int64_t srcRepStride,
                              ReduceOrder order, Where at)
{
    static_assert(std::is_same_v<T, U>, "source and destination have one type on these architectures");
    machine.enter(name, at);
    NEONEXT_TWIN_SUPPORT("ReduceRepeat", T);
    const auto source = neonext_twin::reduce_source(src, srcBlkStride, srcRepStride);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    const auto lanes = neonext_twin::lanes_of<isSetMask>(per_repeat, mask, Field<uint8_t>(repeatTime));
    neonext_twin::reduce_repeat(reduceType, dst, source, lanes, dstRepStride, order);
}

template <ReduceType reduceType, typename T, bool isSetMask = true, typename Mask>
inline void twin_ReduceDataBlock(const char* name, const LocalTensor<T>& dst, const LocalTensor<T>& src,
                                 const Mask& mask, int64_t repeatTime, int64_t dstRepStride, int64_t srcBlkStride,
                                 int64_t srcRepStride, Where at)
{
    machine.enter(name, at);
    NEONEXT_TWIN_SUPPORT("ReduceDataBlock", T);
    const auto source = neonext_twin::reduce_source(src, srcBlkStride, srcRepStride);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    const auto lanes = neonext_twin::lanes_of<isSetMask>(per_repeat, mask, Field<uint8_t>(repeatTime));
    neonext_twin::reduce_blocks(reduceType, dst, source, lanes, dstRepStride);
}

template <typename T, bool isSetMask = true, typename Mask>
inline void twin_ReducePairElem(const char* name, const LocalTensor<T>& dst, const LocalTensor<T>& src,
                                const Mask& mask, int64_t repeatTime, int64_t dstRepStride, int64_t srcBlkStride,
                                int64_t srcRepStride, Where at)
{
    machine.enter(name, at);
    NEONEXT_TWIN_SUPPORT("ReducePairElem", T);
    const auto source = neonext_twin::reduce_source(src, srcBlkStride, srcRepStride);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    const auto lanes = neonext_twin::lanes_of<isSetMask>(per_repeat, mask, Field<uint8_t>(repeatTime));
    neonext_twin::reduce_pairs(dst, source, lanes, dstRepStride);
}

template <ReduceType reduceType, typename T, typename U, bool isSetMask = true>
inline void ReduceRepeat(const LocalTensor<T>& dst, const LocalTensor<U>& src, const int32_t mask,
                         const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                         const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX,
                         Where at = Where::here())
{
    twin_ReduceRepeat<reduceType, T, U, isSetMask>("ReduceRepeat", dst, src, static_cast<uint64_t>(mask), repeatTime,
                                                   dstRepStride, srcBlkStride, srcRepStride, order, at);
}

template <ReduceType reduceType, typename T, typename U, bool isSetMask = true>
inline void ReduceRepeat(const LocalTensor<T>& dst, const LocalTensor<U>& src, const MaskBits& mask,
                         const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                         const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX,
                         Where at = Where::here())
{
    twin_ReduceRepeat<reduceType, T, U, isSetMask>("ReduceRepeat", dst, src, mask, repeatTime, dstRepStride,
                                                   srcBlkStride, srcRepStride, order, at);
}

template <ReduceType reduceType, typename T, typename U, bool isSetMask = true>
inline void ReduceDataBlock(const LocalTensor<T>& dst, const LocalTensor<U>& src, const int32_t mask,
                            const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                            const int32_t srcRepStride, Where at = Where::here())
{
    twin_ReduceDataBlock<reduceType, T, isSetMask>("ReduceDataBlock", dst, src, static_cast<uint64_t>(mask), repeatTime,
                                                   dstRepStride, srcBlkStride, srcRepStride, at);
}

template <ReduceType reduceType, typename T, typename U, bool isSetMask = true>
inline void ReduceDataBlock(const LocalTensor<T>& dst, const LocalTensor<U>& src, const MaskBits& mask,
                            const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                            const int32_t srcRepStride, Where at = Where::here())
{
    twin_ReduceDataBlock<reduceType, T, isSetMask>("ReduceDataBlock", dst, src, mask, repeatTime, dstRepStride,
                                                   srcBlkStride, srcRepStride, at);
}

template <ReduceType reduceType, typename T, typename U, bool isSetMask = true>
inline void ReducePairElem(const LocalTensor<T>& dst, const LocalTensor<U>& src, const int32_t mask,
                           const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                           const int32_t srcRepStride, Where at = Where::here())
{
    twin_ReducePairElem<T, isSetMask>("ReducePairElem", dst, src, static_cast<uint64_t>(mask), repeatTime,
                                      dstRepStride, srcBlkStride, srcRepStride, at);
}

template <ReduceType reduceType, typename T, typename U, bool isSetMask = true>
inline void ReducePairElem(const LocalTensor<T>& dst, const LocalTensor<U>& src, const MaskBits& mask,
                           const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                           const int32_t srcRepStride, Where at = Where::here())
{
    twin_ReducePairElem<T, isSetMask>("ReducePairElem", dst, src, mask, repeatTime, dstRepStride, srcBlkStride,
                                      srcRepStride, at);
}

}  // namespace AscendC

// The older names, which public kernels use.
#define NEONEXT_TWIN_WHOLE(NAME, TYPE, ORDER_PARAMETER, ORDER)                                                       \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask,                      \
                     const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,              \
                     const int32_t srcRepStride ORDER_PARAMETER, Where at = Where::here())                          \
    {                                                                                                               \
        twin_ReduceRepeat<TYPE, T, T, isSetMask>(#NAME, dst, src, static_cast<uint64_t>(mask), repeatTime,          \
                                                 dstRepStride, srcBlkStride, srcRepStride, ORDER, at);              \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const MaskBits& mask,                    \
                     const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,              \
                     const int32_t srcRepStride ORDER_PARAMETER, Where at = Where::here())                          \
    {                                                                                                               \
        twin_ReduceRepeat<TYPE, T, T, isSetMask>(#NAME, dst, src, mask, repeatTime, dstRepStride, srcBlkStride,     \
                                                 srcRepStride, ORDER, at);                                          \
    }

#define NEONEXT_TWIN_BLOCK_REDUCE(NAME, CALL)                                                                        \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,                \
                     const int32_t mask, const int32_t dstRepStride, const int32_t srcBlkStride,                    \
                     const int32_t srcRepStride, Where at = Where::here())                                          \
    {                                                                                                               \
        CALL(#NAME, dst, src, static_cast<uint64_t>(mask), repeatTime, dstRepStride, srcBlkStride, srcRepStride,    \
             at);                                                                                                   \
    }                                                                                                               \
    template <typename T, bool isSetMask = true>                                                                    \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,                \
                     const MaskBits& mask, const int32_t dstRepStride, const int32_t srcBlkStride,                  \
                     const int32_t srcRepStride, Where at = Where::here())                                          \
    {                                                                                                               \
        CALL(#NAME, dst, src, mask, repeatTime, dstRepStride, srcBlkStride, srcRepStride, at);                      \
    }

#define NEONEXT_TWIN_NO_ORDER
#define NEONEXT_TWIN_ORDER , ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX
#define NEONEXT_TWIN_BLOCK_SUM twin_ReduceDataBlock<ReduceType::SUM, T, isSetMask>
#define NEONEXT_TWIN_BLOCK_MAX twin_ReduceDataBlock<ReduceType::MAX, T, isSetMask>
#define NEONEXT_TWIN_BLOCK_MIN twin_ReduceDataBlock<ReduceType::MIN, T, isSetMask>
#define NEONEXT_TWIN_PAIR_SUM twin_ReducePairElem<T, isSetMask>

namespace AscendC {

NEONEXT_TWIN_WHOLE(WholeReduceSum, ReduceType::SUM, NEONEXT_TWIN_NO_ORDER, ReduceOrder::ORDER_VALUE_INDEX)
NEONEXT_TWIN_WHOLE(WholeReduceMax, ReduceType::MAX, NEONEXT_TWIN_ORDER, order)
NEONEXT_TWIN_WHOLE(WholeReduceMin, ReduceType::MIN, NEONEXT_TWIN_ORDER, order)
NEONEXT_TWIN_BLOCK_REDUCE(BlockReduceSum, NEONEXT_TWIN_BLOCK_SUM)
NEONEXT_TWIN_BLOCK_REDUCE(BlockReduceMax, NEONEXT_TWIN_BLOCK_MAX)
NEONEXT_TWIN_BLOCK_REDUCE(BlockReduceMin, NEONEXT_TWIN_BLOCK_MIN)
NEONEXT_TWIN_BLOCK_REDUCE(PairReduceSum, NEONEXT_TWIN_PAIR_SUM)

template <typename T, bool isSetMask = true>
inline void RepeatReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,
                            const int32_t mask, const int32_t, const int32_t srcBlkStride, const int32_t dstRepStride,
                            const int32_t srcRepStride, Where at = Where::here())
{
    twin_ReduceRepeat<ReduceType::SUM, T, T, isSetMask>("RepeatReduceSum", dst, src, static_cast<uint64_t>(mask),
                                                        repeatTime, dstRepStride, srcBlkStride, srcRepStride,
                                                        ReduceOrder::ORDER_VALUE_INDEX, at);
}

template <typename T>
inline void twin_ReduceTensor(const char* name, ReduceType type, const LocalTensor<T>& dst, const LocalTensor<T>& src,
                              const LocalTensor<T>& work, int64_t count, bool index, Where at)
{
    machine.enter(name, at);
    NEONEXT_TWIN_SUPPORT("ReduceSum", T);
    const auto source = neonext_twin::reduce_source(src, 1, DEFAULT_REPEAT_STRIDE);
    const auto lanes = neonext_twin::lanes_of_count(neonext_twin::lanes_per_repeat<T>(), count);
    const bool needs_work = !(type == ReduceType::SUM && __NPU_ARCH__ == 2201);
    neonext_twin::reduce_tensor(type, dst, work, source, lanes, index, needs_work);
}

/// Repeats are not limited to 255 here: the real function splits them.
template <typename T, typename Mask>
inline void twin_ReduceTensor(const char* name, ReduceType type, const LocalTensor<T>& dst, const LocalTensor<T>& src,
                              const LocalTensor<T>& work, const Mask& mask, int32_t repeatTime, int32_t srcRepStride,
                              bool index, Where at)
{
    machine.enter(name, at);
    NEONEXT_TWIN_SUPPORT("ReduceSum", T);
    const auto source = neonext_twin::reduce_source(src, 1, srcRepStride);
    auto lanes = neonext_twin::lanes_of<true>(neonext_twin::lanes_per_repeat<T>(), mask, Field<uint8_t>(1));
    if (repeatTime < 1) {
        machine.refuse(Rule::repeat, "%d repeats", repeatTime);
    }
    lanes.repeats = repeatTime;
    lanes.active *= static_cast<uint64_t>(repeatTime);
    neonext_twin::reduce_tensor(type, dst, work, source, lanes, index, true);
}

template <typename T, bool isSetMask = true>
inline void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
                      const int32_t count, Where at = Where::here())
{
    twin_ReduceTensor("ReduceSum", ReduceType::SUM, dst, src, sharedTmpBuffer, count, false, at);
}

template <typename T>
inline void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
                      const int32_t mask, const int32_t repeatTime, const int32_t srcRepStride,
                      Where at = Where::here())
{
    twin_ReduceTensor("ReduceSum", ReduceType::SUM, dst, src, sharedTmpBuffer, static_cast<uint64_t>(mask), repeatTime,
                      srcRepStride, false, at);
}

template <typename T>
inline void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
                      const MaskBits& mask, const int32_t repeatTime, const int32_t srcRepStride,
                      Where at = Where::here())
{
    twin_ReduceTensor("ReduceSum", ReduceType::SUM, dst, src, sharedTmpBuffer, mask, repeatTime, srcRepStride, false,
                      at);
}

template <typename T>
inline void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
                      const int32_t count, bool calIndex = false, Where at = Where::here())
{
    twin_ReduceTensor("ReduceMax", ReduceType::MAX, dst, src, sharedTmpBuffer, count, calIndex, at);
}

template <typename T>
inline void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
                      const int32_t mask, const int32_t repeatTime, const int32_t srcRepStride, bool calIndex = false,
                      Where at = Where::here())
{
    twin_ReduceTensor("ReduceMax", ReduceType::MAX, dst, src, sharedTmpBuffer, static_cast<uint64_t>(mask), repeatTime,
                      srcRepStride, calIndex, at);
}

template <typename T>
inline void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
                      const MaskBits& mask, const int32_t repeatTime, const int32_t srcRepStride,
                      bool calIndex = false, Where at = Where::here())
{
    twin_ReduceTensor("ReduceMax", ReduceType::MAX, dst, src, sharedTmpBuffer, mask, repeatTime, srcRepStride, calIndex,
                      at);
}

template <typename T>
inline void ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
                      const int32_t count, bool calIndex = false, Where at = Where::here())
{
    twin_ReduceTensor("ReduceMin", ReduceType::MIN, dst, src, sharedTmpBuffer, count, calIndex, at);
}

template <typename T>
inline void ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
                      const int32_t mask, const int32_t repeatTime, const int32_t srcRepStride, bool calIndex = false,
                      Where at = Where::here())
{
    twin_ReduceTensor("ReduceMin", ReduceType::MIN, dst, src, sharedTmpBuffer, static_cast<uint64_t>(mask), repeatTime,
                      srcRepStride, calIndex, at);
}

template <typename T>
inline void ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
                      const MaskBits& mask, const int32_t repeatTime, const int32_t srcRepStride,
                      bool calIndex = false, Where at = Where::here())
{
    twin_ReduceTensor("ReduceMin", ReduceType::MIN, dst, src, sharedTmpBuffer, mask, repeatTime, srcRepStride, calIndex,
                      at);
}

template <typename T>
inline void GetReduceRepeatMaxMinSpr(T& value, T& index)
{
    value = static_cast<T>(machine.reduce_value);
    index = neonext_twin::index_bits<T>(machine.reduce_index);
}

template <typename T>
inline void GetReduceMaxMinCount(T& value, T& index)
{
    GetReduceRepeatMaxMinSpr(value, index);
}

template <typename T>
inline T GetReduceRepeatSumSpr()
{
    return static_cast<T>(machine.reduce_sum);
}

template <typename T>
inline T GetAccVal()
{
    return static_cast<T>(machine.reduce_sum);
}

}  // namespace AscendC
