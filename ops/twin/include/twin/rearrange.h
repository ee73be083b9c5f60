// Functions that move lanes: Gather, GatherMask, Brcb, CreateVecIndex, Transpose, TransDataTo5HD.
#pragma once

#include <set>

#include "convert.h"
#include "vector.h"

namespace neonext_twin {

constexpr int address_list = 16;

/// Elements that a repeat of Gather and Scatter takes: with one byte each they fill half of the 256 bytes.
template <typename T>
constexpr int gather_lanes = sizeof(T) == 1 ? 128 : lanes_per_repeat<T>();

template <typename T>
constexpr int gather_stride = gather_lanes<T> * static_cast<int>(sizeof(T)) / static_cast<int>(block_bytes);

/// Call visit(repeat, lane, base + offset) for every active lane; the offsets count bytes and lie without gaps.
template <typename F>
inline void for_offsets(uint32_t tick, const Lanes& lanes, const AscendC::LocalTensor<uint32_t>& offsets,
                        const char* operand, uint64_t base, uint64_t element, F visit)
{
    for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (int lane = 0; lane < lanes.per_repeat; ++lane) {
            if ((lanes.bits(repeat, lane) & 1) == 0) {
                continue;
            }
            const uint64_t at = (static_cast<uint64_t>(repeat) * lanes.per_repeat + lane) * sizeof(uint32_t);
            uint32_t offset;
            std::memcpy(&offset, offsets.twin_view().read(pipe_v, tick, at, sizeof(offset), operand), sizeof(offset));
            if ((base + offset) % element != 0) {
                machine.reject(Rule::alignment, "%s: lane %d of repeat %d is at byte %llu, between two elements",
                               operand, lane, repeat, static_cast<unsigned long long>(base + offset));
            }
            visit(repeat, lane, base + offset);
        }
    }
}

template <typename T>
inline void run_gather(const Lanes& lanes, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                       const AscendC::LocalTensor<uint32_t>& offsets, uint64_t base, int64_t target_stride)
{
    const uint32_t tick = machine.issue(pipe_v);
    const View& source = src.twin_view();
    const Operand target = operand_of(dst, "dst", 1, target_stride);
    source.check_aligned("src");
    offsets.twin_view().check_aligned("srcOffset");
    check_operand<Access::write>(tick, lanes, target);
    count_vector(lanes);
    for_offsets(tick, lanes, offsets, "srcOffset", base, sizeof(T), [&](int repeat, int lane, uint64_t from) {
        std::memcpy(machine.ub + dst.twin_view().address + repeat * target_stride * block_bytes + lane * sizeof(T),
                    source.read(pipe_v, tick, from, sizeof(T), "src"), sizeof(T));
    });
}

/// The reverse of run_gather: lanes of src go to offsets of dst.
template <typename T>
inline void run_scatter(const Lanes& lanes, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                        const AscendC::LocalTensor<uint32_t>& offsets, uint64_t base, int64_t source_stride)
{
    const uint32_t tick = machine.issue(pipe_v);
    const Operand source = operand_of(src, "src", 1, source_stride);
    dst.twin_view().check_aligned("dst");
    offsets.twin_view().check_aligned("dstOffset");
    check_operand<Access::read>(tick, lanes, source);
    count_vector(lanes);
    std::set<uint64_t> taken;
    for_offsets(tick, lanes, offsets, "dstOffset", base, sizeof(T), [&](int repeat, int lane, uint64_t to) {
        if (!taken.insert(to).second) {
            machine.reject(Rule::overlap, "dst: lane %d of repeat %d goes to byte %llu, as an earlier one does", lane,
                           repeat, static_cast<unsigned long long>(to));
        }
        const uint64_t from = repeat * source_stride * block_bytes + lane * sizeof(T);
        std::memcpy(dst.twin_view().write(pipe_v, tick, to, sizeof(T), "dst"),
                    machine.ub + src.twin_view().address + from, sizeof(T));
    });
}

/// Return whether one of GatherMask's built-in patterns keeps a lane.
inline bool pattern_bit(int pattern, uint64_t lane)
{
    switch (pattern) {
        case 1: return lane % 2 == 0;
        case 2: return lane % 2 == 1;
        case 7: return true;
        default: return lane % 4 == static_cast<uint64_t>(pattern - 3);
    }
}

/// Pack the chosen lanes of every repeat one after another. `chosen(repeat, lane)` may read a pattern tensor.
template <typename T, typename F>
inline void run_gather_mask(uint32_t tick, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                            bool counter, uint32_t mask, const AscendC::GatherMaskParams& params, uint64_t& kept,
                            F chosen)
{
    constexpr uint64_t per_repeat = lanes_per_repeat<T>();
    const int64_t block_stride = params.src0BlockStride.checked("src0BlockStride");
    const int64_t repeat_stride = params.src0RepeatStride.checked("src0RepeatStride");
    uint64_t repeats = params.repeatTimes.checked("repeatTimes");
    uint64_t in_repeat = per_repeat;
    uint64_t total = repeats * per_repeat;
    if (counter && __NPU_ARCH__ == 2002) {
        total = mask;
        repeats = (total + per_repeat - 1) / per_repeat;
    } else if (counter) {
        in_repeat = mask;
        total = repeats * mask;
    }
    const View& source = src.twin_view();
    source.check_aligned("src0");
    dst.twin_view().check_aligned("dst");
    std::vector<uint8_t> out;
    constexpr uint64_t per_block = block_bytes / sizeof(T);
    uint64_t seen = 0;
    for (uint64_t repeat = 0; repeat < repeats; ++repeat) {
        for (uint64_t lane = 0; lane < in_repeat && seen < total; ++lane, ++seen) {
            const uint64_t from = (repeat * repeat_stride + lane / per_block * block_stride) * block_bytes +
                                  lane % per_block * sizeof(T);
            if (!chosen(repeat, lane)) {
                continue;
            }
            const uint8_t* element = source.read(pipe_v, tick, from, sizeof(T), "src0");
            out.insert(out.end(), element, element + sizeof(T));
        }
    }
    if (!out.empty()) {
        std::memcpy(dst.twin_view().write(pipe_v, tick, 0, out.size(), "dst"), out.data(), out.size());
    }
    kept = machine.reserved_count = out.size() / sizeof(T);
    count_vector(repeats, total);
}

/// Check an address from a list of addresses: a whole block of the unified buffer.
inline void check_block_address(uint64_t address, const char* operand)
{
    if (address % block_bytes != 0) {
        machine.reject(Rule::alignment, "%s: address %llu is not a multiple of 32", operand,
                       static_cast<unsigned long long>(address));
    }
    if (address + block_bytes > machine.ub_bytes) {
        machine.reject(Rule::ub_bounds, "%s: address %llu of a unified buffer of %u bytes", operand,
                       static_cast<unsigned long long>(address), machine.ub_bytes);
    }
}

template <typename T>
inline void run_transdata(const uint64_t* target, const uint64_t* source, const AscendC::TransDataTo5HDParams& params)
{
    const uint32_t tick = machine.issue(pipe_v);
    const int repeats = params.repeatTimes.checked("repeatTimes", Rule::repeat);
    const uint64_t target_step = uint64_t{params.dstRepStride.checked("dstRepStride")} * block_bytes;
    const uint64_t source_step = uint64_t{params.srcRepStride.checked("srcRepStride")} * block_bytes;
    constexpr int per_block = block_bytes / sizeof(T);
    for (int repeat = 0; repeat < repeats; ++repeat) {
        // A quirk of the device: with one repeat it starts one stride behind the addresses.
        const uint64_t step = repeats == 1 ? 1 : repeat;
        T in[address_list][per_block];
        for (int row = 0; row < address_list; ++row) {
            const uint64_t address = source[row] + step * source_step;
            check_block_address(address, "srcList");
            machine.read_bytes(pipe_v, tick, static_cast<uint32_t>(address), block_bytes, "srcList");
            std::memcpy(in[row], machine.ub + address, block_bytes);
        }
        for (int row = 0; row < address_list; ++row) {
            const uint64_t address = target[row] + step * target_step;
            check_block_address(address, "dstList");
            if constexpr (sizeof(T) == 1) {
                T out[address_list];
                for (int lane = 0; lane < address_list; ++lane) {
                    out[lane] = in[lane][row + (params.srcHighHalf ? address_list : 0)];
                }
                const uint32_t start = static_cast<uint32_t>(address) + (params.dstHighHalf ? address_list : 0);
                machine.write_bytes(pipe_v, tick, start, address_list, "dstList");
                std::memcpy(machine.ub + start, out, address_list);
            } else {
                T out[per_block];
                for (int lane = 0; lane < per_block; ++lane) {
                    if constexpr (sizeof(T) == 2) {
                        out[lane] = in[lane][row];
                    } else {
                        out[lane] = in[row % 2 * per_block + lane][row / 2];
                    }
                }
                machine.write_bytes(pipe_v, tick, static_cast<uint32_t>(address), block_bytes, "dstList");
                std::memcpy(machine.ub + address, out, block_bytes);
            }
        }
    }
    count_vector(static_cast<uint64_t>(repeats), static_cast<uint64_t>(repeats) * address_list * per_block);
}

}  // namespace neonext_twin

namespace AscendC {

constexpr int32_t NCHW_CONV_ADDR_LIST_SIZE = neonext_twin::address_list;

enum class GatherMaskMode : uint8_t { VERSION_V1 = 0, VERSION_V2 = 1 };
constexpr GatherMaskMode defaultGatherMaskMode =
    __NPU_ARCH__ == 2201 ? GatherMaskMode::VERSION_V2 : GatherMaskMode::VERSION_V1;

template <typename T>
inline void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset,
                   const uint32_t srcBaseOffset, const Mask& mask, Field<uint8_t> repeatTime,
                   Field<uint16_t> dstRepStride, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("Gather", T, at);
    const auto lanes = neonext_twin::lanes_of_mask(neonext_twin::gather_lanes<T>, mask, repeatTime);
    neonext_twin::run_gather(lanes, dst, src, srcOffset, srcBaseOffset, dstRepStride.checked("dstRepStride"));
}

template <typename T>
inline void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset,
                   const uint32_t srcBaseOffset, const uint32_t count, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("Gather", T, at);
    const auto lanes = neonext_twin::lanes_of_count(neonext_twin::gather_lanes<T>, count);
    neonext_twin::run_gather(lanes, dst, src, srcOffset, srcBaseOffset, neonext_twin::gather_stride<T>);
}

template <typename T>
inline void Scatter(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& dstOffset,
                    const uint32_t dstBaseAddr, const Mask& mask, Field<uint8_t> repeatTime,
                    Field<uint8_t> srcRepStride, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("Scatter", T, at);
    const auto lanes = neonext_twin::lanes_of_mask(neonext_twin::gather_lanes<T>, mask, repeatTime);
    neonext_twin::run_scatter(lanes, dst, src, dstOffset, dstBaseAddr, srcRepStride.checked("srcRepStride"));
}

template <typename T>
inline void Scatter(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& dstOffset,
                    const uint32_t dstBaseAddr, const uint32_t count, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("Scatter", T, at);
    const auto lanes = neonext_twin::lanes_of_count(neonext_twin::gather_lanes<T>, count);
    neonext_twin::run_scatter(lanes, dst, src, dstOffset, dstBaseAddr, neonext_twin::gather_stride<T>);
}

/// Gather whole blocks: eight offsets for each repeat.
template <typename T>
inline void Gatherb(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& offset,
                    Field<uint8_t> repeatTime, const GatherRepeatParams& repeatParams, Where at = Where::here())
{
    using neonext_twin::block_bytes;
    using neonext_twin::pipe_v;
    NEONEXT_TWIN_ENTER("Gatherb", T, at);
    const int repeats = repeatTime.checked("repeatTime", Rule::repeat);
    const uint64_t block_stride = repeatParams.dstBlkStride.checked("dstBlkStride");
    const uint64_t repeat_stride = repeatParams.dstRepStride.checked("dstRepStride");
    const uint32_t tick = machine.issue(pipe_v);
    dst.twin_view().check_aligned("dst");
    src.twin_view().check_aligned("src");
    offset.twin_view().check_aligned("offset");
    for (int i = 0; i < repeats * DEFAULT_BLK_NUM; ++i) {
        uint32_t from;
        const uint64_t place = i * sizeof(from);
        std::memcpy(&from, offset.twin_view().read(pipe_v, tick, place, sizeof(from), "offset"), sizeof(from));
        if (from % block_bytes != 0) {
            machine.reject(Rule::alignment, "offset: block %d is at byte %u, which is not a multiple of 32", i, from);
        }
        const uint8_t* block = src.twin_view().read(pipe_v, tick, from, block_bytes, "src");
        const uint64_t to = (i / DEFAULT_BLK_NUM * repeat_stride + i % DEFAULT_BLK_NUM * block_stride) * block_bytes;
        std::memcpy(dst.twin_view().write(pipe_v, tick, to, block_bytes, "dst"), block, block_bytes);
    }
    neonext_twin::count_vector(repeats, static_cast<uint64_t>(repeats) * neonext_twin::lanes_per_repeat<T>());
}

template <typename T, GatherMaskMode mode = defaultGatherMaskMode>
inline void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const uint8_t src1Pattern,
                       const bool reduceMode, const uint32_t mask, const GatherMaskParams& gatherMaskParams,
                       uint64_t& rsvdCnt, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("GatherMask", T, at);
    const int most = __NPU_ARCH__ == 2002 ? 6 : 7;
    if (src1Pattern < 1 || src1Pattern > most) {
        machine.reject(Rule::argument, "src1Pattern is %d; __NPU_ARCH__ %d has 1 to %d", src1Pattern, __NPU_ARCH__,
                       most);
    }
    const uint32_t tick = machine.issue(neonext_twin::pipe_v);
    neonext_twin::run_gather_mask(
        tick, dst, src0, reduceMode, mask, gatherMaskParams, rsvdCnt,
        [=](uint64_t, uint64_t lane) { return neonext_twin::pattern_bit(src1Pattern, lane); });
}

template <typename T, typename U, GatherMaskMode mode = defaultGatherMaskMode>
inline void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<U>& src1Pattern,
                       const bool reduceMode, const uint32_t mask, const GatherMaskParams& gatherMaskParams,
                       uint64_t& rsvdCnt, Where at = Where::here())
{
    static_assert(sizeof(T) == sizeof(U), "the pattern's type is as wide as the data's");
    NEONEXT_TWIN_ENTER("GatherMask", T, at);
    const neonext_twin::View& pattern = src1Pattern.twin_view();
    pattern.check_aligned("src1Pattern");
    const uint64_t stride = uint64_t{gatherMaskParams.src1RepeatStride.checked("src1RepeatStride")} * ONE_BLK_SIZE;
    const uint32_t tick = machine.issue(neonext_twin::pipe_v);
    neonext_twin::run_gather_mask(tick, dst, src0, reduceMode, mask, gatherMaskParams, rsvdCnt,
                                  [&](uint64_t repeat, uint64_t lane) {
                                      const uint64_t from = repeat * stride + lane / 8;
                                      const uint8_t byte =
                                          *pattern.read(neonext_twin::pipe_v, tick, from, 1, "src1Pattern");
                                      return (byte >> (lane % 8) & 1) != 0;
                                  });
}

template <typename T>
inline void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, Field<uint8_t> repeatTime,
                 const BrcbRepeatParams& repeatParams, Where at = Where::here())
{
    using neonext_twin::block_bytes;
    using neonext_twin::pipe_v;
    NEONEXT_TWIN_ENTER("Brcb", T, at);
    if (__NPU_ARCH__ == 2002) {
        machine.use_scratch();
    }
    const int repeats = repeatTime.checked("repeatTime", Rule::repeat);
    if (repeats == 0 && !neonext_twin::zero_does_nothing()) {
        machine.reject(Rule::repeat, "0 repeats; an instruction has 1 to 255");
    }
    const uint64_t block_stride = repeatParams.dstBlkStride.checked("dstBlkStride");
    const uint64_t repeat_stride = repeatParams.dstRepStride.checked("dstRepStride");
    if (block_stride == 0) {
        machine.reject(Rule::overlap, "dst: a block stride of 0 writes all blocks of a repeat to one place");
    }
    const uint32_t tick = machine.issue(pipe_v);
    dst.twin_view().check_aligned("dst");
    src.twin_view().check_aligned("src");
    const uint32_t bytes = static_cast<uint32_t>(repeats * DEFAULT_BLK_NUM * sizeof(T));
    const uint8_t* values = src.twin_view().read(pipe_v, tick, 0, bytes, "src");
    for (int i = 0; i < repeats * DEFAULT_BLK_NUM; ++i) {
        const uint64_t to = (i / DEFAULT_BLK_NUM * repeat_stride + i % DEFAULT_BLK_NUM * block_stride) * block_bytes;
        uint8_t* block = dst.twin_view().write(pipe_v, tick, to, block_bytes, "dst");
        if (block < values + bytes && values < block + block_bytes) {
            machine.reject(Rule::overlap, "dst covers src");
        }
        for (uint32_t lane = 0; lane < block_bytes; lane += sizeof(T)) {
            std::memcpy(block + lane, values + i * sizeof(T), sizeof(T));
        }
    }
    machine.reset_mask();
    neonext_twin::count_vector(repeats, static_cast<uint64_t>(repeats) * neonext_twin::lanes_per_repeat<T>());
}

/// first, first + 1, first + 2, ... in lanes that may be masked.
template <typename T>
inline void twin_vector_index(const neonext_twin::Lanes& lanes, const neonext_twin::Operand& dst, const T& first)
{
    using C = neonext_twin::compute_t<T>;
    int lane = 0;
    neonext_twin::run_lanes<false, T>(
        lanes, dst, [&](C) { return static_cast<C>(static_cast<C>(first) + static_cast<C>(lane++)); });
}

template <typename T>
inline void CreateVecIndex(LocalTensor<T> dst, const T& firstValue, uint32_t count, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("CreateVecIndex", T, at);
    const auto lanes = neonext_twin::lanes_of_count(neonext_twin::lanes_per_repeat<T>(), count);
    twin_vector_index(lanes, neonext_twin::operand_of(dst, "dst", 1, DEFAULT_REPEAT_STRIDE), firstValue);
}

template <typename T>
inline void CreateVecIndex(LocalTensor<T>& dst, const T& firstValue, const Mask& mask, Field<uint8_t> repeatTime,
                           Field<uint16_t> dstBlkStride, Field<uint8_t> dstRepStride, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("CreateVecIndex", T, at);
    const auto lanes = neonext_twin::lanes_of_mask(neonext_twin::lanes_per_repeat<T>(), mask, repeatTime);
    const auto operand = neonext_twin::operand_of(dst, "dst", dstBlkStride.checked("dstBlkStride"),
                                                  dstRepStride.checked("dstRepStride"));
    twin_vector_index(lanes, operand, firstValue);
}

/// first, first + step, first + 2 step, ...: a library function, counted as one instruction.
template <typename T>
inline void ArithProgression(const LocalTensor<T>& dst, const T firstValue, const T diffValue, const int32_t count,
                             Where at = Where::here())
{
    machine.enter("ArithProgression", at);
    using C = neonext_twin::compute_t<T>;
    const auto lanes = neonext_twin::lanes_of_count(neonext_twin::lanes_per_repeat<T>(), count);
    const auto operand = neonext_twin::operand_of(dst, "dst", 1, DEFAULT_REPEAT_STRIDE);
    const uint32_t tick = machine.issue(neonext_twin::pipe_v);
    neonext_twin::check_operand<neonext_twin::Access::write>(tick, lanes, operand);
    neonext_twin::count_vector(lanes);
    for (int i = 0; i < count; ++i) {
        const C value = static_cast<C>(static_cast<C>(firstValue) + static_cast<C>(i) * static_cast<C>(diffValue));
        neonext_twin::narrow(&value, reinterpret_cast<T*>(machine.ub + dst.twin_view().address) + i, 1);
    }
}

/// Transpose 16 x 16 elements of 16 bits.
template <typename T>
inline void Transpose(const LocalTensor<T>& dst, const LocalTensor<T>& src, Where at = Where::here())
{
    static_assert(sizeof(T) == 2, "Transpose takes types of 16 bits");
    using neonext_twin::pipe_v;
    NEONEXT_TWIN_ENTER("Transpose", T, at);
    constexpr int side = 16;
    constexpr uint32_t bytes = side * side * sizeof(T);
    const uint32_t tick = machine.issue(pipe_v);
    src.twin_view().check_aligned("src");
    dst.twin_view().check_aligned("dst");
    uint16_t in[side * side];
    std::memcpy(in, src.twin_view().read(pipe_v, tick, 0, bytes, "src"), bytes);
    uint8_t* out = dst.twin_view().write(pipe_v, tick, 0, bytes, "dst");
    for (int i = 0; i < side * side; ++i) {
        std::memcpy(out + i * sizeof(T), &in[i % side * side + i / side], sizeof(T));
    }
    neonext_twin::count_vector(2, side * side);
}

enum class TransposeType : uint8_t {
    TRANSPOSE_TYPE_NONE, TRANSPOSE_NZ2ND_0213, TRANSPOSE_NZ2NZ_0213, TRANSPOSE_NZ2NZ_012_WITH_N,
    TRANSPOSE_NZ2ND_012_WITH_N, TRANSPOSE_NZ2ND_012_WITHOUT_N, TRANSPOSE_NZ2NZ_012_WITHOUT_N, TRANSPOSE_ND2ND_ONLY,
    TRANSPOSE_ND_UB_GM, TRANSPOSE_GRAD_ND_UB_GM, TRANSPOSE_ND2ND_B16, TRANSPOSE_NCHW2NHWC, TRANSPOSE_NHWC2NCHW,
};

struct TransposeParamsExt {
    TransposeParamsExt() = default;
    TransposeParamsExt(uint16_t nSizeIn, uint16_t cSizeIn, uint16_t hSizeIn, uint16_t wSizeIn,
                       TransposeType transposeTypeIn)
        : nSize(nSizeIn), cSize(cSizeIn), hSize(hSizeIn), wSize(wSizeIn), transposeType(transposeTypeIn)
    {}

    uint16_t nSize = 0;
    uint16_t cSize = 0;
    uint16_t hSize = 0;
    uint16_t wSize = 0;
    TransposeType transposeType = TransposeType::TRANSPOSE_ND2ND_B16;
};

/// Transpose (N, C, H, W) to (N, H, W, C) or back: counted as one instruction. `sharedTmpBuffer` is overwritten.
template <typename T>
inline void Transpose(const LocalTensor<T>& dst, const LocalTensor<T>& src,
                      const LocalTensor<uint8_t>& sharedTmpBuffer, const TransposeParamsExt& transposeParams,
                      Where at = Where::here())
{
    using neonext_twin::pipe_v;
    machine.enter("Transpose", at);
    const bool last = transposeParams.transposeType == TransposeType::TRANSPOSE_NCHW2NHWC;
    if (!last && transposeParams.transposeType != TransposeType::TRANSPOSE_NHWC2NCHW) {
        machine.stop(Rule::not_in_twin, "the simulator has NCHW to NHWC and back only");
    }
    const uint64_t pixels = uint64_t{transposeParams.hSize} * transposeParams.wSize;
    const uint64_t channels = transposeParams.cSize;
    const uint64_t bytes = transposeParams.nSize * channels * pixels * sizeof(T);
    const uint32_t tick = machine.issue(pipe_v);
    const uint8_t* read = src.twin_view().read(pipe_v, tick, 0, static_cast<uint32_t>(bytes), "src");
    const std::vector<uint8_t> in(read, read + bytes);
    sharedTmpBuffer.twin_view().write(pipe_v, tick, 0, sharedTmpBuffer.GetSize(), "sharedTmpBuffer");
    uint8_t* out = dst.twin_view().write(pipe_v, tick, 0, static_cast<uint32_t>(bytes), "dst");
    const uint64_t rows = last ? channels : pixels;
    const uint64_t columns = last ? pixels : channels;
    for (uint64_t i = 0; i < bytes / sizeof(T); ++i) {
        const uint64_t image = i / (rows * columns) * rows * columns;
        const uint64_t at_row = i % (rows * columns) / columns;
        std::memcpy(out + (image + i % columns * rows + at_row) * sizeof(T), &in[i * sizeof(T)], sizeof(T));
    }
    machine.note("Transpose: counted as one instruction");
    neonext_twin::count_vector(bytes / neonext_twin::repeat_bytes + 1, bytes / sizeof(T));
}

template <typename T>
inline void TransDataTo5HD(uint64_t dstList[NCHW_CONV_ADDR_LIST_SIZE], uint64_t srcList[NCHW_CONV_ADDR_LIST_SIZE],
                           const TransDataTo5HDParams& nchwconvParams, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("TransDataTo5HD", T, at);
    neonext_twin::run_transdata<T>(dstList, srcList, nchwconvParams);
}

template <typename T>
inline void TransDataTo5HD(const LocalTensor<T> (&dstList)[NCHW_CONV_ADDR_LIST_SIZE],
                           const LocalTensor<T> (&srcList)[NCHW_CONV_ADDR_LIST_SIZE],
                           const TransDataTo5HDParams& nchwconvParams, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("TransDataTo5HD", T, at);
    uint64_t target[NCHW_CONV_ADDR_LIST_SIZE];
    uint64_t source[NCHW_CONV_ADDR_LIST_SIZE];
    for (int i = 0; i < NCHW_CONV_ADDR_LIST_SIZE; ++i) {
        dstList[i].twin_view().check("dstList");
        srcList[i].twin_view().check("srcList");
        target[i] = dstList[i].GetPhyAddr();
        source[i] = srcList[i].GetPhyAddr();
    }
    neonext_twin::run_transdata<T>(target, source, nchwconvParams);
}

}  // namespace AscendC
