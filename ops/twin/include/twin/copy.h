// DataCopy, DataCopyPad and Copy: MTE2 from global memory, MTE3 to it, V within the unified buffer.
#pragma once

#include "pipe.h"
#include "vector.h"

namespace neonext_twin {

constexpr uint64_t most_blocks = 4095;

inline void count_copy(Pipe pipe, uint64_t bursts, uint64_t bytes)
{
    PipeCounts counts;
    counts.instructions = 1;
    counts.bursts = bursts;
    counts.bytes = bytes;
    machine.count(pipe, counts);
}

/// The blocks of one copy, in bytes.
struct Copy {
    uint64_t blocks = 1;
    uint64_t length = 0;
    uint64_t source_step = 0;
    uint64_t target_step = 0;
};

inline bool check_blocks(const AscendC::DataCopyParams& params)
{
    params.blockCount.checked("blockCount");
    params.blockLen.checked("blockLen");
    params.srcGap.checked("srcGap");
    params.dstGap.checked("dstGap");
    if (params.blockCount > most_blocks) {
        machine.refuse(Rule::stride, "blockCount is %d; a copy has at most %d blocks", int(params.blockCount),
                       int(most_blocks));
    }
    const bool nothing = params.blockCount == 0 || params.blockLen == 0;
    if (nothing && !zero_does_nothing()) {
        machine.refuse(Rule::argument, "blockCount is %d and blockLen %d; neither may be 0", int(params.blockCount),
                       int(params.blockLen));
    }
    return !nothing;
}

inline Copy copy_of(const AscendC::DataCopyParams& params)
{
    Copy copy;
    copy.blocks = params.blockCount;
    copy.length = uint64_t{params.blockLen} * block_bytes;
    copy.source_step = copy.length + uint64_t{params.srcGap} * block_bytes;
    copy.target_step = copy.length + uint64_t{params.dstGap} * block_bytes;
    return copy;
}

/// The copy of `count` elements; the real one drops what is left over of a 32-byte block.
template <typename T>
inline Copy copy_of_count(uint32_t count)
{
    const uint64_t bytes = uint64_t{count} * sizeof(T);
    if (bytes % block_bytes != 0) {
        machine.refuse(Rule::length, "%u elements of %s are %llu bytes, not a multiple of 32: the copy would leave out "
                       "the last %llu bytes",
                       count, type_name<T>(), static_cast<unsigned long long>(bytes),
                       static_cast<unsigned long long>(bytes % block_bytes));
    }
    if (bytes == 0 && !zero_does_nothing()) {
        machine.refuse(Rule::count, "a copy of 0 elements");
    }
    Copy copy;
    copy.blocks = bytes == 0 ? 0 : 1;
    copy.length = bytes;
    return copy;
}

template <typename T>
inline void check_gm_aligned(const AscendC::GlobalTensor<T>& tensor, const char* operand)
{
    if (reinterpret_cast<uintptr_t>(tensor.GetPhyAddr()) % sizeof(T) != 0) {
        machine.refuse(Rule::alignment, "%s does not start at a multiple of %zu bytes of global memory", operand,
                       sizeof(T));
    }
}

template <typename T>
inline void copy_in(const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src, const Copy& copy)
{
    const View& view = dst.twin_view();
    view.check("dst");
    view.check_aligned("dst");
    check_gm_aligned(src, "src");
    const uint32_t tick = machine.issue(pipe_mte2);
    for (uint64_t block = 0; block < copy.blocks; ++block) {
        uint64_t start = 0;
        Region& region = src.twin_range(block * copy.source_step, copy.length, "src", start);
        machine.gm_read(pipe_mte2, tick, region, start, copy.length, "src");
        const uint64_t to = block * copy.target_step;
        view.check_range("dst", to, copy.length);
        const uint32_t address = view.address + static_cast<uint32_t>(to);
        machine.write_bytes(pipe_mte2, tick, address, static_cast<uint32_t>(copy.length), "dst");
        std::memcpy(machine.ub + address, region.base + start, copy.length);
    }
    count_copy(pipe_mte2, copy.blocks, copy.blocks * copy.length);
}

template <typename T>
inline void store(uint8_t* to, const uint8_t* from, uint64_t bytes)
{
    if (machine.atomic == atomic_none) {
        std::memcpy(to, from, bytes);
        return;
    }
    for (uint64_t i = 0; i + sizeof(T) <= bytes; i += sizeof(T)) {
        T old;
        T add;
        std::memcpy(&old, to + i, sizeof(T));
        std::memcpy(&add, from + i, sizeof(T));
        const compute_t<T> a = static_cast<compute_t<T>>(old);
        const compute_t<T> b = static_cast<compute_t<T>>(add);
        const compute_t<T> largest = machine.atomic == atomic_max ? std::max(a, b) : std::min(a, b);
        const T result = static_cast<T>(machine.atomic == atomic_add ? static_cast<compute_t<T>>(a + b) : largest);
        std::memcpy(to + i, &result, sizeof(T));
    }
}

template <typename T>
inline void copy_out(const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Copy& copy)
{
    const View& view = src.twin_view();
    view.check("src");
    view.check_aligned("src");
    check_gm_aligned(dst, "dst");
    const uint32_t tick = machine.issue(pipe_mte3);
    for (uint64_t block = 0; block < copy.blocks; ++block) {
        const uint64_t from = block * copy.source_step;
        view.check_range("src", from, copy.length);
        const uint32_t address = view.address + static_cast<uint32_t>(from);
        machine.read_bytes(pipe_mte3, tick, address, static_cast<uint32_t>(copy.length), "src");
        uint64_t start = 0;
        Region& region = dst.twin_range(block * copy.target_step, copy.length, "dst", start);
        machine.gm_write(pipe_mte3, tick, region, start, copy.length, "dst");
        store<T>(region.base + start, machine.ub + address, copy.length);
    }
    count_copy(pipe_mte3, copy.blocks, copy.blocks * copy.length);
}

inline void copy_within(const View& dst, const View& src, const Copy& copy)
{
    dst.check("dst");
    dst.check_aligned("dst");
    src.check("src");
    src.check_aligned("src");
    const uint32_t tick = machine.issue(pipe_v);
    for (uint64_t block = 0; block < copy.blocks; ++block) {
        const uint64_t from = block * copy.source_step;
        const uint64_t to = block * copy.target_step;
        src.check_range("src", from, copy.length);
        dst.check_range("dst", to, copy.length);
        const uint32_t source = src.address + static_cast<uint32_t>(from);
        const uint32_t target = dst.address + static_cast<uint32_t>(to);
        if (source < target + copy.length && target < source + copy.length && source != target) {
            machine.refuse(Rule::overlap, "bytes [%u, %u) of the unified buffer are copied to [%u, %u)", source,
                           static_cast<uint32_t>(source + copy.length), target,
                           static_cast<uint32_t>(target + copy.length));
        }
        machine.read_bytes(pipe_v, tick, source, static_cast<uint32_t>(copy.length), "src");
        machine.write_bytes(pipe_v, tick, target, static_cast<uint32_t>(copy.length), "dst");
        std::memmove(machine.ub + target, machine.ub + source, copy.length);
    }
    PipeCounts counts;
    counts.instructions = 1;
    counts.bursts = copy.blocks;
    counts.bytes = copy.blocks * copy.length;
    counts.repeats = (counts.bytes + repeat_bytes - 1) / repeat_bytes;
    machine.count(pipe_v, counts);
}

}  // namespace neonext_twin

namespace AscendC {

template <typename T>
inline void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& repeatParams,
                     Where at = Where::here())
{
    machine.enter("DataCopy", at);
    NEONEXT_TWIN_SUPPORT("DataCopy", T);
    if (neonext_twin::check_blocks(repeatParams)) {
        neonext_twin::copy_in(dst, src, neonext_twin::copy_of(repeatParams));
    }
}

template <typename T>
inline void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& repeatParams,
                     Where at = Where::here())
{
    machine.enter("DataCopy", at);
    NEONEXT_TWIN_SUPPORT("DataCopy", T);
    if (neonext_twin::check_blocks(repeatParams)) {
        neonext_twin::copy_out(dst, src, neonext_twin::copy_of(repeatParams));
    }
}

template <typename T>
inline void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& repeatParams,
                     Where at = Where::here())
{
    machine.enter("DataCopy", at);
    NEONEXT_TWIN_SUPPORT("DataCopy", T);
    if (neonext_twin::check_blocks(repeatParams)) {
        neonext_twin::copy_within(dst.twin_view(), src.twin_view(), neonext_twin::copy_of(repeatParams));
    }
}

template <typename T>
inline void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const uint32_t count,
                     Where at = Where::here())
{
    machine.enter("DataCopy", at);
    NEONEXT_TWIN_SUPPORT("DataCopy", T);
    neonext_twin::copy_in(dst, src, neonext_twin::copy_of_count<T>(count));
}

template <typename T>
inline void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count,
                     Where at = Where::here())
{
    machine.enter("DataCopy", at);
    NEONEXT_TWIN_SUPPORT("DataCopy", T);
    neonext_twin::copy_out(dst, src, neonext_twin::copy_of_count<T>(count));
}

template <typename T>
inline void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count,
                     Where at = Where::here())
{
    machine.enter("DataCopy", at);
    NEONEXT_TWIN_SUPPORT("DataCopy", T);
    neonext_twin::copy_within(dst.twin_view(), src.twin_view(), neonext_twin::copy_of_count<T>(count));
}

}  // namespace AscendC

namespace neonext_twin {

constexpr uint64_t most_pad_length = 2097151;

/// One DataCopyPad: `length` and the strides of global memory in bytes, those of the unified buffer in blocks.
struct PadCopy {
    uint64_t blocks;
    uint64_t length;
    uint64_t source_gap;
    uint64_t target_gap;
};

template <typename Params>
inline PadCopy pad_copy_of(const Params& params, uint64_t element)
{
    const PadCopy copy{params.blockCount.checked("blockCount"), params.blockLen.checked("blockLen"),
                       params.srcStride.checked("srcStride"), params.dstStride.checked("dstStride")};
    if (copy.blocks > most_blocks) {
        machine.refuse(Rule::stride, "blockCount is %llu; a copy has at most %d blocks",
                       static_cast<unsigned long long>(copy.blocks), int(most_blocks));
    }
    if (copy.length > most_pad_length || copy.length % element != 0) {
        machine.refuse(Rule::length, "blockLen is %llu bytes; it is a multiple of %llu and at most %llu",
                       static_cast<unsigned long long>(copy.length), static_cast<unsigned long long>(element),
                       static_cast<unsigned long long>(most_pad_length));
    }
    if ((copy.blocks == 0 || copy.length == 0) && !zero_does_nothing()) {
        machine.refuse(Rule::argument, "blockCount is %llu and blockLen %llu; neither may be 0",
                       static_cast<unsigned long long>(copy.blocks), static_cast<unsigned long long>(copy.length));
    }
    return copy;
}

inline uint64_t round_to_block(uint64_t bytes)
{
    return (bytes + block_bytes - 1) / block_bytes * block_bytes;
}

template <typename T>
inline void fill_elements(uint32_t address, uint64_t bytes, const T& value)
{
    for (uint64_t i = 0; i + sizeof(T) <= bytes; i += sizeof(T)) {
        std::memcpy(machine.ub + address + i, &value, sizeof(T));
    }
}

template <typename T>
inline void pad_copy_in(const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src, const PadCopy& copy,
                        bool is_pad, uint64_t left, uint64_t right, const T& given)
{
    const View& view = dst.twin_view();
    view.check("dst");
    view.check_aligned("dst");
    left *= sizeof(T);
    right *= sizeof(T);
    if (left > block_bytes || right > block_bytes) {
        machine.refuse(Rule::argument, "padding of %llu and %llu bytes; each is at most 32",
                       static_cast<unsigned long long>(left), static_cast<unsigned long long>(right));
    }
    const uint32_t tick = machine.issue(pipe_mte2);
    if (copy.length == 0) {
        return;
    }
    const uint64_t padded = round_to_block(left + copy.length + right);
    T register_value;
    std::memcpy(&register_value, &machine.pad_value, sizeof(T));
    for (uint64_t block = 0; block < copy.blocks; ++block) {
        uint64_t start = 0;
        Region& region = src.twin_range(block * (copy.length + copy.source_gap), copy.length, "src", start);
        machine.gm_read(pipe_mte2, tick, region, start, copy.length, "src");
        const uint64_t to = block * (padded + copy.target_gap * block_bytes);
        view.check_range("dst", to, padded);
        const uint32_t address = view.address + static_cast<uint32_t>(to);
        machine.write_bytes(pipe_mte2, tick, address, static_cast<uint32_t>(padded), "dst");
        std::memcpy(machine.ub + address + left, region.base + start, copy.length);
        const uint32_t tail = address + static_cast<uint32_t>(left + copy.length);
        const uint64_t rest = padded - left - copy.length;
        if (is_pad || machine.pad_value_set) {
            fill_elements<T>(address, left, is_pad ? given : register_value);
            fill_elements<T>(tail, rest, is_pad ? given : register_value);
        } else if (left == 0 && right == 0) {
            T first;
            std::memcpy(&first, region.base + start, sizeof(T));
            fill_elements<T>(tail, rest, first);
        } else {
            machine.forget_bytes(address, static_cast<uint32_t>(left));
            machine.forget_bytes(tail, static_cast<uint32_t>(rest));
        }
    }
    count_copy(pipe_mte2, copy.blocks, copy.blocks * copy.length);
}

template <typename T>
inline void pad_copy_out(const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const PadCopy& copy)
{
    const View& view = src.twin_view();
    view.check("src");
    view.check_aligned("src");
    const uint32_t tick = machine.issue(pipe_mte3);
    if (copy.length == 0) {
        return;
    }
    for (uint64_t block = 0; block < copy.blocks; ++block) {
        const uint64_t from = block * (round_to_block(copy.length) + copy.source_gap * block_bytes);
        view.check_range("src", from, copy.length);
        const uint32_t address = view.address + static_cast<uint32_t>(from);
        machine.read_bytes(pipe_mte3, tick, address, static_cast<uint32_t>(copy.length), "src");
        uint64_t start = 0;
        Region& region = dst.twin_range(block * (copy.length + copy.target_gap), copy.length, "dst", start);
        machine.gm_write(pipe_mte3, tick, region, start, copy.length, "dst");
        store<T>(region.base + start, machine.ub + address, copy.length);
    }
    count_copy(pipe_mte3, copy.blocks, copy.blocks * copy.length);
}

template <size_t bytes>
struct Word;
template <>
struct Word<2> {
    using type = uint16_t;
};
template <>
struct Word<4> {
    using type = uint32_t;
};

/// A masked copy within the unified buffer moves bits, whatever they mean.
template <typename T>
inline void masked_copy(const Lanes& lanes, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                        const AscendC::CopyRepeatParams& params)
{
    using W = typename Word<sizeof(T)>::type;
    const Operand to = operand_of(dst, "dst", params.dstStride.checked("dstStride"),
                                  params.dstRepeatSize.checked("dstRepeatSize"));
    const Operand from = operand_of(src, "src", params.srcStride.checked("srcStride"),
                                    params.srcRepeatSize.checked("srcRepeatSize"));
    run_unary<false, W, W>(lanes, to, from, [](W* out, const W* in, int n) { std::copy(in, in + n, out); });
}

}  // namespace neonext_twin

namespace AscendC {

template <typename T>
inline void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& dataCopyParams,
                        const DataCopyPadExtParams<T>& padParams, Where at = Where::here())
{
    machine.enter("DataCopyPad", at);
    NEONEXT_TWIN_SUPPORT("DataCopyPad", T);
    neonext_twin::pad_copy_in(dst, src, neonext_twin::pad_copy_of(dataCopyParams, sizeof(T)), padParams.isPad,
                              padParams.leftPadding.checked("leftPadding"),
                              padParams.rightPadding.checked("rightPadding"), padParams.paddingValue);
}

template <typename T>
inline void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& dataCopyParams,
                        const DataCopyPadParams& padParams, Where at = Where::here())
{
    machine.enter("DataCopyPad", at);
    NEONEXT_TWIN_SUPPORT("DataCopyPad", T);
    T value;
    std::memcpy(&value, &padParams.paddingValue, sizeof(T));
    neonext_twin::pad_copy_in(dst, src, neonext_twin::pad_copy_of(dataCopyParams, sizeof(T)), padParams.isPad,
                              padParams.leftPadding.checked("leftPadding"),
                              padParams.rightPadding.checked("rightPadding"), value);
}

template <typename T>
inline void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& dataCopyParams,
                        Where at = Where::here())
{
    machine.enter("DataCopyPad", at);
    NEONEXT_TWIN_SUPPORT("DataCopyPad", T);
    neonext_twin::pad_copy_out(dst, src, neonext_twin::pad_copy_of(dataCopyParams, sizeof(T)));
}

template <typename T>
inline void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& dataCopyParams,
                        Where at = Where::here())
{
    machine.enter("DataCopyPad", at);
    NEONEXT_TWIN_SUPPORT("DataCopyPad", T);
    neonext_twin::pad_copy_out(dst, src, neonext_twin::pad_copy_of(dataCopyParams, sizeof(T)));
}

template <typename T, TPosition pos = TPosition::MAX>
inline void SetPadValue(T paddingValue, Where at = Where::here())
{
    machine.enter("SetPadValue", at);
    machine.pad_value = 0;
    std::memcpy(&machine.pad_value, &paddingValue, sizeof(T));
    machine.pad_value_set = true;
}

template <typename T, bool isSetMask = true>
inline void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const MaskBits& mask, Field<uint8_t> repeatTime,
                 const CopyRepeatParams& repeatParams, Where at = Where::here())
{
    machine.enter("Copy", at);
    NEONEXT_TWIN_SUPPORT("Copy", T);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    neonext_twin::masked_copy(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), dst, src, repeatParams);
}

template <typename T, bool isSetMask = true>
inline void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask, Field<uint8_t> repeatTime,
                 const CopyRepeatParams& repeatParams, Where at = Where::here())
{
    machine.enter("Copy", at);
    NEONEXT_TWIN_SUPPORT("Copy", T);
    constexpr int per_repeat = neonext_twin::lanes_per_repeat<T>();
    neonext_twin::masked_copy(neonext_twin::lanes_of<isSetMask>(per_repeat, mask, repeatTime), dst, src, repeatParams);
}

/// Fills global memory from the unified buffer; the fill itself is counted, not its pieces.
template <typename T>
inline void InitGlobalMemory(GlobalTensor<T>& gmWorkspaceAddr, const uint64_t size, const T value,
                             Where at = Where::here())
{
    machine.enter("InitGlobalMemory", at);
    uint64_t start = 0;
    neonext_twin::Region& region = gmWorkspaceAddr.twin_range(0, size * sizeof(T), "dst", start);
    const uint32_t tick = machine.issue(neonext_twin::pipe_mte3);
    machine.gm_write(neonext_twin::pipe_mte3, tick, region, start, size * sizeof(T), "dst");
    for (uint64_t i = 0; i < size; ++i) {
        std::memcpy(region.base + start + i * sizeof(T), &value, sizeof(T));
    }
    neonext_twin::count_copy(neonext_twin::pipe_mte3, 1, size * sizeof(T));
}

template <typename T>
inline void Fill(GlobalTensor<T>& gmWorkspaceAddr, const uint64_t size, const T value, Where at = Where::here())
{
    InitGlobalMemory(gmWorkspaceAddr, size, value, at);
}

template <typename T>
inline void InitOutput(GlobalTensor<T> gmWorkspaceAddr, uint32_t size, T value = 0, Where at = Where::here())
{
    InitGlobalMemory(gmWorkspaceAddr, size, value, at);
}

}  // namespace AscendC
