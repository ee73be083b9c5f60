// Sort32 and MrgSort: queues of pairs of a score and an index, 8 bytes each, with the largest score first. Of equal
// scores the earlier one stays in front.
#pragma once

#include <array>
#include <tuple>

#include "vector.h"

namespace neonext_twin {

constexpr uint32_t pair_bytes = 8;
constexpr int queues = 4;

/// Reject architectures without these functions, and what is not half or float.
template <typename T>
inline void enter_sort(const char* name, Where at)
{
    machine.enter(name, at);
    check_support(name, PerArch{0, floats, 0}, type_of<T>());
}

template <typename T>
inline float score_of(const uint8_t* pair)
{
    T score;
    std::memcpy(&score, pair, sizeof(score));
    return static_cast<float>(score);
}

/// Merge queues of so many pairs, lying at `from`; with `suspends`, stop where one is used up. Return what was taken.
template <typename T>
inline std::array<uint16_t, queues> merge(const uint8_t* const* from, const uint16_t* lengths, int used, bool suspends,
                                          uint8_t* to)
{
    std::array<uint16_t, queues> taken{};
    for (;;) {
        int best = -1;
        for (int queue = 0; queue < used; ++queue) {
            if (taken[queue] == lengths[queue]) {
                if (suspends) {
                    return taken;
                }
                continue;
            }
            const auto score = [&](int one) { return score_of<T>(from[one] + taken[one] * pair_bytes); };
            best = best < 0 || score(queue) > score(best) ? queue : best;
        }
        if (best < 0) {
            return taken;
        }
        std::memcpy(to, from[best] + taken[best]++ * pair_bytes, pair_bytes);
        to += pair_bytes;
    }
}

inline std::array<uint16_t, queues> merged{};

}  // namespace neonext_twin

namespace AscendC {

constexpr int32_t MRG_SORT_ELEMENT_LEN = neonext_twin::queues;

struct MrgSort4Info {
    MrgSort4Info() = default;
    MrgSort4Info(const uint16_t elementLengthsIn[MRG_SORT_ELEMENT_LEN], const bool ifExhaustedSuspensionIn,
                 const uint16_t validBitIn, const uint16_t repeatTimesIn)
        : ifExhaustedSuspension(ifExhaustedSuspensionIn), validBit(validBitIn), repeatTimes(repeatTimesIn)
    {
        std::copy_n(elementLengthsIn, MRG_SORT_ELEMENT_LEN, elementLengths);
    }

    uint16_t elementLengths[MRG_SORT_ELEMENT_LEN] = {};
    bool ifExhaustedSuspension = false;
    uint16_t validBit = 0;
    Field<uint8_t> repeatTimes = 1;
};

template <typename T>
struct MrgSortSrcList {
    MrgSortSrcList() = default;
    MrgSortSrcList(const LocalTensor<T>& src1In, const LocalTensor<T>& src2In, const LocalTensor<T>& src3In,
                   const LocalTensor<T>& src4In)
        : src1(src1In), src2(src2In), src3(src3In), src4(src4In)
    {}

    LocalTensor<T> src1;
    LocalTensor<T> src2;
    LocalTensor<T> src3;
    LocalTensor<T> src4;
};

}  // namespace AscendC

namespace neonext_twin {

/// Sort the scores of each repeat, or with `full` those of all repeats, and write them as pairs with their indices.
template <typename T>
inline void sort_pairs(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src0,
                       const AscendC::LocalTensor<uint32_t>& src1, int32_t repeats_given, bool full)
{
    constexpr uint32_t in_repeat = 32;
    const int repeats_of_all = Field<uint8_t>(repeats_given).checked("repeatTime", Rule::repeat);
    const uint32_t length = full ? in_repeat * repeats_of_all : in_repeat;
    const int repeats = full && repeats_of_all > 0 ? 1 : repeats_of_all;
    const uint32_t tick = machine.issue(pipe_v);
    for (const View* view : {&dst.twin_view(), &src0.twin_view(), &src1.twin_view()}) {
        view->check_aligned("a tensor");
    }
    for (int repeat = 0; repeat < repeats; ++repeat) {
        const uint64_t first = uint64_t{length} * repeat;
        const uint8_t* scores =
            src0.twin_view().read(pipe_v, tick, first * sizeof(T), length * sizeof(T), "src0");
        const uint8_t* indices = src1.twin_view().read(pipe_v, tick, first * 4, length * 4, "src1");
        std::vector<uint64_t> pairs(length);
        for (uint32_t i = 0; i < length; ++i) {
            std::memcpy(&pairs[i], scores + i * sizeof(T), sizeof(T));
            std::memcpy(reinterpret_cast<uint8_t*>(&pairs[i]) + 4, indices + i * 4, 4);
        }
        std::stable_sort(pairs.begin(), pairs.end(), [](const uint64_t& a, const uint64_t& b) {
            return score_of<T>(reinterpret_cast<const uint8_t*>(&a)) >
                   score_of<T>(reinterpret_cast<const uint8_t*>(&b));
        });
        const uint64_t bytes = length * pair_bytes;
        std::memcpy(dst.twin_view().write(pipe_v, tick, first * pair_bytes, bytes, "dst"), pairs.data(), bytes);
    }
    count_vector(repeats_of_all, uint64_t{in_repeat} * repeats_of_all);
}

}  // namespace neonext_twin

namespace AscendC {

/// Sort 32 scores in each repeat, and write them as pairs with their indices.
template <typename T>
inline void Sort32(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<uint32_t>& src1,
                   const int32_t repeatTime, Where at = Where::here())
{
    neonext_twin::enter_sort<T>("Sort32", at);
    neonext_twin::sort_pairs(dst, src0, src1, repeatTime, false);
}

// Functions of the library for sorting, as they are on 2201; 2002 has other ones, on Region Proposals.

/// Return how many elements of T a sorted queue of so many scores takes.
template <typename T>
inline uint32_t GetSortLen(const uint32_t elemCount)
{
    return elemCount * static_cast<uint32_t>(neonext_twin::pair_bytes / sizeof(T));
}

template <typename T>
inline uint32_t GetSortOffset(const uint32_t elemOffset)
{
    return GetSortLen<T>(elemOffset);
}

/// Prepare scores for Sort: on 2201 they are sorted where they lie.
template <typename T>
inline void Concat(LocalTensor<T>& concat, const LocalTensor<T>& src, const LocalTensor<T>&, const int32_t,
                   Where at = Where::here())
{
    neonext_twin::enter_sort<T>("Concat", at);
    concat = src;
}

template <typename T, bool isFullSort>
inline void Sort(const LocalTensor<T>& dst, const LocalTensor<T>& concat, const LocalTensor<uint32_t>& index,
                 const LocalTensor<T>&, const int32_t repeatTime, Where at = Where::here())
{
    neonext_twin::enter_sort<T>("Sort", at);
    neonext_twin::sort_pairs(dst, concat, index, repeatTime, isFullSort);
}

/// Split pairs into scores and indices, 32 in each repeat.
template <typename T>
inline void Extract(const LocalTensor<T>& dstValue, const LocalTensor<uint32_t>& dstIndex, const LocalTensor<T>& sorted,
                    const int32_t repeatTime, Where at = Where::here())
{
    using neonext_twin::pipe_v;
    neonext_twin::enter_sort<T>("Extract", at);
    const uint64_t length = 32u * Field<uint8_t>(repeatTime).checked("repeatTime", Rule::repeat);
    const uint32_t tick = machine.issue(pipe_v);
    for (const neonext_twin::View* view : {&dstValue.twin_view(), &dstIndex.twin_view(), &sorted.twin_view()}) {
        view->check_aligned("a tensor");
    }
    const uint8_t* pairs =
        sorted.twin_view().read(pipe_v, tick, 0, length * neonext_twin::pair_bytes, "sorted");
    uint8_t* values = dstValue.twin_view().write(pipe_v, tick, 0, length * sizeof(T), "dstValue");
    uint8_t* indices = dstIndex.twin_view().write(pipe_v, tick, 0, length * sizeof(uint32_t), "dstIndex");
    for (uint64_t i = 0; i < length; ++i, pairs += neonext_twin::pair_bytes) {
        std::memcpy(values + i * sizeof(T), pairs, sizeof(T));
        std::memcpy(indices + i * sizeof(uint32_t), pairs + 4, sizeof(uint32_t));
    }
    neonext_twin::count_vector(length / 32, length);
}

/// Merge two to four queues into one; each repeat takes the four queues behind those of the one before.
template <typename T>
inline void MrgSort(const LocalTensor<T>& dst, const MrgSortSrcList<T>& src, const MrgSort4Info& params,
                    Where at = Where::here())
{
    using neonext_twin::pair_bytes;
    using neonext_twin::pipe_v;
    neonext_twin::enter_sort<T>("MrgSort", at);
    const int used = params.validBit == 3 ? 2 : params.validBit == 7 ? 3 : params.validBit == 15 ? 4 : 0;
    const int repeats = params.repeatTimes.checked("repeatTimes", Rule::repeat);
    const bool alike = std::equal(params.elementLengths + 1, params.elementLengths + 4, params.elementLengths);
    if (used == 0 || (repeats > 1 && (used != 4 || params.ifExhaustedSuspension || !alike))) {
        machine.reject(Rule::argument,
                       "validBit is %d with %d repeats; it is 3, 7 or 15, and repeats need four queues of one length "
                       "without suspension",
                       params.validBit, repeats);
    }
    const LocalTensor<T>* tensors[] = {&src.src1, &src.src2, &src.src3, &src.src4};
    const uint32_t tick = machine.issue(pipe_v);
    uint64_t all = 0;
    for (int queue = 0; queue < used; ++queue) {
        all += params.elementLengths[queue];
    }
    std::vector<uint8_t> out(all * pair_bytes);
    for (int repeat = 0; repeat < repeats; ++repeat) {
        const uint64_t skipped = repeat * all * pair_bytes;
        const uint8_t* from[neonext_twin::queues];
        for (int queue = 0; queue < used; ++queue) {
            from[queue] = tensors[queue]->twin_view().read(
                pipe_v, tick, skipped, static_cast<uint32_t>(params.elementLengths[queue] * pair_bytes), "src");
        }
        neonext_twin::merged = neonext_twin::merge<T>(from, params.elementLengths, used, params.ifExhaustedSuspension,
                                                      out.data());
        uint64_t pairs = 0;
        for (const uint16_t taken : neonext_twin::merged) {
            pairs += taken;
        }
        std::memcpy(dst.twin_view().write(pipe_v, tick, skipped, pairs * pair_bytes, "dst"), out.data(),
                    pairs * pair_bytes);
    }
    neonext_twin::count_vector(repeats, all * repeats);
}

/// Return how many pairs of each queue the last MrgSort took.
inline void GetMrgSortResult(uint16_t& mrgSortList1, uint16_t& mrgSortList2, uint16_t& mrgSortList3,
                             uint16_t& mrgSortList4)
{
    std::tie(mrgSortList1, mrgSortList2, mrgSortList3, mrgSortList4) = std::tuple_cat(neonext_twin::merged);
}

/// The form of the library: the lengths of the queues, and how much of each was taken.
template <typename T, bool isExhaustedSuspension = false>
inline void MrgSort(const LocalTensor<T>& dst, const MrgSortSrcList<T>& sortList, const uint16_t elementCountList[4],
                    uint32_t sortedNum[4], uint16_t validBit, const int32_t repeatTime, Where at = Where::here())
{
    MrgSort4Info params(elementCountList, isExhaustedSuspension, validBit, 1);
    params.repeatTimes = repeatTime;
    MrgSort(dst, sortList, params, at);
    std::copy(neonext_twin::merged.begin(), neonext_twin::merged.end(), sortedNum);
}

}  // namespace AscendC
