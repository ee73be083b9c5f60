// The cores of a launch. They run one after another, each on a stack of its own, so that one that waits for others can
// be put aside. Which core runs first is no promise: what orders two cores is only what they wait for.
#pragma once

#include <exception>
#include <functional>
#include <set>
#include <tuple>

#include <sys/mman.h>
#include <ucontext.h>

#include "pipe.h"

namespace neonext_twin {

class Cores {
public:
    /// Run `entry` on every core; throw the first violation.
    void run(int count, const std::function<void()>& entry)
    {
        entry_ = &entry;
        arrived_ = 0;
        signals_.clear();
        std::vector<std::unique_ptr<Fiber>> waiting;
        for (int core = 0; core < count; ++core) {
            auto fiber = std::make_unique<Fiber>(core);
            resume(*fiber);
            if (!fiber->done) {
                waiting.push_back(std::move(fiber));
            }
        }
        while (!waiting.empty()) {
            const auto next =
                std::find_if(waiting.begin(), waiting.end(), [](const auto& one) { return one->ready(); });
            if (next == waiting.end()) {
                machine.exchange(waiting.front()->state);
                machine.stop(Rule::core_hang, "waits for another core, which never gets there: the cores would hang");
            }
            machine.exchange((*next)->state);
            resume(**next);
            if ((*next)->done) {
                waiting.erase(next);
            }
        }
    }

    /// Wait until `count` cores are here.
    void meet(int count)
    {
        if (++arrived_ == count) {
            arrived_ = 0;
            ++meetings_;
            return;
        }
        wait([this, meeting = meetings_] { return meetings_ != meeting; });
    }

    using Signal = std::tuple<const void*, int, int>; // workspace, block, event

    void set(const Signal& signal) { signals_.insert(signal); }

    /// Wait for a signal, and take it back.
    void take(const Signal& signal)
    {
        if (signals_.count(signal) == 0) {
            wait([this, signal] { return signals_.count(signal) != 0; });
        }
        signals_.erase(signal);
    }

private:
    /// A core with its stack; `state` holds what the machine knows of it while it waits.
    struct Fiber {
        static constexpr size_t stack_bytes = size_t{8} << 20;
        static constexpr size_t guard = 4096;

        explicit Fiber(int core) : core(core)
        {
            stack = ::mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                           -1, 0);
            if (stack == MAP_FAILED) {
                throw std::bad_alloc();
            }
            ::mprotect(stack, guard, PROT_NONE);
        }
        Fiber(const Fiber&) = delete;
        Fiber& operator=(const Fiber&) = delete;
        ~Fiber() { ::munmap(stack, stack_bytes); }

        int core;
        void* stack;
        ucontext_t context{};
        bool started = false;
        bool done = false;
        std::exception_ptr failed;
        std::function<bool()> ready;
        CoreState state;
    };

    void resume(Fiber& fiber)
    {
        running_ = &fiber;
        if (!fiber.started) {
            fiber.started = true;
            ::getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack;
            fiber.context.uc_stack.ss_size = Fiber::stack_bytes;
            fiber.context.uc_link = &home_;
            ::makecontext(&fiber.context, &Cores::start, 0);
        }
        ::swapcontext(&home_, &fiber.context);
        if (fiber.failed) {
            std::rethrow_exception(fiber.failed);
        }
    }

    void wait(std::function<bool()> ready)
    {
        Fiber& fiber = *running_;
        fiber.ready = std::move(ready);
        machine.exchange(fiber.state);
        ::swapcontext(&fiber.context, &home_);
    }

    static void start();

    const std::function<void()>* entry_ = nullptr;
    Fiber* running_ = nullptr;
    ucontext_t home_{};
    int arrived_ = 0;
    uint64_t meetings_ = 0;
    std::set<Signal> signals_;
};

inline Cores cores;

inline void Cores::start()
{
    Fiber& fiber = *cores.running_;
    try {
        machine.start_core(fiber.core);
        (*cores.entry_)();
        machine.end_core();
    } catch (...) {
        fiber.failed = std::current_exception();
    }
    fiber.done = true;
}

/// Start a function that waits for other cores, all of which must be running.
inline void check_waiting()
{
    if (machine.mixed) {
        machine.reject(Rule::not_on_arch,
                       "the kernel runs on AI cores and vector cores (KERNEL_TYPE_MIX_VECTOR_CORE), which cannot wait "
                       "for each other");
    }
    if (machine.blocks > machine.vector_units) {
        machine.reject(Rule::core_hang, "%d blocks wait for each other, and %s has %d cores", machine.blocks,
                       machine.soc.c_str(), machine.vector_units);
    }
    machine.barrier_all();
}

/// Check the workspaces of a function that counts in global memory: 32 bytes for each core, zero at the start.
inline void check_workspaces(const AscendC::GlobalTensor<int32_t>& global, const AscendC::LocalTensor<int32_t>& local,
                             int count, Where at)
{
    constexpr int words = block_bytes / sizeof(int32_t);
    for (int i = 0; i < count; ++i) {
        if (global.GetValue(static_cast<uint64_t>(i) * words, at) != 0) {
            machine.reject(Rule::argument, "gmWorkspace is not zero at the start");
        }
    }
    const uint32_t tick = machine.issue(pipe_mte2);
    local.twin_view().check_aligned("ubWorkspace");
    local.twin_view().write(pipe_mte2, tick, 0, static_cast<uint64_t>(count) * block_bytes, "ubWorkspace");
    machine.barrier_all();
}

constexpr int turn_event = -1;

/// Start a function of cores that take turns: everything before it ends first, and its workspaces hold 32 bytes for
/// each core, and 32 more in the unified buffer.
inline void start_turn(const AscendC::GlobalTensor<int32_t>& global, const AscendC::LocalTensor<int32_t>& local)
{
    check_waiting();
    const uint64_t bytes = static_cast<uint64_t>(machine.blocks) * block_bytes;
    uint64_t start = 0;
    global.twin_range(0, bytes, "gmWorkspace", start);
    local.twin_view().check_aligned("ubWorkspace");
    local.twin_view().write(pipe_v, machine.issue(pipe_v), 0, bytes + block_bytes, "ubWorkspace");
    machine.barrier_all();
}

}  // namespace neonext_twin

namespace AscendC {

/// Wait for all cores, by the hardware.
template <bool isAIVOnly = true>
inline void SyncAll(Where at = Where::here())
{
    machine.enter("SyncAll", at);
    if (__NPU_ARCH__ != 2201) {
        machine.reject(Rule::not_on_arch, "__NPU_ARCH__ %d (%s) has no SyncAll without workspaces", __NPU_ARCH__,
                       machine.soc.c_str());
    }
    neonext_twin::check_waiting();
    machine.release_writes();
    neonext_twin::cores.meet(machine.blocks);
}

/// Wait for all cores, or the first `usedCores`, by counters in global memory.
template <bool isAIVOnly = true>
inline void SyncAll(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace,
                    const int32_t usedCores = 0, Where at = Where::here())
{
    machine.enter("SyncAll", at);
    neonext_twin::check_waiting();
    const int count = usedCores != 0 ? usedCores : machine.blocks;
    if (count < 1 || count > machine.blocks) {
        machine.reject(Rule::argument, "usedCores is %d; the kernel has %d blocks", usedCores, machine.blocks);
    }
    neonext_twin::check_workspaces(gmWorkspace, ubWorkspace, count, at);
    machine.release_writes();
    neonext_twin::cores.meet(count);
}

/// Set the flag of an event, which IBWait with the same arguments takes back.
template <bool isAIVOnly = true>
inline void IBSet(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace, int32_t blockIdx,
                  int32_t eventID, Where at = Where::here())
{
    machine.enter("IBSet", at);
    neonext_twin::check_waiting();
    neonext_twin::check_workspaces(gmWorkspace, ubWorkspace, 1, at);
    machine.release_writes();
    neonext_twin::cores.set({gmWorkspace.GetPhyAddr(), blockIdx, eventID});
}

template <bool isAIVOnly = true>
inline void IBWait(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace, int32_t blockIdx,
                   int32_t eventID, Where at = Where::here())
{
    machine.enter("IBWait", at);
    neonext_twin::check_waiting();
    neonext_twin::check_workspaces(gmWorkspace, ubWorkspace, 1, at);
    neonext_twin::cores.take({gmWorkspace.GetPhyAddr(), blockIdx, eventID});
}

// Cores that take turns in the order of their index: each waits for the one before it and notifies the next, and the
// last one the first. The event with which a core is notified is its own index's, and no number that IBSet takes.

inline void InitDetermineComputeWorkspace(GlobalTensor<int32_t>& gmWorkspace, LocalTensor<int32_t>& ubWorkspace,
                                          Where at = Where::here())
{
    machine.enter("InitDetermineComputeWorkspace", at);
    neonext_twin::start_turn(gmWorkspace, ubWorkspace);
    if (machine.core == 0) {
        neonext_twin::cores.set({gmWorkspace.GetPhyAddr(), 0, neonext_twin::turn_event});
    }
}

inline void WaitPreBlock(GlobalTensor<int32_t>& gmWorkspace, LocalTensor<int32_t>& ubWorkspace,
                         Where at = Where::here())
{
    machine.enter("WaitPreBlock", at);
    neonext_twin::start_turn(gmWorkspace, ubWorkspace);
    neonext_twin::cores.take({gmWorkspace.GetPhyAddr(), machine.core, neonext_twin::turn_event});
}

inline void NotifyNextBlock(GlobalTensor<int32_t>& gmWorkspace, LocalTensor<int32_t>& ubWorkspace,
                            Where at = Where::here())
{
    machine.enter("NotifyNextBlock", at);
    neonext_twin::start_turn(gmWorkspace, ubWorkspace);
    machine.release_writes();
    const int next = (machine.core + 1) % machine.blocks;
    neonext_twin::cores.set({gmWorkspace.GetPhyAddr(), next, neonext_twin::turn_event});
}

}  // namespace AscendC
