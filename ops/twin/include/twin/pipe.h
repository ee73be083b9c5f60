// Events, barriers, TPipe and the queues.
//
// A queue sets and waits for the very events that the real one does: EnQue sets one that DeQue waits for, and
// FreeTensor one that the next AllocTensor of the same buffer waits for. So the order of a kernel's instructions comes
// from the same places as on the device, and an order that is missing there is missing here.
#pragma once

#include <initializer_list>

#include "tensor.h"

namespace neonext_twin {

constexpr int pool_limit = 64;

/// Return the memory that a position stands for; only the unified buffer and global memory are simulated.
constexpr AscendC::Hardware hardware_of(AscendC::TPosition position)
{
    using AscendC::Hardware;
    using AscendC::TPosition;
    switch (position) {
        case TPosition::GM: return Hardware::GM;
        case TPosition::VECIN:
        case TPosition::VECOUT:
        case TPosition::VECCALC: return Hardware::UB;
        case TPosition::A2: return Hardware::L0A;
        case TPosition::B2: return Hardware::L0B;
        case TPosition::CO1: return Hardware::L0C;
        default: return Hardware::L1;
    }
}

/// Return the event with which a queue from `source` to `target` passes a buffer on (forward) or back.
constexpr AscendC::HardEvent queue_event(AscendC::TPosition source, AscendC::TPosition target, bool forward)
{
    using AscendC::Hardware;
    using AscendC::HardEvent;
    const Hardware from = hardware_of(source);
    const Hardware to = hardware_of(target);
    if (from == Hardware::GM && to == Hardware::UB) {
        return forward ? HardEvent::MTE2_V : HardEvent::V_MTE2;
    }
    if (from == Hardware::UB && to == Hardware::GM) {
        return forward ? HardEvent::V_MTE3 : HardEvent::MTE3_V;
    }
    if (from == Hardware::UB && to == Hardware::UB) {
        return forward ? HardEvent::MTE2_MTE3 : HardEvent::MTE3_MTE2;
    }
    return HardEvent::MAX;
}

/// Return the view of a tensor that a buffer gives out.
inline View view_of(Buffer& buffer, uint64_t offset, uint64_t bytes, AscendC::TPosition position, uint32_t epoch)
{
    View view;
    view.address = buffer.address + static_cast<uint32_t>(offset);
    view.end = view.address + static_cast<uint32_t>(bytes);
    view.size_bytes = static_cast<uint32_t>(bytes);
    view.generation = buffer.generation;
    view.epoch = epoch;
    view.buffer = &buffer;
    view.position = position;
    view.bound = true;
    return view;
}

inline void set_event(AscendC::HardEvent event, int id, Where at, bool queue)
{
    const PipePair pipes = pipes_of(event);
    if (pipes.source == pipes.target) {
        machine.barrier(pipes.source);
        return;
    }
    machine.set_flag(pipes.source, pipes.target, id, at, queue);
}

inline void wait_event(AscendC::HardEvent event, int id)
{
    const PipePair pipes = pipes_of(event);
    if (pipes.source != pipes.target) {
        machine.wait_flag(pipes.source, pipes.target, id);
    }
}

inline void set_flag(const char* name, pipe_t source, pipe_t target, int id, Where at)
{
    machine.enter(name, at);
    machine.set_flag(pipe_of(source), pipe_of(target), id, at, false);
}

inline void wait_flag(const char* name, pipe_t source, pipe_t target, int id, Where at)
{
    machine.enter(name, at);
    machine.wait_flag(pipe_of(source), pipe_of(target), id);
}

}  // namespace neonext_twin

inline void set_flag(pipe_t source, pipe_t target, int id, neonext_twin::Where at = neonext_twin::Where::here())
{
    neonext_twin::set_flag("set_flag", source, target, id, at);
}

inline void wait_flag(pipe_t source, pipe_t target, int id, neonext_twin::Where at = neonext_twin::Where::here())
{
    neonext_twin::wait_flag("wait_flag", source, target, id, at);
}

inline void pipe_barrier(pipe_t pipe)
{
    if (pipe == PIPE_ALL) {
        neonext_twin::machine.barrier_all();
    } else {
        neonext_twin::machine.barrier(neonext_twin::pipe_of(pipe));
    }
}

namespace AscendC {

template <HardEvent event>
inline void SetFlag(int32_t eventID, Where at = Where::here())
{
    machine.enter("SetFlag", at);
    neonext_twin::set_event(event, eventID, at, false);
}

template <HardEvent event>
inline void WaitFlag(int32_t eventID, Where at = Where::here())
{
    machine.enter("WaitFlag", at);
    neonext_twin::wait_event(event, eventID);
}

template <pipe_t pipe>
inline void PipeBarrier(Where at = Where::here())
{
    static_assert(pipe != PIPE_S, "PipeBarrier does not take PIPE_S");
    machine.enter("PipeBarrier", at);
    ::pipe_barrier(pipe);
}

template <MemDsbT arg0>
inline void DataSyncBarrier()
{
    machine.barrier_all();
}

template <pipe_t source, pipe_t target>
class TQueSync {
public:
    void SetFlag(TEventID id, Where at = Where::here())
    {
        neonext_twin::set_flag("TQueSync::SetFlag", source, target, id, at);
    }
    void WaitFlag(TEventID id, Where at = Where::here())
    {
        neonext_twin::wait_flag("TQueSync::WaitFlag", source, target, id, at);
    }
};

class TPipe;

template <TPosition src, TPosition dst, int32_t depth, auto mask = 0>
class TQueBind;
template <TPosition pos = TPosition::LCM>
class TBuf;
template <TPosition pos, uint32_t bufIDSize = 4>
class TBufPool;

/// The buffers of a TPipe or a TBufPool, and how it hands them out. Owner has take(bytes), the place of the next buffer
/// in its memory, pipe(), the TPipe that has the events, and too_many(), the error for a buffer beyond the capacity.
template <typename Owner, int capacity>
class BufferOwner {
public:
    template <class Queue>
    bool InitBuffer(Queue& queue, Field<uint8_t> num, Field<uint32_t> len, Where at = Where::here())
    {
        machine.enter("InitBuffer", at);
        num.checked("the number of buffers");
        if (num.given() < 1) {
            machine.reject(Rule::argument, "%lld buffers; a queue has at least 1", static_cast<long long>(num.given()));
        }
        queue.twin_start(owner().pipe(), &buffers_[used_], num);
        for (int i = 0; i < num; ++i) {
            add(round_up(len), true, Queue::freeBufEvt);
        }
        queue.twin_ready();
        return true;
    }

    template <TPosition pos>
    bool InitBuffer(TBuf<pos>& buffer, Field<uint32_t> len, Where at = Where::here())
    {
        machine.enter("InitBuffer", at);
        buffer.twin_start(add(round_up(len), false, HardEvent::MAX));
        return true;
    }

    template <TPosition pos, uint32_t size>
    bool InitBufPool(TBufPool<pos, size>& pool, Field<uint32_t> len, Where at = Where::here())
    {
        machine.enter("InitBufPool", at);
        const uint32_t bytes = round_up(len);
        pool.twin_start(owner().pipe(), owner().take(bytes), bytes);
        return true;
    }

    /// The pool gets the memory of `shared`: only one of the two is in use at a time.
    template <TPosition pos, uint32_t size, TPosition sharedPos, uint32_t sharedSize>
    bool InitBufPool(TBufPool<pos, size>& pool, Field<uint32_t> len, TBufPool<sharedPos, sharedSize>& shared,
                     Where at = Where::here())
    {
        machine.enter("InitBufPool", at);
        shared.twin_share(owner().pipe(), pool, round_up(len));
        return true;
    }

protected:
    neonext_twin::Buffer buffers_[capacity];
    int used_ = 0;

private:
    Owner& owner() { return *static_cast<Owner*>(this); }

    static uint32_t round_up(const Field<uint32_t>& len)
    {
        if (len.checked("the length") == 0) {
            machine.reject(Rule::argument, "a buffer of 0 bytes");
        }
        return (len + ONE_BLK_SIZE - 1) / ONE_BLK_SIZE * ONE_BLK_SIZE;
    }

    [[gnu::noinline]] neonext_twin::Buffer* add(uint32_t bytes, bool queued, HardEvent free_kind)
    {
        if (used_ >= capacity) {
            owner().too_many();
        }
        neonext_twin::Buffer& buffer = buffers_[used_++];
        // A tensor from the buffer's life before Reset has an older generation.
        const uint32_t generation = buffer.generation + 1;
        buffer = neonext_twin::Buffer{};
        buffer.generation = generation;
        buffer.address = owner().take(bytes);
        buffer.bytes = bytes;
        buffer.queued = queued;
        buffer.free_kind = free_kind;
        return &buffer;
    }
};

class TPipe : public BufferOwner<TPipe, neonext_twin::pool_limit> {
public:
    TPipe() { Init(); }
    TPipe(const TPipe&) = delete;
    TPipe& operator=(const TPipe&) = delete;
    ~TPipe() noexcept(false)
    {
        if (machine.pipe == this) {
            machine.pipe = nullptr;
        }
        // While an error is on its way out, the state of the pipe is of no interest.
        if (!destroyed_ && std::uncaught_exceptions() == 0) {
            Destroy();
        }
    }

    void Init()
    {
        reset_pool();
        destroyed_ = false;
        machine.pipe = this;
    }

    template <HardEvent event>
    TEventID AllocEventID(Where at = Where::here())
    {
        machine.enter("AllocEventID", at);
        return twin_take_event(event);
    }

    template <HardEvent event>
    void ReleaseEventID(TEventID id, Where at = Where::here())
    {
        machine.enter("ReleaseEventID", at);
        twin_give_event(event, id);
    }

    template <HardEvent event>
    TEventID FetchEventID(Where at = Where::here())
    {
        return FetchEventID(event, at);
    }

    TEventID FetchEventID(HardEvent event, Where at = Where::here())
    {
        machine.enter("FetchEventID", at);
        return first_free(event);
    }

    template <TPosition pos, typename T>
    LocalTensor<T> GetAbsAddr(int32_t offset, int32_t size, Where at = Where::here()) const
    {
        return LocalTensor<T>(pos, offset, size, at);
    }

    void Reset(Where at = Where::here())
    {
        machine.enter("TPipe::Reset", at);
        wait_for_freed();
        reset_pool();
    }

    void Destroy(Where at = Where::here())
    {
        machine.enter("TPipe::Destroy", at);
        destroyed_ = true;
        wait_for_freed();
        for (int i = 0; i < used_; ++i) {
            const neonext_twin::Buffer& buffer = buffers_[i];
            if (buffer.queued && buffer.state != TBufState::FREE) {
                machine.notes.push_back("core " + std::to_string(machine.core) + ": a tensor allocated at line " +
                                        std::to_string(buffer.line) + " is not freed at the end");
            }
        }
        machine.barrier_all();
    }

    TEventID twin_take_event(HardEvent event)
    {
        const TEventID id = first_free(event);
        events_[static_cast<int>(event)] |= 1u << id;
        return id;
    }

    void twin_give_event(HardEvent event, TEventID id)
    {
        if (id < 0 || id >= neonext_twin::max_events) {
            machine.reject(Rule::event_range, "event id %d; ids are 0 to %d", id,
                           neonext_twin::max_events - 1);
        }
        events_[static_cast<int>(event)] &= ~(1u << id);
    }

private:
    friend BufferOwner;

    TPipe* pipe() { return this; }

    /// Return the address of the next bytes of the unified buffer.
    static uint32_t take(uint32_t bytes)
    {
        const uint32_t start = machine.ub_end;
        const uint64_t end = static_cast<uint64_t>(start) + bytes;
        if (end > machine.ub_bytes) {
            machine.reject(Rule::ub_overrun,
                           "the kernel asks for %llu bytes of unified buffer, %u more than %s has (%u)",
                           static_cast<unsigned long long>(end), static_cast<uint32_t>(end - machine.ub_bytes),
                           machine.soc.c_str(), machine.ub_bytes);
        }
        machine.ub_end = static_cast<uint32_t>(end);
        machine.ub_peak = std::max(machine.ub_peak, machine.ub_end);
        return start;
    }

    static void too_many()
    {
        machine.reject(Rule::too_many_buffers, "more than %d buffers in one TPipe", neonext_twin::pool_limit);
    }

    TEventID first_free(HardEvent event) const
    {
        const uint32_t taken = events_[static_cast<int>(event)];
        for (int id = 0; id < neonext_twin::max_events; ++id) {
            if ((taken >> id & 1u) == 0) {
                return static_cast<TEventID>(id);
            }
        }
        const neonext_twin::PipePair pipes = neonext_twin::pipes_of(event);
        machine.stop(Rule::events_used_up, "all %d events of %s_%s are in use", neonext_twin::max_events,
                     neonext_twin::pipe_name(pipes.source), neonext_twin::pipe_name(pipes.target));
    }

    void wait_for_freed()
    {
        for (int i = 0; i < used_; ++i) {
            neonext_twin::Buffer& buffer = buffers_[i];
            if (buffer.free_event != INVALID_TEVENTID && buffer.state == TBufState::FREE) {
                neonext_twin::wait_event(buffer.free_kind, buffer.free_event);
                buffer.free_event = INVALID_TEVENTID;
            }
        }
    }

    void reset_pool()
    {
        used_ = 0;
        for (uint32_t& taken : events_) {
            taken = 0;
        }
        machine.ub_end = 0;
        ++machine.pool_epoch;
        machine.reset_modes();
    }

    uint32_t events_[static_cast<int>(HardEvent::MAX) + 1] = {};
    bool destroyed_ = false;
};

inline TPipe* GetTPipePtr()
{
    return static_cast<TPipe*>(machine.pipe);
}

template <TPosition src, TPosition dst, int32_t depth, auto mask>
class TQueBind {
public:
    static constexpr bool isTQue = true;
    static constexpr TPosition srcPosition = src;
    static constexpr TPosition dstPosition = dst;
    static constexpr HardEvent enQueEvt = neonext_twin::queue_event(src, dst, true);
    static constexpr HardEvent freeBufEvt = neonext_twin::queue_event(src, dst, false);
    static_assert(enQueEvt != HardEvent::MAX,
                  "the simulator has queues between global memory and the unified buffer only");

    template <typename T>
    LocalTensor<T> AllocTensor(Where at = Where::here())
    {
        static_assert(depth != 0, "a queue of depth 0 takes AllocTensor(tensor)");
        return tensor<T>(allocate(at));
    }

    template <typename T>
    void AllocTensor(LocalTensor<T>& tensor, Where at = Where::here())
    {
        static_assert(depth == 0, "AllocTensor(tensor) is for a queue of depth 0");
        tensor = this->template tensor<T>(allocate(at));
    }

    template <typename T>
    void FreeTensor(LocalTensor<T>& tensor, Where at = Where::here())
    {
        machine.enter("FreeTensor", at);
        neonext_twin::Buffer& buffer = own(tensor.twin_view());
        if (buffer.state == TBufState::FREE) {
            machine.reject(Rule::freed_twice, "the tensor was freed already (line %d)", buffer.line);
        }
        if (buffer.state == TBufState::ENQUE) {
            machine.reject(Rule::queue_order, "the tensor is in the queue (EnQue at line %d); DeQue comes first",
                           buffer.line);
        }
        if constexpr (depth != 0) {
            buffer.free_event = pipe_->twin_take_event(freeBufEvt);
        }
        neonext_twin::set_event(freeBufEvt, buffer.free_event, at, true);
        buffer.state = TBufState::FREE;
        buffer.line = at.line;
    }

    template <typename T>
    bool EnQue(const LocalTensor<T>& tensor, Where at = Where::here())
    {
        return enqueue(tensor.twin_view(), enQueEvt, at);
    }

    template <TPosition srcUserPos, TPosition dstUserPos, typename T>
    bool EnQue(const LocalTensor<T>& tensor, Where at = Where::here())
    {
        constexpr HardEvent event = user_event<srcUserPos, dstUserPos>();
        return enqueue(tensor.twin_view(), event, at);
    }

    template <typename T>
    LocalTensor<T> DeQue(Where at = Where::here())
    {
        static_assert(depth != 0, "a queue of depth 0 takes DeQue(tensor)");
        return tensor<T>(dequeue(enQueEvt, at));
    }

    template <TPosition srcUserPos, TPosition dstUserPos, typename T>
    LocalTensor<T> DeQue(Where at = Where::here())
    {
        constexpr HardEvent event = user_event<srcUserPos, dstUserPos>();
        return tensor<T>(dequeue(event, at));
    }

    template <typename T>
    void DeQue(LocalTensor<T>& tensor, Where at = Where::here())
    {
        static_assert(depth == 0, "DeQue(tensor) is for a queue of depth 0");
        machine.enter("DeQue", at);
        neonext_twin::Buffer& buffer = own(tensor.twin_view());
        if (buffer.state != TBufState::ENQUE) {
            machine.reject(Rule::queue_empty, "the tensor is not in the queue");
        }
        neonext_twin::wait_event(enQueEvt, buffer.enqueue_event);
        buffer.state = TBufState::DEQUE;
        buffer.line = at.line;
    }

    bool VacantInQue() const { return queued_ < depth; }
    bool HasTensorInQue() const { return queued_ != 0; }
    int32_t GetTensorCountInQue() const { return queued_; }
    bool HasIdleBuffer() const
    {
        for (int i = 0; i < count_; ++i) {
            if (start_[i].state == TBufState::FREE) {
                return true;
            }
        }
        return false;
    }

    template <typename T>
    TBufState GetState(const LocalTensor<T>& tensor) const
    {
        const neonext_twin::Buffer* buffer = tensor.twin_view().buffer;
        return buffer == nullptr ? TBufState::FREE : buffer->state;
    }

    void FreeAllEvent(Where at = Where::here())
    {
        machine.enter("FreeAllEvent", at);
        for (int i = 0; i < count_; ++i) {
            neonext_twin::Buffer& buffer = start_[i];
            if (buffer.free_event != INVALID_TEVENTID) {
                neonext_twin::wait_event(freeBufEvt, buffer.free_event);
                pipe_->twin_give_event(freeBufEvt, buffer.free_event);
                buffer.free_event = INVALID_TEVENTID;
            }
        }
    }

    void twin_start(TPipe* pipe, neonext_twin::Buffer* start, int count)
    {
        pipe_ = pipe;
        start_ = start;
        count_ = count;
        cursor_ = queued_ = head_ = 0;
    }

    void twin_ready()
    {
        if constexpr (depth == 0) {
            for (int i = 0; i < count_; ++i) {
                start_[i].enqueue_event = pipe_->twin_take_event(enQueEvt);
                start_[i].free_event = pipe_->twin_take_event(freeBufEvt);
                neonext_twin::set_event(freeBufEvt, start_[i].free_event, machine.where, true);
            }
        }
    }

private:
    static constexpr int slots = depth > 0 ? depth : 1;

    template <TPosition from, TPosition to>
    static constexpr HardEvent user_event()
    {
        static_assert(depth != 0, "a queue of depth 0 has no EnQue and DeQue with positions");
        return neonext_twin::queue_event(from, to, true);
    }

    neonext_twin::Buffer& own(const neonext_twin::View& view)
    {
        neonext_twin::Buffer* buffer = view.buffer;
        if (start_ == nullptr || buffer < start_ || buffer >= start_ + count_) {
            machine.stop(Rule::queue_foreign, "the tensor was not allocated from this queue");
        }
        if (view.generation != buffer->generation) {
            machine.reject(Rule::stale_tensor, "the tensor's buffer was freed and allocated again");
        }
        return *buffer;
    }

    neonext_twin::Buffer& allocate(Where at)
    {
        machine.enter("AllocTensor", at);
        if (start_ == nullptr) {
            machine.reject(Rule::queue_full, "the queue has no buffers: InitBuffer was not called");
        }
        for (int tried = 0; tried < count_; ++tried) {
            neonext_twin::Buffer& buffer = start_[cursor_];
            cursor_ = (cursor_ + 1) % count_;
            if (buffer.state != TBufState::FREE) {
                continue;
            }
            if (buffer.free_event != INVALID_TEVENTID) {
                neonext_twin::wait_event(freeBufEvt, buffer.free_event);
                if constexpr (depth != 0) {
                    pipe_->twin_give_event(freeBufEvt, buffer.free_event);
                    buffer.free_event = INVALID_TEVENTID;
                }
            }
            buffer.state = TBufState::OCCUPIED;
            buffer.line = at.line;
            ++buffer.generation;
            return buffer;
        }
        machine.stop(Rule::queue_full, "all %d buffers of the queue are in use: the core would hang", count_);
    }

    bool enqueue(const neonext_twin::View& view, HardEvent event, Where at)
    {
        machine.enter("EnQue", at);
        neonext_twin::Buffer& buffer = own(view);
        if (buffer.state == TBufState::ENQUE) {
            machine.reject(Rule::queue_order, "the tensor is in the queue already (line %d)", buffer.line);
        }
        if (buffer.state == TBufState::FREE) {
            machine.reject(Rule::used_after_free, "the tensor was given to FreeTensor (line %d)", buffer.line);
        }
        if constexpr (depth != 0) {
            if (queued_ >= depth) {
                machine.reject(Rule::queue_depth, "the queue holds %d tensors, its depth", depth);
            }
            if (event != HardEvent::V_V) {
                buffer.enqueue_event = pipe_->twin_take_event(event);
            }
            waiting_[(head_ + queued_) % slots] = &buffer;
            ++queued_;
        }
        neonext_twin::set_event(event, buffer.enqueue_event, at, true);
        buffer.state = TBufState::ENQUE;
        buffer.line = at.line;
        return true;
    }

    neonext_twin::Buffer& dequeue(HardEvent event, Where at)
    {
        machine.enter("DeQue", at);
        if (queued_ == 0) {
            machine.reject(Rule::queue_empty, "the queue is empty");
        }
        neonext_twin::Buffer& buffer = *waiting_[head_];
        head_ = (head_ + 1) % slots;
        --queued_;
        if (event != HardEvent::V_V) {
            neonext_twin::wait_event(event, buffer.enqueue_event);
            pipe_->twin_give_event(event, buffer.enqueue_event);
            buffer.enqueue_event = INVALID_TEVENTID;
        }
        buffer.state = TBufState::DEQUE;
        buffer.line = at.line;
        return buffer;
    }

    template <typename T>
    LocalTensor<T> tensor(neonext_twin::Buffer& buffer) const
    {
        const TPosition position = neonext_twin::hardware_of(src) == Hardware::GM ? dst : src;
        return LocalTensor<T>(neonext_twin::view_of(buffer, 0, buffer.bytes, position, machine.pool_epoch));
    }

    TPipe* pipe_ = nullptr;
    neonext_twin::Buffer* start_ = nullptr;
    int count_ = 0;
    int cursor_ = 0;
    neonext_twin::Buffer* waiting_[slots] = {};
    int head_ = 0;
    int queued_ = 0;
};

namespace twin_detail {

constexpr TPosition queue_source(TPosition pos)
{
    return pos == TPosition::VECIN ? TPosition::GM : pos;
}

constexpr TPosition queue_target(TPosition pos)
{
    return pos == TPosition::VECOUT ? TPosition::GM : pos;
}

}  // namespace twin_detail

template <TPosition pos, int32_t depth, auto mask = 0>
class TQue : public TQueBind<twin_detail::queue_source(pos), twin_detail::queue_target(pos), depth, mask> {};

template <TPosition pos>
class TBuf {
public:
    static constexpr bool isTQue = false;

    template <typename T>
    LocalTensor<T> Get(Where at = Where::here())
    {
        return view<T>(0, buffer_ == nullptr ? 0 : buffer_->bytes, at);
    }

    template <typename T>
    LocalTensor<T> Get(uint32_t len, Where at = Where::here())
    {
        return view<T>(0, static_cast<uint64_t>(len) * sizeof(T), at);
    }

    template <typename T>
    LocalTensor<T> GetWithOffset(uint32_t size, uint32_t bufOffset, Where at = Where::here())
    {
        return view<T>(bufOffset, static_cast<uint64_t>(size) * sizeof(T), at);
    }

    template <typename T>
    LocalTensor<T> AllocTensor(Where at = Where::here())
    {
        return Get<T>(at);
    }
    template <typename T>
    LocalTensor<T> DeQue(Where at = Where::here())
    {
        return Get<T>(at);
    }
    template <typename T>
    void EnQue(const LocalTensor<T>&)
    {}
    template <typename T>
    void FreeTensor(LocalTensor<T>&)
    {}

    uint32_t GetBufLen() const { return buffer_ == nullptr ? 0 : buffer_->bytes; }

    void twin_start(neonext_twin::Buffer* buffer)
    {
        buffer_ = buffer;
        epoch_ = machine.pool_epoch;
    }

private:
    template <typename T>
    LocalTensor<T> view(uint64_t offset, uint64_t bytes, Where at)
    {
        machine.enter("TBuf::Get", at);
        if (buffer_ == nullptr) {
            machine.stop(Rule::ub_bounds, "the buffer has no memory: InitBuffer was not called");
        }
        if (offset + bytes > buffer_->bytes) {
            machine.reject(Rule::ub_bounds, "bytes [%llu, %llu) of a buffer of %u bytes",
                           static_cast<unsigned long long>(offset), static_cast<unsigned long long>(offset + bytes),
                           buffer_->bytes);
        }
        return LocalTensor<T>(neonext_twin::view_of(*buffer_, offset, bytes, pos, epoch_));
    }

    neonext_twin::Buffer* buffer_ = nullptr;
    uint32_t epoch_ = 0;
};

/// A part of the unified buffer with buffers of its own, which Reset gives back without touching the rest.
template <TPosition pos, uint32_t bufIDSize>
class TBufPool : public BufferOwner<TBufPool<pos, bufIDSize>, bufIDSize> {
public:
    static constexpr TPosition poolPos = pos;

    void Reset(Where at = Where::here())
    {
        machine.enter("TBufPool::Reset", at);
        for (int i = 0; i < this->used_; ++i) {
            neonext_twin::Buffer& buffer = this->buffers_[i];
            if (buffer.free_event != INVALID_TEVENTID) {
                neonext_twin::wait_event(buffer.free_kind, buffer.free_event);
                pipe_->twin_give_event(buffer.free_kind, buffer.free_event);
                buffer.free_event = INVALID_TEVENTID;
            }
            // Tensors of a TBuf have no state of their own; as queued and free they are rejected like the others.
            buffer.queued = true;
            buffer.state = TBufState::FREE;
            buffer.line = at.line;
        }
        this->used_ = 0;
        next_ = start_;
    }

    void twin_start(TPipe* pipe, uint32_t start, uint32_t bytes)
    {
        pipe_ = pipe;
        start_ = next_ = start;
        bytes_ = bytes;
        this->used_ = 0;
    }

    template <typename Pool>
    void twin_share(TPipe* pipe, Pool& pool, uint32_t bytes) const
    {
        if (bytes > bytes_) {
            machine.reject(Rule::ub_bounds, "%u bytes of a pool that has %u", bytes, bytes_);
        }
        pool.twin_start(pipe, start_, bytes_);
    }

private:
    friend BufferOwner<TBufPool, bufIDSize>;

    TPipe* pipe() { return pipe_; }

    uint32_t take(uint32_t bytes)
    {
        if (pipe_ == nullptr || next_ + bytes > start_ + bytes_) {
            machine.reject(Rule::ub_bounds, "%u bytes more in a pool of %u, of which %u are taken", bytes, bytes_,
                           next_ - start_);
        }
        const uint32_t start = next_;
        next_ += bytes;
        return start;
    }

    static void too_many()
    {
        machine.reject(Rule::too_many_buffers, "more buffers than the %u that the pool is declared with", bufIDSize);
    }

    TPipe* pipe_ = nullptr;
    uint32_t start_ = 0;
    uint32_t next_ = 0;
    uint32_t bytes_ = 0;
};

/// Static allocation: tensors lie one after another from the start of the unified buffer.
template <Hardware hard = Hardware::UB>
class LocalMemAllocator {
public:
    static_assert(hard == Hardware::UB, "the simulator has a unified buffer only");

    uint32_t GetCurAddr() const { return head_; }

    template <TPosition pos, class T, uint32_t tileSize>
    LocalTensor<T> Alloc(Where at = Where::here())
    {
        return take<T>(pos, tileSize, at);
    }
    template <TPosition pos, class T>
    LocalTensor<T> Alloc(uint32_t tileSize, Where at = Where::here())
    {
        return take<T>(pos, tileSize, at);
    }
    template <class T, uint32_t tileSize>
    LocalTensor<T> Alloc(Where at = Where::here())
    {
        return take<T>(TPosition::VECIN, tileSize, at);
    }
    template <class T>
    LocalTensor<T> Alloc(uint32_t tileSize, Where at = Where::here())
    {
        return take<T>(TPosition::VECIN, tileSize, at);
    }

private:
    template <class T>
    LocalTensor<T> take(TPosition pos, uint32_t tileSize, Where at)
    {
        LocalTensor<T> result(pos, head_, tileSize, at);
        head_ = (head_ + tileSize * sizeof(T) + ONE_BLK_SIZE - 1) / ONE_BLK_SIZE * ONE_BLK_SIZE;
        return result;
    }

    uint32_t head_ = 0;
};

}  // namespace AscendC

using AscendC::GetTPipePtr;
