// Reductions over a repeat, a block, neighbouring pairs, or a whole tensor.
//
// The sum of a repeat is a binary tree of neighbours. Each sum is rounded to the element type, and lanes outside of the
// mask count as zero. A function on a whole tensor is counted as one instruction with the repeats of its first pass.
#pragma once

#include "vector.h"

namespace AscendC {

enum class ReduceType : uint8_t { SUM = 0, MAX, MIN };

}  // namespace AscendC

namespace neonext_twin {

using AscendC::ReduceOrder;
using AscendC::ReduceType;

/// The lanes of one repeat in the type they are computed in; `active` tells which of them the mask selects.
template <typename T>
struct RepeatLanes {
    compute_t<T> value[most_lanes];
    bool active[most_lanes];

    /// Make the inactive lanes zero, which adds nothing to a sum.
    void clear_inactive(int count)
    {
        for (int lane = 0; lane < count; ++lane) {
            value[lane] = active[lane] ? value[lane] : compute_t<T>(0);
        }
    }
};

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

/// The largest or smallest lane so far, and where it is.
template <typename T>
struct Extreme {
    bool largest;
    compute_t<T> value = {};
    int index = -1;

    /// Take a better lane. The first of equal ones stays, and not a number beats every number.
    void offer(compute_t<T> other, int place)
    {
        if (index < 0 || (largest ? other > value : other < value) || (other != other && value == value)) {
            value = other;
            index = place;
        }
    }
};

/// Return the bits of an index as an element: results hold indices that way.
template <typename T>
inline T index_bits(uint32_t index)
{
    T result{};
    std::memcpy(&result, &index, sizeof(T));
    return result;
}

/// Keep a maximum or minimum in the register that GetReduceRepeatMaxMinSpr reads.
template <typename T>
inline void keep_extreme(compute_t<T> value, uint32_t index)
{
    machine.reduce_value = static_cast<float>(value);
    machine.reduce_index = index;
    machine.has_reduce_value = true;
}

template <typename T>
inline void put_bits(uint32_t tick, const View& dst, uint64_t offset, T bits)
{
    std::memcpy(dst.write(pipe_v, tick, offset, sizeof(T), "dst"), &bits, sizeof(T));
}

template <typename T>
inline void put(uint32_t tick, const View& dst, uint64_t offset, compute_t<T> value)
{
    T narrowed;
    narrow(&value, &narrowed, 1);
    put_bits(tick, dst, offset, narrowed);
}

template <typename T>
inline Operand reduce_source(const AscendC::LocalTensor<T>& src, int64_t block_stride, int64_t repeat_stride)
{
    if (block_stride < 0 || block_stride > 65535 || repeat_stride < 0 || repeat_stride > 65535) {
        machine.reject(Rule::stride, "strides %lld and %lld of the source; they are 0 to 65535",
                       static_cast<long long>(block_stride), static_cast<long long>(repeat_stride));
    }
    return operand_of(src, "src", block_stride, repeat_stride);
}

/// Call reduce(tick, repeat, lanes) for every repeat. The destination may cover the source, because results go to
/// places whose lanes were read before.
template <typename T, typename F>
inline void run_reduce(const Lanes& lanes, const Operand& src, const View& dst, uint32_t alignment, F reduce)
{
    const uint32_t tick = machine.issue(pipe_v);
    dst.check_aligned("dst", alignment);
    check_operand<Access::read>(tick, lanes, src);
    count_vector(lanes);
    alignas(64) T gathered[most_lanes];
    RepeatLanes<T> in;
    for (int repeat = 0; repeat < lanes.repeats && lanes.active > 0; ++repeat) {
        widen(gather_repeat<T>(src, repeat, lanes.per_repeat, gathered), in.value, lanes.per_repeat);
        for (int lane = 0; lane < lanes.per_repeat; ++lane) {
            in.active[lane] = (lanes.bits(repeat, lane) & 1) != 0;
        }
        reduce(tick, repeat, in);
    }
}

/// Reject a ReduceOrder that the architecture does not have.
inline void check_order(ReduceOrder order)
{
    const bool known = order == ReduceOrder::ORDER_VALUE_INDEX || __NPU_ARCH__ == 2201 ||
                       (__NPU_ARCH__ == 2002 && order == ReduceOrder::ORDER_INDEX_VALUE) ||
                       (__NPU_ARCH__ == 3002 && order == ReduceOrder::ORDER_ONLY_VALUE);
    if (!known) {
        machine.reject(Rule::not_on_arch, "__NPU_ARCH__ %d does not have this ReduceOrder", __NPU_ARCH__);
    }
}

/// One result for each repeat: its sum, or its largest or smallest lane with or without its index.
template <ReduceType type, typename T>
inline void reduce_repeat(const View& dst, const Operand& src, const Lanes& lanes, int64_t target_stride,
                          ReduceOrder order)
{
    constexpr bool sum = type == ReduceType::SUM;
    const bool pair = !sum && (order == ReduceOrder::ORDER_VALUE_INDEX || order == ReduceOrder::ORDER_INDEX_VALUE);
    const bool only_index = !sum && order == ReduceOrder::ORDER_ONLY_INDEX;
    if (!sum) {
        check_order(order);
    }
    const uint32_t step = pair ? 2 * sizeof(T) : only_index ? sizeof(uint32_t) : sizeof(T);
    Extreme<T> all{type == ReduceType::MAX};
    run_reduce<T>(lanes, src, dst, step, [&](uint32_t tick, int repeat, RepeatLanes<T>& in) {
        const uint64_t offset = static_cast<uint64_t>(repeat) * target_stride * step;
        if (sum) {
            in.clear_inactive(lanes.per_repeat);
            put<T>(tick, dst, offset, tree_sum<T>(in.value, lanes.per_repeat));
            return;
        }
        Extreme<T> best{type == ReduceType::MAX};
        for (int lane = 0; lane < lanes.per_repeat; ++lane) {
            if (in.active[lane]) {
                best.offer(in.value[lane], lane);
            }
        }
        if (best.index < 0) {
            return;
        }
        const uint32_t index = static_cast<uint32_t>(best.index);
        all.offer(best.value, repeat * lanes.per_repeat + best.index);
        keep_extreme<T>(all.value, static_cast<uint32_t>(all.index));
        if (only_index) {
            put_bits<uint32_t>(tick, dst, offset, index);
            return;
        }
        const bool index_first = order == ReduceOrder::ORDER_INDEX_VALUE;
        put<T>(tick, dst, index_first ? offset + sizeof(T) : offset, best.value);
        if (pair) {
            put_bits<T>(tick, dst, index_first ? offset : offset + sizeof(T), index_bits<T>(index));
        }
    });
}

/// One result for each block of 32 bytes that has an active lane.
template <ReduceType type, typename T>
inline void reduce_blocks(const View& dst, const Operand& src, const Lanes& lanes, int64_t target_stride)
{
    constexpr int per_block = block_bytes / sizeof(T);
    constexpr uint32_t step = 8 * sizeof(T);
    run_reduce<T>(lanes, src, dst, step, [&](uint32_t tick, int repeat, RepeatLanes<T>& in) {
        for (int block = 0; block < 8; ++block) {
            Extreme<T> best{type == ReduceType::MAX};
            for (int lane = block * per_block; lane < (block + 1) * per_block; ++lane) {
                if (in.active[lane]) {
                    best.offer(in.value[lane], lane);
                }
            }
            if (best.index < 0) {
                continue;
            }
            in.clear_inactive(lanes.per_repeat);
            const compute_t<T> result =
                type == ReduceType::SUM ? tree_sum<T>(in.value + block * per_block, per_block) : best.value;
            put<T>(tick, dst, static_cast<uint64_t>(repeat) * target_stride * step + block * sizeof(T), result);
        }
    });
}

/// The sum of each pair of neighbours of which one is active.
template <typename T>
inline void reduce_pairs(const View& dst, const Operand& src, const Lanes& lanes, int64_t target_stride)
{
    const uint32_t step = lanes.per_repeat / 2 * sizeof(T);
    run_reduce<T>(lanes, src, dst, block_bytes, [&](uint32_t tick, int repeat, RepeatLanes<T>& in) {
        in.clear_inactive(lanes.per_repeat);
        for (int pair = 0; pair < lanes.per_repeat / 2; ++pair) {
            if (in.active[2 * pair] || in.active[2 * pair + 1]) {
                put<T>(tick, dst, static_cast<uint64_t>(repeat) * target_stride * step + pair * sizeof(T),
                       in.value[2 * pair] + in.value[2 * pair + 1]);
            }
        }
    });
}

enum class Extent { repeat, block, pair };

/// Any of the functions that reduce each repeat, each block or each pair, under its public `name`.
template <Extent extent, ReduceType type, typename T, typename U>
inline void run_reduction(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<U>& src,
                          const Mask& mask, bool sets_mask, int64_t repeats, int64_t target_stride,
                          int64_t block_stride, int64_t repeat_stride, ReduceOrder order, Where at)
{
    static_assert(std::is_same_v<T, U>, "source and destination have one type on these architectures");
    machine.enter(name, at);
    constexpr const char* names[] = {"ReduceRepeat", "ReduceDataBlock", "ReducePairElem"};
    NEONEXT_TWIN_SUPPORT(names[static_cast<int>(extent)], T);
    const Operand source = reduce_source(src, block_stride, repeat_stride);
    const Lanes lanes = lanes_of_mask(lanes_per_repeat<T>(), mask, Field<uint8_t>(repeats), sets_mask);
    if (target_stride < 0 || target_stride > 65535) {
        machine.reject(Rule::stride, "dstRepStride is %lld; it is 0 to 65535", static_cast<long long>(target_stride));
    }
    if constexpr (extent == Extent::repeat) {
        reduce_repeat<type, T>(dst.twin_view(), source, lanes, target_stride, order);
    } else if constexpr (extent == Extent::block) {
        reduce_blocks<type, T>(dst.twin_view(), source, lanes, target_stride);
    } else {
        reduce_pairs<T>(dst.twin_view(), source, lanes, target_stride);
    }
}

/// Reduce a whole tensor. `work` holds the results of its repeats on the way, where the function needs it.
template <ReduceType type, typename T>
inline void reduce_tensor(const View& dst, const View& work, const Operand& src, const Lanes& lanes, bool index,
                          bool needs_work)
{
    constexpr bool sum = type == ReduceType::SUM;
    std::vector<compute_t<T>> sums;
    Extreme<T> best{type == ReduceType::MAX};
    const uint32_t alignment = sum || !index ? sizeof(T) : 2 * sizeof(T);
    run_reduce<T>(lanes, src, dst, alignment, [&](uint32_t tick, int repeat, RepeatLanes<T>& in) {
        if (sum) {
            in.clear_inactive(lanes.per_repeat);
            sums.push_back(tree_sum<T>(in.value, lanes.per_repeat));
        }
        for (int lane = 0; !sum && lane < lanes.per_repeat; ++lane) {
            if (in.active[lane]) {
                best.offer(in.value[lane], repeat * lanes.per_repeat + lane);
            }
        }
        if (repeat != lanes.repeats - 1) {
            return;
        }
        if (needs_work) {
            const uint64_t results = static_cast<uint64_t>(lanes.repeats) * (sum ? 1 : 2) * sizeof(T);
            work.check_aligned("sharedTmpBuffer");
            work.write(pipe_v, tick, 0, (results + block_bytes - 1) / block_bytes * block_bytes, "sharedTmpBuffer");
        }
        if (!sum) {
            keep_extreme<T>(best.value, ~0u); // the documents promise the value alone
            put<T>(tick, dst, 0, best.value);
            if (index) {
                put_bits<T>(tick, dst, sizeof(T), index_bits<T>(static_cast<uint32_t>(best.index)));
            }
            return;
        }
        // With a work buffer the device reduces the sums of the repeats again like a repeat; without one it adds them.
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
        machine.reduce_sum = static_cast<float>(total);
        machine.has_reduce_sum = !needs_work;
        put<T>(tick, dst, 0, total);
    });
}

/// ReduceSum, ReduceMax or ReduceMin of `count` elements.
template <ReduceType type, typename T>
inline void run_tensor_reduction(const char* name, const AscendC::LocalTensor<T>& dst,
                                 const AscendC::LocalTensor<T>& src, const AscendC::LocalTensor<T>& work,
                                 int64_t count, bool index, Where at)
{
    machine.enter(name, at);
    NEONEXT_TWIN_SUPPORT("ReduceSum", T);
    const Operand source = reduce_source(src, 1, AscendC::DEFAULT_REPEAT_STRIDE);
    const Lanes lanes = lanes_of_count(lanes_per_repeat<T>(), count);
    const bool needs_work = !(type == ReduceType::SUM && __NPU_ARCH__ == 2201);
    reduce_tensor<type, T>(dst.twin_view(), work.twin_view(), source, lanes, index, needs_work);
}

/// The same with a mask. Repeats are not limited to 255 here, because the real function splits them.
template <ReduceType type, typename T>
inline void run_tensor_reduction(const char* name, const AscendC::LocalTensor<T>& dst,
                                 const AscendC::LocalTensor<T>& src, const AscendC::LocalTensor<T>& work,
                                 const Mask& mask, int32_t repeats, int32_t repeat_stride, bool index, Where at)
{
    machine.enter(name, at);
    NEONEXT_TWIN_SUPPORT("ReduceSum", T);
    const Operand source = reduce_source(src, 1, repeat_stride);
    Lanes lanes = lanes_of_mask(lanes_per_repeat<T>(), mask, 1);
    if (repeats < 1) {
        machine.reject(Rule::repeat, "%d repeats", repeats);
    }
    lanes.repeats = repeats;
    lanes.active *= static_cast<uint64_t>(repeats);
    reduce_tensor<type, T>(dst.twin_view(), work.twin_view(), source, lanes, index, true);
}

/// Start a function that reads a register of reductions, which one architecture has.
inline void check_register(const char* name, int arch, bool written, Where at)
{
    machine.enter(name, at);
    if (__NPU_ARCH__ != arch) {
        machine.reject(Rule::not_on_arch, "__NPU_ARCH__ %d (%s) does not have it", __NPU_ARCH__, machine.soc.c_str());
    }
    if (!written) {
        machine.reject(Rule::unwritten, "no reduction has written its register yet");
    }
}

}  // namespace neonext_twin

// A function that reduces each repeat, block or pair. The names differ in the order of their parameters and in who
// chooses the operation:
//   TYPES       (template parameters before isSetMask)
//   SOURCE      type of the elements of src
//   PARAMETERS  (parameters behind src)
//   ORDER       the order of values and indices
#define NEONEXT_TWIN_REDUCTION(NAME, EXTENT, TYPE, TYPES, SOURCE, PARAMETERS, ORDER)                                \
    template <NEONEXT_TWIN_BARE TYPES, bool isSetMask = true>                                                       \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<SOURCE>& src, NEONEXT_TWIN_BARE PARAMETERS,       \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        neonext_twin::run_reduction<neonext_twin::Extent::EXTENT, TYPE>(#NAME, dst, src, mask, isSetMask,           \
                                                                        repeatTime, dstRepStride, srcBlkStride,     \
                                                                        srcRepStride, ORDER, at);                   \
    }
#define NEONEXT_TWIN_STRIDES const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride
#define NEONEXT_TWIN_MASK_FIRST const Mask& mask, const int32_t repeatTime, NEONEXT_TWIN_STRIDES
#define NEONEXT_TWIN_REPEATS_FIRST const int32_t repeatTime, const Mask& mask, NEONEXT_TWIN_STRIDES
#define NEONEXT_TWIN_ORDER ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX

namespace AscendC {

NEONEXT_TWIN_REDUCTION(ReduceRepeat, repeat, reduceType, (ReduceType reduceType, typename T, typename U), U,
                       (NEONEXT_TWIN_MASK_FIRST, NEONEXT_TWIN_ORDER), order)
NEONEXT_TWIN_REDUCTION(ReduceDataBlock, block, reduceType, (ReduceType reduceType, typename T, typename U), U,
                       (NEONEXT_TWIN_MASK_FIRST), ReduceOrder::ORDER_VALUE_INDEX)
NEONEXT_TWIN_REDUCTION(ReducePairElem, pair, reduceType, (ReduceType reduceType, typename T, typename U), U,
                       (NEONEXT_TWIN_MASK_FIRST), ReduceOrder::ORDER_VALUE_INDEX)

// The older names, which public kernels use.
NEONEXT_TWIN_REDUCTION(WholeReduceSum, repeat, ReduceType::SUM, (typename T), T, (NEONEXT_TWIN_MASK_FIRST),
                       ReduceOrder::ORDER_VALUE_INDEX)
NEONEXT_TWIN_REDUCTION(WholeReduceMax, repeat, ReduceType::MAX, (typename T), T,
                       (NEONEXT_TWIN_MASK_FIRST, NEONEXT_TWIN_ORDER), order)
NEONEXT_TWIN_REDUCTION(WholeReduceMin, repeat, ReduceType::MIN, (typename T), T,
                       (NEONEXT_TWIN_MASK_FIRST, NEONEXT_TWIN_ORDER), order)
NEONEXT_TWIN_REDUCTION(BlockReduceSum, block, ReduceType::SUM, (typename T), T, (NEONEXT_TWIN_REPEATS_FIRST),
                       ReduceOrder::ORDER_VALUE_INDEX)
NEONEXT_TWIN_REDUCTION(BlockReduceMax, block, ReduceType::MAX, (typename T), T, (NEONEXT_TWIN_REPEATS_FIRST),
                       ReduceOrder::ORDER_VALUE_INDEX)
NEONEXT_TWIN_REDUCTION(BlockReduceMin, block, ReduceType::MIN, (typename T), T, (NEONEXT_TWIN_REPEATS_FIRST),
                       ReduceOrder::ORDER_VALUE_INDEX)
NEONEXT_TWIN_REDUCTION(PairReduceSum, pair, ReduceType::SUM, (typename T), T, (NEONEXT_TWIN_REPEATS_FIRST),
                       ReduceOrder::ORDER_VALUE_INDEX)
NEONEXT_TWIN_REDUCTION(RepeatReduceSum, repeat, ReduceType::SUM, (typename T), T,
                       (const int32_t repeatTime, const int32_t mask, const int32_t, const int32_t srcBlkStride,
                        const int32_t dstRepStride, const int32_t srcRepStride),
                       ReduceOrder::ORDER_VALUE_INDEX)

}  // namespace AscendC

// A function that reduces a whole tensor; (INDEX_PARAMETER) ends the parameters of ReduceMax and ReduceMin.
#define NEONEXT_TWIN_TENSOR_REDUCTION(NAME, TYPE, COUNT_TYPES, INDEX_PARAMETER, INDEX)                              \
    template <NEONEXT_TWIN_BARE COUNT_TYPES>                                                                        \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,   \
                     const int32_t count NEONEXT_TWIN_BARE INDEX_PARAMETER, Where at = Where::here())               \
    {                                                                                                               \
        neonext_twin::run_tensor_reduction<ReduceType::TYPE>(#NAME, dst, src, sharedTmpBuffer, count, INDEX, at);   \
    }                                                                                                               \
    template <typename T>                                                                                           \
    inline void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,   \
                     const Mask& mask, const int32_t repeatTime,                                                    \
                     const int32_t srcRepStride NEONEXT_TWIN_BARE INDEX_PARAMETER, Where at = Where::here())        \
    {                                                                                                               \
        neonext_twin::run_tensor_reduction<ReduceType::TYPE>(#NAME, dst, src, sharedTmpBuffer, mask, repeatTime,    \
                                                             srcRepStride, INDEX, at);                              \
    }

namespace AscendC {

NEONEXT_TWIN_TENSOR_REDUCTION(ReduceSum, SUM, (typename T, bool isSetMask = true), (), false)
NEONEXT_TWIN_TENSOR_REDUCTION(ReduceMax, MAX, (typename T), (, bool calIndex = false), calIndex)
NEONEXT_TWIN_TENSOR_REDUCTION(ReduceMin, MIN, (typename T), (, bool calIndex = false), calIndex)

/// The value and index of the last maximum or minimum, over all repeats of ReduceRepeat.
template <typename T>
inline void GetReduceRepeatMaxMinSpr(T& value, T& index, Where at = Where::here())
{
    neonext_twin::check_register("GetReduceRepeatMaxMinSpr with an index", 2201, machine.has_reduce_value, at);
    value = static_cast<T>(machine.reduce_value);
    index = neonext_twin::index_bits<T>(machine.reduce_index);
}

template <typename T>
inline void GetReduceRepeatMaxMinSpr(T& value, Where at = Where::here())
{
    neonext_twin::check_register("GetReduceRepeatMaxMinSpr without an index", 2002, machine.has_reduce_value, at);
    value = static_cast<T>(machine.reduce_value);
}

/// The result of the last ReduceSum with a count.
template <typename T>
inline T GetReduceRepeatSumSpr(Where at = Where::here())
{
    neonext_twin::check_register("GetReduceRepeatSumSpr", 2201, machine.has_reduce_sum, at);
    return static_cast<T>(machine.reduce_sum);
}

// The older names.
template <typename T>
inline void GetReduceMaxMinCount(T& value, T& index, Where at = Where::here())
{
    GetReduceRepeatMaxMinSpr(value, index, at);
}

template <typename T>
inline void GetReduceMaxMinCount(T& value, Where at = Where::here())
{
    GetReduceRepeatMaxMinSpr(value, at);
}

template <typename T>
inline T GetAccVal(Where at = Where::here())
{
    return GetReduceRepeatSumSpr<T>(at);
}

}  // namespace AscendC
