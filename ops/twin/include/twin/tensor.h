// GlobalTensor and LocalTensor. A local tensor carries a View, with which every use of it is checked.
#pragma once

#include "params.h"

namespace neonext_twin {

/// One buffer of a TPipe. `generation` counts its allocations and so exposes a tensor from an earlier one.
struct Buffer {
    uint32_t address = 0;
    uint32_t bytes = 0;
    AscendC::TBufState state = AscendC::TBufState::FREE;
    bool queued = false;
    uint32_t generation = 0;
    AscendC::TEventID enqueue_event = AscendC::INVALID_TEVENTID;
    AscendC::TEventID free_event = AscendC::INVALID_TEVENTID;
    AscendC::HardEvent free_kind = AscendC::HardEvent::MAX;
    AscendC::TTagType tag = -1;
    int line = 0;
};

/// The place of a local tensor: bytes [address, end) of the unified buffer.
struct View {
    uint32_t address = 0;
    uint32_t end = 0;
    uint32_t size_bytes = 0;
    uint32_t generation = 0;
    uint32_t epoch = 0;
    Buffer* buffer = nullptr;
    AscendC::TPosition position = AscendC::TPosition::MAX;
    bool bound = false;

    /// Reject a tensor that may not be used now.
    void check(const char* operand) const
    {
        using AscendC::TBufState;
        if (!bound) {
            machine.reject(Rule::ub_bounds, "%s is a LocalTensor without a buffer", operand);
        }
        if (epoch != machine.pool_epoch) {
            machine.reject(Rule::stale_tensor, "%s is from before the TPipe was reset", operand);
        }
        if (buffer == nullptr || !buffer->queued) {
            return;
        }
        if (buffer->state == TBufState::FREE) {
            machine.reject(Rule::used_after_free, "%s was given to FreeTensor (line %d)", operand, buffer->line);
        }
        if (buffer->generation != generation) {
            machine.reject(Rule::stale_tensor, "%s: its buffer was freed and allocated again (line %d)", operand,
                           buffer->line);
        }
        if (buffer->state == TBufState::ENQUE) {
            machine.reject(Rule::used_in_queue, "%s is still in its queue (EnQue at line %d); DeQue takes it out",
                           operand, buffer->line);
        }
    }

    void check_range(const char* operand, uint64_t offset, uint64_t bytes) const
    {
        if (address + offset + bytes > end) {
            machine.reject(Rule::ub_bounds, "%s: bytes [%llu, %llu) of a tensor of %u bytes", operand,
                           static_cast<unsigned long long>(offset), static_cast<unsigned long long>(offset + bytes),
                           end > address ? end - address : 0);
        }
    }

    /// Reject a tensor that may not be used now, or not by an instruction that needs this alignment.
    [[gnu::noinline]] void check_aligned(const char* operand, uint32_t alignment = block_bytes) const
    {
        check(operand);
        if (address % alignment != 0) {
            machine.reject(Rule::alignment, "%s starts at byte %u of the unified buffer, which is not a multiple of %u",
                           operand, address, alignment);
        }
    }

    /// Check and record that an instruction reads bytes of the tensor; return where they are.
    [[gnu::noinline]] const uint8_t* read(Pipe pipe, uint32_t tick, uint64_t offset, uint64_t bytes,
                                          const char* operand) const
    {
        check_range(operand, offset, bytes);
        const uint32_t start = address + static_cast<uint32_t>(offset);
        machine.read_bytes(pipe, tick, start, static_cast<uint32_t>(bytes), operand);
        return machine.ub + start;
    }

    /// Check and record that an instruction writes bytes of the tensor; return where they are.
    [[gnu::noinline]] uint8_t* write(Pipe pipe, uint32_t tick, uint64_t offset, uint64_t bytes,
                                     const char* operand) const
    {
        check_range(operand, offset, bytes);
        const uint32_t start = address + static_cast<uint32_t>(offset);
        machine.write_bytes(pipe, tick, start, static_cast<uint32_t>(bytes), operand);
        return machine.ub + start;
    }
};

/// The result of a tensor's operator(): an element whose reads and writes are checked.
template <typename Tensor, typename T>
class Element {
public:
    Element(const Tensor& tensor, uint64_t index, Where at) : tensor_(tensor), index_(index), at_(at) {}
    operator T() const { return tensor_.GetValue(index_, at_); }
    template <typename U, typename = std::enable_if_t<std::is_arithmetic_v<U> && !std::is_same_v<U, T>>>
    explicit operator U() const
    {
        return static_cast<U>(tensor_.GetValue(index_, at_));
    }
    Element& operator=(const Element& other) { return *this = static_cast<T>(other); }
    template <typename U>
    Element& operator=(const U& value)
    {
        tensor_.SetValue(index_, static_cast<T>(value), at_);
        return *this;
    }

private:
    Tensor tensor_;
    uint64_t index_;
    Where at_;
};

}  // namespace neonext_twin

namespace AscendC {

using neonext_twin::machine;
using neonext_twin::Rule;
using neonext_twin::Where;

template <typename T>
using PrimT = T;

struct ShapeInfo {
    ShapeInfo() = default;
    ShapeInfo(const uint8_t inputShapeDim, const uint32_t inputShape[]) : shapeDim(inputShapeDim)
    {
        originalShapeDim = inputShapeDim;
        for (int i = 0; i < shapeDim && i < 8; ++i) {
            shape[i] = originalShape[i] = inputShape[i];
        }
    }
    ShapeInfo(const uint8_t inputShapeDim, const uint32_t inputShape[], const DataFormat inputFormat)
        : ShapeInfo(inputShapeDim, inputShape)
    {
        dataFormat = inputFormat;
    }
    ShapeInfo(const uint8_t inputShapeDim, const uint32_t inputShape[], const uint8_t inputOriginalShapeDim,
              const uint32_t inputOriginalShape[], const DataFormat inputFormat)
        : ShapeInfo(inputShapeDim, inputShape, inputFormat)
    {
        originalShapeDim = inputOriginalShapeDim;
        for (int i = 0; i < originalShapeDim && i < 8; ++i) {
            originalShape[i] = inputOriginalShape[i];
        }
    }

    uint8_t shapeDim = 0;
    uint8_t originalShapeDim = 0;
    uint32_t shape[8] = {};
    uint32_t originalShape[8] = {};
    DataFormat dataFormat = DataFormat::ND;
};

inline uint64_t GetShapeSize(const ShapeInfo& shapeInfo)
{
    uint64_t size = 1;
    for (int i = 0; i < shapeInfo.shapeDim; ++i) {
        size *= shapeInfo.shape[i];
    }
    return size;
}

template <typename T>
class GlobalTensor {
public:
    using PrimType = T;

    void SetGlobalBuffer(__gm__ T* buffer, uint64_t bufferSize)
    {
        address_ = buffer;
        bufferSize_ = bufferSize;
        bytes_ = bufferSize * sizeof(T);
    }

    void SetGlobalBuffer(__gm__ T* buffer)
    {
        address_ = buffer;
        bufferSize_ = 0;
        bytes_ = unlimited;
    }

    const __gm__ T* GetPhyAddr() const { return address_; }
    __gm__ T* GetPhyAddr(const uint64_t offset) const { return address_ + offset; }

    T GetValue(const uint64_t offset, Where at = Where::here()) const
    {
        return *access("GlobalTensor::GetValue", offset, false, at);
    }

    void SetValue(const uint64_t offset, T value, Where at = Where::here()) const
    {
        *access("GlobalTensor::SetValue", offset, true, at) = value;
    }

    neonext_twin::Element<GlobalTensor, T> operator()(const uint64_t offset, Where at = Where::here()) const
    {
        return {*this, offset, at};
    }

    uint64_t GetSize() const { return bufferSize_; }

    GlobalTensor operator[](const uint64_t offset) const
    {
        GlobalTensor result = *this;
        result.address_ = reinterpret_cast<__gm__ T*>(reinterpret_cast<uintptr_t>(address_) + offset * sizeof(T));
        result.skipped_ += offset * sizeof(T);
        return result;
    }

    template <typename U>
    GlobalTensor<U> ReinterpretCast() const
    {
        GlobalTensor<U> result;
        result.SetGlobalBuffer(reinterpret_cast<__gm__ U*>(address_));
        return result;
    }

    void SetShapeInfo(const ShapeInfo& info) { shape_ = info; }
    ShapeInfo GetShapeInfo() const { return shape_; }
    template <CacheRwMode mode = CacheRwMode::RW>
    void SetL2CacheHint(CacheMode)
    {}

    /// Check bytes of this tensor; return the argument that holds them, and in `start` their place there.
    neonext_twin::Region& twin_range(uint64_t offset, uint64_t bytes, const char* operand, uint64_t& start) const
    {
        const uint8_t* base = reinterpret_cast<const uint8_t*>(address_) - skipped_;
        neonext_twin::Region& region = machine.gm_range(base, bytes_, skipped_ + offset, bytes, operand);
        start = static_cast<uint64_t>(reinterpret_cast<const uint8_t*>(address_) - region.base) + offset;
        return region;
    }

    uint64_t bufferSize_ = 0;

private:
    static constexpr uint64_t unlimited = uint64_t{1} << 60;

    T* access(const char* name, uint64_t index, bool write, Where at) const
    {
        machine.enter(name, at);
        uint64_t start = 0;
        neonext_twin::Region& region = twin_range(index * sizeof(T), sizeof(T), "the tensor", start);
        machine.gm_scalar(region, start, sizeof(T), write);
        return address_ + index;
    }

    __gm__ T* address_ = nullptr;
    uint64_t bytes_ = unlimited;
    uint64_t skipped_ = 0;
    ShapeInfo shape_;
};

template <typename T>
class SymbolOverride;

template <typename T>
class LocalTensor {
public:
    using PrimType = T;

    LocalTensor() = default;
    explicit LocalTensor(const neonext_twin::View& view) : view_(view) {}

    /// Make a tensor at a fixed address of the unified buffer, independent of any TPipe.
    LocalTensor(TPosition position, uint32_t address, uint32_t tileSize, Where at = Where::here())
    {
        machine.enter("LocalTensor", at);
        view_.address = address;
        view_.size_bytes = tileSize * static_cast<uint32_t>(sizeof(T));
        view_.end = address + view_.size_bytes;
        view_.position = position;
        view_.epoch = machine.pool_epoch;
        view_.bound = true;
        if (view_.end > machine.ub_bytes) {
            machine.reject(Rule::ub_overrun, "bytes [%u, %u) of a unified buffer of %u bytes (%s)", address, view_.end,
                           machine.ub_bytes, machine.soc.c_str());
        }
        machine.fixed_end = std::max(machine.fixed_end, view_.end);
        machine.ub_peak = std::max(machine.ub_peak, view_.end);
    }

    uint64_t GetPhyAddr() const { return view_.address; }
    uint64_t GetPhyAddr(const uint32_t offset) const { return view_.address + offset * sizeof(T); }

    T GetValue(const uint32_t index, Where at = Where::here()) const
    {
        T value;
        std::memcpy(&value, access("LocalTensor::GetValue", index, false, at), sizeof(T));
        return value;
    }

    template <typename S>
    void SetValue(const uint32_t index, const S value, Where at = Where::here()) const
    {
        const T converted = static_cast<T>(value);
        std::memcpy(access("LocalTensor::SetValue", index, true, at), &converted, sizeof(T));
    }

    neonext_twin::Element<LocalTensor, T> operator()(const uint32_t offset, Where at = Where::here()) const
    {
        return {*this, offset, at};
    }

    template <typename U>
    LocalTensor<U> ReinterpretCast() const
    {
        return LocalTensor<U>(view_);
    }

    LocalTensor operator[](const uint32_t offset) const
    {
        LocalTensor result = *this;
        const uint64_t skipped = static_cast<uint64_t>(offset) * sizeof(T);
        // An offset outside is no error yet: the use of such a tensor is, and it has a line to name.
        result.view_.address = static_cast<uint32_t>(std::min<uint64_t>(view_.address + skipped, 0x7fffffe0u));
        result.view_.size_bytes -= static_cast<uint32_t>(std::min<uint64_t>(skipped, view_.size_bytes));
        return result;
    }

    int32_t GetPosition() const { return static_cast<int32_t>(view_.position); }
    uint32_t GetSize() const { return view_.size_bytes / sizeof(T); }
    uint32_t GetLength() const { return view_.size_bytes; }
    void SetSize(const uint32_t size) { view_.size_bytes = size * sizeof(T); }
    void SetBufferLen(uint32_t bytes) { view_.size_bytes = bytes; }
    TBufHandle GetBufferHandle() const { return reinterpret_cast<TBufHandle>(view_.buffer); }

    void SetUserTag(const TTagType tag)
    {
        if (view_.buffer != nullptr) {
            view_.buffer->tag = tag;
        }
    }
    TTagType GetUserTag() const { return view_.buffer != nullptr ? view_.buffer->tag : -1; }

    void SetShapeInfo(const ShapeInfo& info) { shape_ = info; }
    ShapeInfo GetShapeInfo() const { return shape_; }

    template <typename S>
    void SetAddrWithOffset(LocalTensor<S>& source, uint32_t offset)
    {
        view_ = source.template ReinterpretCast<T>()[offset].twin_view();
    }

    void Print() {}
    void Print(uint32_t) {}

    LocalTensor(const LocalTensor&) = default;
    LocalTensor& operator=(const LocalTensor&) = default;
    inline void operator=(const SymbolOverride<T>& expression);

    const neonext_twin::View& twin_view() const { return view_; }

private:
    uint8_t* access(const char* name, uint32_t index, bool write, Where at) const
    {
        machine.enter(name, at);
        view_.check("the tensor");
        const uint64_t offset = static_cast<uint64_t>(index) * sizeof(T);
        view_.check_range("the tensor", offset, sizeof(T));
        const uint32_t address = view_.address + static_cast<uint32_t>(offset);
        machine.scalar_access(address, sizeof(T), write);
        return machine.ub + address;
    }

    neonext_twin::View view_;
    ShapeInfo shape_;
};

}  // namespace AscendC
