// DataCopy, DataCopyPad and Copy: MTE2 from global memory, MTE3 to it, V within the unified buffer.
#pragma once

#include "pipe.h"
#include "vector.h"

namespace neonext_twin {

constexpr uint64_t most_blocks = 4095;

inline void count_copy(Pipe pipe, uint64_t bursts, uint64_t bytes, uint64_t repeats = 0)
{
    machine.count(pipe, {1, repeats, 0, 0, bursts, bytes});
}

/// The blocks of one copy, in bytes. A block with padding takes `padded` bytes of the unified buffer, of which the
/// first `left` come before its data.
struct Transfer {
    uint64_t blocks = 1;
    uint64_t length = 0;
    uint64_t source_step = 0;
    uint64_t target_step = 0;
    uint64_t left = 0;
    uint64_t padded = length;
};

/// Check the parameters of a copy of whole blocks; return false where the device has nothing to do.
inline bool check_blocks(const AscendC::DataCopyParams& params)
{
    params.blockCount.checked("blockCount");
    params.blockLen.checked("blockLen");
    params.srcGap.checked("srcGap");
    params.dstGap.checked("dstGap");
    if (params.blockCount > most_blocks) {
        machine.reject(Rule::stride, "blockCount is %d; a copy has at most %d blocks", int(params.blockCount),
                       int(most_blocks));
    }
    const bool nothing = params.blockCount == 0 || params.blockLen == 0;
    if (nothing && !zero_does_nothing()) {
        machine.reject(Rule::argument, "blockCount is %d and blockLen %d; neither may be 0", int(params.blockCount),
                       int(params.blockLen));
    }
    return !nothing;
}

inline Transfer transfer_of(const AscendC::DataCopyParams& params)
{
    const uint64_t length = uint64_t{params.blockLen} * block_bytes;
    return {params.blockCount, length, length + uint64_t{params.srcGap} * block_bytes,
            length + uint64_t{params.dstGap} * block_bytes};
}

/// The copy of `count` elements. The device drops what does not fill a block of 32 bytes, so that is an error here.
template <typename T>
inline Transfer transfer_of_count(uint32_t count)
{
    const uint64_t bytes = uint64_t{count} * sizeof(T);
    if (bytes % block_bytes != 0) {
        machine.reject(Rule::length,
                       "%u elements of %s are %llu bytes, not a multiple of 32: the copy would leave out the last %llu "
                       "bytes",
                       count, type_name<T>(), static_cast<unsigned long long>(bytes),
                       static_cast<unsigned long long>(bytes % block_bytes));
    }
    if (bytes == 0 && !zero_does_nothing()) {
        machine.reject(Rule::count, "a copy of 0 elements");
    }
    return {bytes == 0 ? 0u : 1u, bytes};
}

template <typename T>
inline void check_gm_aligned(const AscendC::GlobalTensor<T>& tensor, const char* operand)
{
    if (reinterpret_cast<uintptr_t>(tensor.GetPhyAddr()) % sizeof(T) != 0) {
        machine.reject(Rule::alignment, "%s does not start at a multiple of %zu bytes of global memory", operand,
                       sizeof(T));
    }
}

/// Copy from global memory; pad(block) then fills the padding of a block.
template <typename T, typename F>
inline void copy_in(const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src, const Transfer& transfer,
                    F pad)
{
    const View& view = dst.twin_view();
    view.check_aligned("dst");
    const uint32_t tick = machine.issue(pipe_mte2);
    for (uint64_t block = 0; block < transfer.blocks; ++block) {
        uint64_t start = 0;
        Region& region = src.twin_range(block * transfer.source_step, transfer.length, "src", start);
        machine.gm_read(pipe_mte2, tick, region, start, transfer.length, "src");
        uint8_t* target = view.write(pipe_mte2, tick, block * transfer.target_step, transfer.padded, "dst");
        std::memcpy(target + transfer.left, region.base + start, transfer.length);
        pad(target);
    }
    count_copy(pipe_mte2, transfer.blocks, transfer.blocks * transfer.length);
}

/// Store bytes in global memory, or combine them with those that are there, as the atomic mode says.
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
inline void copy_out(const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Transfer& transfer)
{
    const View& view = src.twin_view();
    view.check_aligned("src");
    const uint32_t tick = machine.issue(pipe_mte3);
    for (uint64_t block = 0; block < transfer.blocks; ++block) {
        const uint8_t* data = view.read(pipe_mte3, tick, block * transfer.source_step, transfer.length, "src");
        uint64_t start = 0;
        Region& region = dst.twin_range(block * transfer.target_step, transfer.length, "dst", start);
        machine.gm_write(pipe_mte3, tick, region, start, transfer.length, "dst");
        store<T>(region.base + start, data, transfer.length);
    }
    count_copy(pipe_mte3, transfer.blocks, transfer.blocks * transfer.length);
}

// The three directions of DataCopy. Only they need global memory aligned to the element; DataCopyPad does not.

template <typename T>
inline void run_copy(const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src, const Transfer& transfer)
{
    check_gm_aligned(src, "src");
    copy_in(dst, src, transfer, [](const uint8_t*) {});
}

template <typename T>
inline void run_copy(const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Transfer& transfer)
{
    check_gm_aligned(dst, "dst");
    copy_out(dst, src, transfer);
}

template <typename T>
inline void run_copy(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Transfer& transfer)
{
    dst.twin_view().check_aligned("dst");
    src.twin_view().check_aligned("src");
    const uint32_t tick = machine.issue(pipe_v);
    const uint32_t length = static_cast<uint32_t>(transfer.length);
    for (uint64_t block = 0; block < transfer.blocks; ++block) {
        const uint8_t* data = src.twin_view().read(pipe_v, tick, block * transfer.source_step, length, "src");
        uint8_t* target = dst.twin_view().write(pipe_v, tick, block * transfer.target_step, length, "dst");
        if (data < target + length && target < data + length && data != target) {
            const uint32_t from = static_cast<uint32_t>(data - machine.ub);
            const uint32_t to = static_cast<uint32_t>(target - machine.ub);
            machine.reject(Rule::overlap, "bytes [%u, %u) of the unified buffer are copied to [%u, %u)", from,
                           from + length, to, to + length);
        }
        std::memmove(target, data, length);
    }
    const uint64_t bytes = transfer.blocks * transfer.length;
    count_copy(pipe_v, transfer.blocks, bytes, (bytes + repeat_bytes - 1) / repeat_bytes);
}

}  // namespace neonext_twin

// DataCopy in one direction, with parameters or a count of elements.
#define NEONEXT_TWIN_DATA_COPY(TARGET, SOURCE)                                                                      \
    template <typename T>                                                                                           \
    inline void DataCopy(const TARGET<T>& dst, const SOURCE<T>& src, const DataCopyParams& repeatParams,            \
                         Where at = Where::here())                                                                  \
    {                                                                                                               \
        NEONEXT_TWIN_ENTER("DataCopy", T, at);                                                                      \
        if (neonext_twin::check_blocks(repeatParams)) {                                                             \
            neonext_twin::run_copy(dst, src, neonext_twin::transfer_of(repeatParams));                              \
        }                                                                                                           \
    }                                                                                                               \
    template <typename T>                                                                                           \
    inline void DataCopy(const TARGET<T>& dst, const SOURCE<T>& src, const uint32_t count,                          \
                         Where at = Where::here())                                                                  \
    {                                                                                                               \
        NEONEXT_TWIN_ENTER("DataCopy", T, at);                                                                      \
        neonext_twin::run_copy(dst, src, neonext_twin::transfer_of_count<T>(count));                                \
    }

namespace AscendC {

NEONEXT_TWIN_DATA_COPY(LocalTensor, GlobalTensor)
NEONEXT_TWIN_DATA_COPY(GlobalTensor, LocalTensor)
NEONEXT_TWIN_DATA_COPY(LocalTensor, LocalTensor)

}  // namespace AscendC

namespace neonext_twin {

constexpr uint64_t most_pad_length = 2097151;

/// Check the parameters of DataCopyPad; the steps of the result are still the gaps behind a block, as they were given:
/// those of global memory in bytes, those of the unified buffer in blocks.
template <typename Params>
inline Transfer pad_transfer_of(const Params& params, uint64_t element)
{
    const Transfer transfer{params.blockCount.checked("blockCount"), params.blockLen.checked("blockLen"),
                            params.srcStride.checked("srcStride"), params.dstStride.checked("dstStride")};
    if (transfer.blocks > most_blocks) {
        machine.reject(Rule::stride, "blockCount is %llu; a copy has at most %d blocks",
                       static_cast<unsigned long long>(transfer.blocks), int(most_blocks));
    }
    if (transfer.length > most_pad_length || transfer.length % element != 0) {
        machine.reject(Rule::length, "blockLen is %llu bytes; it must be a multiple of %llu and at most %llu",
                       static_cast<unsigned long long>(transfer.length), static_cast<unsigned long long>(element),
                       static_cast<unsigned long long>(most_pad_length));
    }
    if ((transfer.blocks == 0 || transfer.length == 0) && !zero_does_nothing()) {
        machine.reject(Rule::argument, "blockCount is %llu and blockLen %llu; neither may be 0",
                       static_cast<unsigned long long>(transfer.blocks),
                       static_cast<unsigned long long>(transfer.length));
    }
    return transfer;
}

inline uint64_t round_to_block(uint64_t bytes)
{
    return (bytes + block_bytes - 1) / block_bytes * block_bytes;
}

template <typename T>
inline void fill_elements(uint8_t* to, uint64_t bytes, const T& value)
{
    for (uint64_t i = 0; i + sizeof(T) <= bytes; i += sizeof(T)) {
        std::memcpy(to + i, &value, sizeof(T));
    }
}

/// DataCopyPad from global memory. The padding holds the value of the call, or that of SetPadValue, or, if neither is
/// given and nothing but the rest of the last block is padded, the first element; else its content is undefined.
template <typename T, typename Params, typename PadParams>
inline void pad_copy_in(const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src, const Params& params,
                        const PadParams& padding, T value)
{
    Transfer transfer = pad_transfer_of(params, sizeof(T));
    dst.twin_view().check_aligned("dst");
    transfer.left = padding.leftPadding.checked("leftPadding") * sizeof(T);
    const uint64_t right = padding.rightPadding.checked("rightPadding") * sizeof(T);
    if (transfer.left > block_bytes || right > block_bytes) {
        machine.reject(Rule::argument, "padding of %llu and %llu bytes; each is at most 32",
                       static_cast<unsigned long long>(transfer.left), static_cast<unsigned long long>(right));
    }
    if (transfer.length == 0) {
        return;
    }
    transfer.padded = round_to_block(transfer.left + transfer.length + right);
    transfer.source_step += transfer.length;
    transfer.target_step = transfer.padded + transfer.target_step * block_bytes;
    const bool has_value = padding.isPad || machine.pad_value_set;
    if (!padding.isPad) {
        std::memcpy(&value, &machine.pad_value, sizeof(T));
    }
    copy_in(dst, src, transfer, [&](uint8_t* block) {
        uint8_t* tail = block + transfer.left + transfer.length;
        const uint64_t rest = transfer.padded - transfer.left - transfer.length;
        if (has_value) {
            fill_elements<T>(block, transfer.left, value);
            fill_elements<T>(tail, rest, value);
        } else if (transfer.left == 0 && right == 0) {
            T first;
            std::memcpy(&first, block, sizeof(T));
            fill_elements<T>(tail, rest, first);
        } else {
            machine.forget_bytes(static_cast<uint32_t>(block - machine.ub), static_cast<uint32_t>(transfer.left));
            machine.forget_bytes(static_cast<uint32_t>(tail - machine.ub), static_cast<uint32_t>(rest));
        }
    });
}

template <typename T, typename Params>
inline void pad_copy_out(const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Params& params)
{
    Transfer transfer = pad_transfer_of(params, sizeof(T));
    src.twin_view().check_aligned("src");
    if (transfer.length == 0) {
        return;
    }
    transfer.source_step = round_to_block(transfer.length) + transfer.source_step * block_bytes;
    transfer.target_step += transfer.length;
    copy_out(dst, src, transfer);
}

/// Copy `count` elements in each repeat, in as many blocks as they take.
template <typename T>
inline void copy_counted(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, uint64_t count,
                         const Field<uint8_t>& repeats, const AscendC::CopyRepeatParams& params)
{
    const uint32_t tick = machine.issue(pipe_v);
    const uint64_t bytes = count * sizeof(T);
    dst.twin_view().check_aligned("dst");
    src.twin_view().check_aligned("src");
    for (uint64_t repeat = 0; repeat < repeats.checked("repeatTime", Rule::repeat); ++repeat) {
        for (uint64_t block = 0; block * block_bytes < bytes; ++block) {
            const uint64_t length = std::min<uint64_t>(block_bytes, bytes - block * block_bytes);
            const auto place = [&](uint16_t block_stride, uint16_t repeat_stride) {
                return (repeat * repeat_stride + block * block_stride) * block_bytes;
            };
            const uint8_t* from = src.twin_view().read(pipe_v, tick, place(params.srcStride, params.srcRepeatSize),
                                                       length, "src");
            uint8_t* to = dst.twin_view().write(pipe_v, tick, place(params.dstStride, params.dstRepeatSize), length,
                                                "dst");
            std::memmove(to, from, length);
        }
    }
    count_vector(repeats * ((bytes + repeat_bytes - 1) / repeat_bytes), repeats * count);
}

}  // namespace neonext_twin

namespace AscendC {

template <typename T>
inline void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& dataCopyParams,
                        const DataCopyPadExtParams<T>& padParams, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("DataCopyPad", T, at);
    neonext_twin::pad_copy_in(dst, src, dataCopyParams, padParams, padParams.paddingValue);
}

template <typename T>
inline void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& dataCopyParams,
                        const DataCopyPadParams& padParams, Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("DataCopyPad", T, at);
    T value;
    std::memcpy(&value, &padParams.paddingValue, sizeof(T));
    neonext_twin::pad_copy_in(dst, src, dataCopyParams, padParams, value);
}

template <typename T>
inline void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& dataCopyParams,
                        Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("DataCopyPad", T, at);
    neonext_twin::pad_copy_out(dst, src, dataCopyParams);
}

template <typename T>
inline void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& dataCopyParams,
                        Where at = Where::here())
{
    NEONEXT_TWIN_ENTER("DataCopyPad", T, at);
    neonext_twin::pad_copy_out(dst, src, dataCopyParams);
}

template <typename T, TPosition pos = TPosition::MAX>
inline void SetPadValue(T paddingValue, Where at = Where::here())
{
    machine.enter("SetPadValue", at);
    machine.pad_value = 0;
    std::memcpy(&machine.pad_value, &paddingValue, sizeof(T));
    machine.pad_value_set = true;
}

/// A masked copy within the unified buffer; it moves bits, whatever they mean. In counter mode the mask counts the
/// elements of one repeat, which may be longer than 256 bytes.
template <typename T, bool isSetMask = true>
inline void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const Mask& mask, Field<uint8_t> repeatTime,
                 const CopyRepeatParams& repeatParams, Where at = Where::here())
{
    using W = neonext_twin::word_t<sizeof(T)>;
    NEONEXT_TWIN_ENTER("Copy", T, at);
    if (repeatParams.dstRepeatSize.given() > 4095 || repeatParams.srcRepeatSize.given() > 4095) {
        machine.reject(Rule::stride, "dstRepeatSize and srcRepeatSize are at most 4095");
    }
    if (machine.mask_counter && !neonext_twin::masks_in_calls()) {
        if constexpr (isSetMask) {
            neonext_twin::set_mask(mask, neonext_twin::lanes_per_repeat<T>());
        }
        neonext_twin::copy_counted(dst, src, machine.mask_low, repeatTime, repeatParams);
        return;
    }
    const auto lanes = neonext_twin::lanes_of_mask(neonext_twin::lanes_per_repeat<T>(), mask, repeatTime, isSetMask);
    const auto target = neonext_twin::operand_of(dst, "dst", repeatParams.dstStride.checked("dstStride"),
                                                 repeatParams.dstRepeatSize.checked("dstRepeatSize"));
    neonext_twin::Source<W> source(neonext_twin::operand_of(src, "src", repeatParams.srcStride.checked("srcStride"),
                                                            repeatParams.srcRepeatSize.checked("srcRepeatSize")));
    neonext_twin::run_lanes<false, W>(lanes, target, [](W, W value) { return value; }, source);
}

/// Fill global memory from the unified buffer: counted as one copy, although the device makes several.
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
