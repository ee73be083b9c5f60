// The state of one launch: memory and its shadows, the pipes' clocks, the counters, and the rules that were broken.
//
// Vector clocks decide whether two instructions are ordered. known_[p][q] is the number of the last instruction of pipe
// q that is certain to have finished before the next instruction of pipe p starts. Only SetFlag/WaitFlag and barriers
// carry that knowledge from pipe to pipe. Time is not simulated: an order that holds by luck on a device is an error.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "numbers.h"
#include "rules.h"

#ifndef __NPU_ARCH__
#error "compile with -D__NPU_ARCH__=2002, 2201 or 3002; neonext_ms.ops.twin.compile does"
#endif

namespace neonext_twin {

constexpr uint32_t block_bytes = 32;
constexpr uint32_t repeat_bytes = 256;

/// A line of the kernel. Every public function takes its caller's as a default argument, so that errors can name it.
struct Where {
    const char* file = "";
    int line = 0;

    static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE())
    {
        return Where{file, line};
    }
};

enum Pipe : uint8_t { pipe_s, pipe_v, pipe_mte2, pipe_mte3, pipe_mte1, pipe_m, pipe_fix, pipe_count };

inline const char* pipe_name(int pipe)
{
    static const char* const names[] = {"S", "V", "MTE2", "MTE3", "MTE1", "M", "FIX"};
    return names[pipe];
}

/// The operation that combines a copy to global memory with the values there.
enum Atomic : uint8_t { atomic_none, atomic_add, atomic_max, atomic_min };

/// A broken rule: thrown, or recorded where a hazard is only reported.
struct Violation {
    Rule rule;
    std::string text;
    std::string file;
    int line;
    int core;
};

struct PipeCounts {
    uint64_t instructions = 0;
    uint64_t repeats = 0;
    uint64_t elements = 0;
    uint64_t macs = 0;
    uint64_t bursts = 0;
    uint64_t bytes = 0;

    void add(const PipeCounts& other)
    {
        instructions += other.instructions;
        repeats += other.repeats;
        elements += other.elements;
        macs += other.macs;
        bursts += other.bursts;
        bytes += other.bytes;
    }
};

struct NamedCounts {
    const char* name;
    PipeCounts counts;
};

/// Shadow of 32 bytes of the unified buffer: which bytes hold a value, and who wrote and read them last.
struct BlockShadow {
    uint32_t written = 0;
    uint32_t write_tick = 0;
    int32_t write_line = 0;
    uint32_t write_pipe = pipe_v;
    uint32_t read_tick[4] = {0, 0, 0, 0};
    int32_t read_line[4] = {0, 0, 0, 0};
};

/// Shadow of 32 bytes of a writable argument in global memory. The byte mask tells apart writes to neighbouring bytes.
struct GmShadow {
    uint32_t write_tick = 0;
    uint32_t write_mask = 0;
    uint32_t read_tick = 0;
    int32_t write_line = 0;
    int32_t core = 0; // whose clocks the ticks are of
};

// Owners of a byte of global memory that are not a core: nobody has written it, or it came with the launch.
constexpr uint8_t gm_unwritten = 255;
constexpr uint8_t gm_initial = 254;

/// One argument of the kernel in global memory.
struct Region {
    uint8_t* base = nullptr;
    uint64_t bytes = 0;
    uint64_t padded = 0;
    int argument = 0;
    bool writable = false;
    bool shared = false;
    std::vector<uint8_t> owner;
    std::vector<GmShadow> shadow;
};

/// Return bytes [from, to) of a 32-byte block as a mask.
inline uint32_t byte_mask(uint32_t from, uint32_t to)
{
    const uint64_t upper = (uint64_t{1} << to) - 1;
    return static_cast<uint32_t>(upper & ~((uint64_t{1} << from) - 1));
}

constexpr int max_events = 8;

struct Flag {
    bool set = false;
    bool queue = false;
    Where where;
    uint32_t known[pipe_count] = {};
};

/// The state of one core. Cores run one after another, and one that waits for others is put aside with its state.
struct CoreState {
    int core = 0;
    bool vector_core = false; // one of the 310P's cores without a cube unit
    bool saturates = false;
    uint8_t* ub = nullptr;
    const char* api = "";
    Where where;
    uint32_t ub_end = 0;    // of the TPipe's buffers
    uint32_t fixed_end = 0; // of tensors at fixed addresses
    uint32_t ub_peak = 0;
    uint32_t pool_epoch = 0;
    uint64_t mask_low = ~uint64_t{0};
    uint64_t mask_high = ~uint64_t{0};
    bool mask_counter = false;
    Atomic atomic = atomic_none;
    uint64_t compare_mask[2] = {0, 0};
    uint64_t pad_value = 0;
    bool pad_value_set = false;
    half deq_scale = half(1.0f);
    bool has_deq_scale = false;
    uint64_t reserved_count = 0;
    uint64_t control = 0;
    float reduce_value = 0; // of the last maximum or minimum, over all its repeats
    uint32_t reduce_index = 0;
    float reduce_sum = 0; // of the last ReduceSum with a count
    bool has_reduce_value = false;
    bool has_reduce_sum = false;
    void* pipe = nullptr; // its TPipe

protected:
    std::vector<uint8_t> storage_;
    std::vector<BlockShadow> shadow_;
    uint32_t known_[pipe_count][pipe_count] = {};
    uint32_t now_[pipe_count] = {};
    Flag flags_[pipe_count][pipe_count][max_events];
};

class Machine : public CoreState {
public:
    // Launch configuration.
    std::string soc;
    uint32_t ub_bytes = 0;
    int blocks = 1;
    int ai_cores = 0; // of the device
    int vector_units = 0; // cores that a vector kernel runs on
    bool mixed = false; // blocks run on vector cores of a 310P too, as tasks of their own
    uint64_t tiling_key = 0;
    bool report_hazards = false;

    std::vector<Region> regions;
    std::vector<Violation> hazards;
    std::vector<std::string> notes;

    /// Start a public function: errors from here on name it and its caller.
    void enter(const char* name, Where at)
    {
        api = name;
        if (at.line != 0) {
            where = at;
        }
    }

    /// Throw the violation of a rule. With `report_hazards`, record a hazard once for each line and go on.
    [[gnu::format(printf, 3, 4), gnu::cold, gnu::noinline]] void reject(Rule rule, const char* format, ...)
    {
        va_list arguments;
        va_start(arguments, format);
        Violation violation = violation_of(rule, format, arguments);
        va_end(arguments);
        if (!report_hazards || !rule_of(rule).hazard) {
            throw violation;
        }
        for (const Violation& known : hazards) {
            if (known.rule == rule && known.line == violation.line && known.file == violation.file) {
                return;
            }
        }
        hazards.push_back(std::move(violation));
    }

    /// Throw the violation of a rule that is not a hazard, where nothing could go on.
    [[noreturn, gnu::format(printf, 3, 4), gnu::cold, gnu::noinline]] void stop(Rule rule, const char* format, ...)
    {
        va_list arguments;
        va_start(arguments, format);
        Violation violation = violation_of(rule, format, arguments);
        va_end(arguments);
        throw violation;
    }

    /// Return the end of the unified buffer that a kernel may use beside functions that keep scratch behind it. The
    /// headers of AscendC call it TMP_UB_OFFSET; on 3002 it is the whole buffer.
    uint32_t usable_end() const
    {
        constexpr uint32_t reserved = __NPU_ARCH__ == 2002 ? 248u << 10 : __NPU_ARCH__ == 2201 ? 184u << 10 : ~0u;
        return std::min(ub_bytes, reserved);
    }

    /// Reject buffers in the scratch that the function running now writes to.
    void use_scratch()
    {
        const uint32_t end = std::max(ub_end, fixed_end);
        if (end > usable_end()) {
            reject(Rule::ub_reserved,
                   "writes its scratch from byte %u of the unified buffer on, and buffers reach to %u", usable_end(),
                   end);
        }
    }

    /// Add a remark that readers of the counts must know, once.
    void note(const std::string& text)
    {
        if (std::find(notes.begin(), notes.end(), text) == notes.end()) {
            notes.push_back(text);
        }
    }

    // ---- launch ----

    void start_launch(uint32_t bytes_of_ub)
    {
        ub_bytes = bytes_of_ub;
        mixed = false;
        hazards.clear();
        notes.clear();
        cores_.assign(blocks, CoreCounts{});
        for (NamedCounts& entry : named()) {
            entry.counts = PipeCounts{};
        }
    }

    void start_core(int index)
    {
        core = index;
        storage_.resize(ub_bytes + 2 * guard_bytes);
        const uintptr_t start = reinterpret_cast<uintptr_t>(storage_.data());
        ub = reinterpret_cast<uint8_t*>((start + guard_bytes) / guard_bytes * guard_bytes);
        // The device does not clear the buffer between kernels. 0xff bytes are NaN in every floating type.
        std::memset(ub, 0xff, ub_bytes);
        shadow_.assign((ub_bytes + block_bytes - 1) / block_bytes, BlockShadow{});
        std::fill_n(&flags_[0][0][0], sizeof(flags_) / sizeof(Flag), Flag{});
        ub_end = fixed_end = ub_peak = 0;
        ++pool_epoch;
        reset_modes();
        set_kind(false);
        pad_value_set = has_deq_scale = has_reduce_value = has_reduce_sum = false;
        control = 0;
        pipe = nullptr;
        api = "";
        where = Where{};
        barrier_all();
    }

    /// Set the kind of the running core. An AI core of 2002 always saturates, its vector cores never do, and 2201 does
    /// by a bit of its control register, which frameworks clear or set for a whole process.
    void set_kind(bool is_vector_core)
    {
        vector_core = is_vector_core;
#ifdef NEONEXT_TWIN_SATURATE
        saturates = saturating = !is_vector_core;
#else
        saturates = saturating = __NPU_ARCH__ == 2002 && !is_vector_core;
#endif
    }

    /// Exchange the running core for another one that is put aside.
    void exchange(CoreState& other)
    {
        std::swap(static_cast<CoreState&>(*this), other);
        saturating = saturates;
    }

    /// Let all cores read, and write again, what the running core wrote: it is certain to be in memory.
    void release_writes()
    {
        barrier_all();
        for (Region& region : regions) {
            std::replace(region.owner.begin(), region.owner.end(), static_cast<uint8_t>(core), gm_initial);
        }
    }

    void reset_mask() { mask_low = mask_high = ~uint64_t{0}; }

    /// Set the registers that a kernel finds at its start.
    void reset_modes()
    {
        reset_mask();
        mask_counter = false;
        atomic = atomic_none;
    }

    void end_core()
    {
        cores_[core].ub_bytes = ub_peak;
        cores_[core].vector_core = vector_core;
        for (int source = 0; source < pipe_count; ++source) {
            for (int target = 0; target < pipe_count; ++target) {
                for (int id = 0; id < max_events; ++id) {
                    const Flag& flag = flags_[source][target][id];
                    if (flag.set && !flag.queue) {
                        enter("SetFlag", flag.where);
                        reject(Rule::flag_left,
                               "event %s_%s %d is set and never waited for: the next kernel finds it set",
                               pipe_name(source), pipe_name(target), id);
                    }
                }
            }
        }
    }

    // ---- counters ----

    struct CoreCounts {
        uint32_t ub_bytes = 0;
        bool vector_core = false;
        PipeCounts pipes[pipe_count];
    };

    const std::vector<CoreCounts>& cores() const { return cores_; }

    static std::vector<NamedCounts>& named()
    {
        static std::vector<NamedCounts> table;
        return table;
    }

    static int name_id(const char* name)
    {
        std::vector<NamedCounts>& table = named();
        for (size_t i = 0; i < table.size(); ++i) {
            if (std::strcmp(table[i].name, name) == 0) {
                return static_cast<int>(i);
            }
        }
        table.push_back(NamedCounts{name, PipeCounts{}});
        return static_cast<int>(table.size()) - 1;
    }

    void count(Pipe pipe, const PipeCounts& counts)
    {
        cores_[core].pipes[pipe].add(counts);
        if (api != counted_name_) {
            counted_name_ = api;
            counted_id_ = name_id(api);
        }
        named()[counted_id_].counts.add(counts);
    }

    // ---- order ----

    /// Start an instruction on a pipe and return its number. The scalar unit issues it, so it knows what S knows.
    uint32_t issue(Pipe pipe)
    {
        learn(pipe, known_[pipe_s]);
        known_[pipe][pipe_s] = std::max(known_[pipe][pipe_s], now_[pipe_s]);
        return ++now_[pipe];
    }

    /// Return whether the instruction that `pipe` runs now sees the effect of instruction `tick` of `earlier`. V and S
    /// finish in order (the compiler orders V); two copies of one MTE pipe may overlap without a barrier.
    bool ordered(int pipe, int earlier, uint32_t tick) const
    {
        return (pipe == earlier && pipe <= pipe_v) || known_[pipe][earlier] >= tick;
    }

    void set_flag(int source, int target, int id, Where at, bool queue)
    {
        check_event(source, target, id);
        Flag& flag = flags_[source][target][id];
        if (flag.set) {
            reject(Rule::flag_twice, "event %s_%s %d is set already (line %d) and nothing has waited for it",
                   pipe_name(source), pipe_name(target), id, flag.where.line);
        }
        flag.set = true;
        flag.queue = queue;
        flag.where = at;
        learn(source, known_[pipe_s]);
        std::memcpy(flag.known, known_[source], sizeof(flag.known));
        flag.known[source] = now_[source];
        flag.known[pipe_s] = std::max(flag.known[pipe_s], now_[pipe_s]);
    }

    void wait_flag(int source, int target, int id)
    {
        check_event(source, target, id);
        Flag& flag = flags_[source][target][id];
        if (!flag.set) {
            reject(Rule::flag_unset, "waits for event %s_%s %d, which nothing has set: the core would hang",
                   pipe_name(source), pipe_name(target), id);
        }
        flag.set = false;
        learn(target, flag.known);
        learn(target, known_[pipe_s]);
    }

    /// PipeBarrier: everything on the pipe has finished before its next instruction.
    void barrier(int pipe) { known_[pipe][pipe] = now_[pipe]; }

    /// PipeBarrier<PIPE_ALL>: everything on every pipe has finished before any next instruction.
    void barrier_all()
    {
        for (auto& known : known_) {
            std::memcpy(known, now_, sizeof(now_));
        }
    }

    // ---- the unified buffer ----

    void read_block(Pipe pipe, uint32_t tick, uint32_t block, uint32_t need, const char* operand)
    {
        BlockShadow& shadow = shadow_[block];
        if ((shadow.written & need) != need) {
            // A copy out moves whole blocks, so its last block may hold more bytes than the kernel has results.
            if (pipe == pipe_mte3 && (shadow.written & need) != 0) {
                note_padding();
            } else {
                unwritten(block, need & ~shadow.written, operand);
            }
        }
        if (!ordered(pipe, shadow.write_pipe, shadow.write_tick)) {
            hazard(Rule::read_after_write, pipe, shadow.write_pipe, block, shadow.write_line, operand,
                   "reads", "is being written by");
        }
        shadow.read_tick[pipe] = tick;
        shadow.read_line[pipe] = where.line;
    }

    void write_block(Pipe pipe, uint32_t tick, uint32_t block, uint32_t mask, const char* operand)
    {
        BlockShadow& shadow = shadow_[block];
        bool free = true;
        for (int reader = pipe_v; reader <= pipe_mte3; ++reader) {
            if (reader != pipe && known_[pipe][reader] < shadow.read_tick[reader]) {
                hazard(Rule::write_after_read, pipe, reader, block, shadow.read_line[reader], operand,
                       "writes", "is being read by");
                free = false;
            }
        }
        if (free && !ordered(pipe, shadow.write_pipe, shadow.write_tick)) {
            hazard(Rule::write_after_write, pipe, shadow.write_pipe, block, shadow.write_line, operand,
                   "writes", "is being written by");
        }
        shadow.written |= mask;
        shadow.write_tick = tick;
        shadow.write_pipe = pipe;
        shadow.write_line = where.line;
    }

    /// Record that one pipe reads, or writes, bytes [address, address + bytes) of the unified buffer.
    void read_bytes(Pipe pipe, uint32_t tick, uint32_t address, uint32_t bytes, const char* operand)
    {
        for_blocks(address, bytes,
                   [&](uint32_t block, uint32_t mask) { read_block(pipe, tick, block, mask, operand); });
    }

    void write_bytes(Pipe pipe, uint32_t tick, uint32_t address, uint32_t bytes, const char* operand)
    {
        for_blocks(address, bytes,
                   [&](uint32_t block, uint32_t mask) { write_block(pipe, tick, block, mask, operand); });
    }

    /// Mark bytes as unwritten again: a padded copy leaves values there that no kernel may rely on.
    void forget_bytes(uint32_t address, uint32_t bytes)
    {
        for_blocks(address, bytes, [&](uint32_t block, uint32_t mask) { shadow_[block].written &= ~mask; });
        std::memset(ub + address, 0xa5, bytes);
    }

    /// Record a scalar access. The compiler (--cce-auto-sync, its default) orders S against every other pipe in both
    /// directions, so S waits here where another pipe would break a rule.
    void scalar_access(uint32_t address, uint32_t bytes, bool write)
    {
        const uint32_t tick = ++now_[pipe_s];
        for_blocks(address, bytes, [&](uint32_t block, uint32_t mask) {
            BlockShadow& shadow = shadow_[block];
            wait_scalar(shadow.write_pipe, shadow.write_tick);
            if (write) {
                for (int reader = pipe_v; reader <= pipe_mte3; ++reader) {
                    wait_scalar(reader, shadow.read_tick[reader]);
                }
                shadow.written |= mask;
                shadow.write_tick = tick;
                shadow.write_pipe = pipe_s;
                shadow.write_line = where.line;
            } else if ((shadow.written & mask) != mask) {
                unwritten(block, mask & ~shadow.written, "the tensor");
            }
        });
        count(pipe_s, {1});
    }

    // ---- global memory ----

    /// Return the argument that holds bytes of a GlobalTensor, whose declared size is `declared`.
    Region& gm_range(const uint8_t* base, uint64_t declared, uint64_t offset, uint64_t bytes, const char* operand)
    {
        const auto region = std::find_if(regions.begin(), regions.end(), [base](const Region& one) {
            return one.base != nullptr && base >= one.base && base <= one.base + one.padded;
        });
        if (base == nullptr) {
            stop(Rule::gm_bounds, "%s has no address: SetGlobalBuffer was not called, or the argument is None",
                 operand);
        }
        if (region == regions.end()) {
            stop(Rule::gm_bounds, "%s starts outside every argument of the kernel", operand);
        }
        const uint64_t start = static_cast<uint64_t>(base - region->base) + offset;
        if (offset + bytes > declared || offset > declared) {
            reject(Rule::gm_tensor_bounds,
                   "%s: bytes [%llu, %llu) of a GlobalTensor that SetGlobalBuffer gave %llu bytes", operand,
                   static_cast<unsigned long long>(offset), static_cast<unsigned long long>(offset + bytes),
                   static_cast<unsigned long long>(declared));
        }
        if (start > region->padded || bytes > region->padded - start) {
            stop(Rule::gm_bounds, "%s: bytes [%llu, %llu) of argument %d, which has %llu", operand,
                 static_cast<unsigned long long>(start), static_cast<unsigned long long>(start + bytes),
                 region->argument, static_cast<unsigned long long>(region->bytes));
        }
        return *region;
    }

    void gm_read(Pipe pipe, uint32_t tick, Region& region, uint64_t start, uint64_t bytes, const char* operand)
    {
        if (!region.writable || bytes == 0) {
            return;
        }
        const uint64_t end = std::min(start + bytes, region.bytes);
        // One bad byte tells enough: the first one is reported.
        for (uint64_t i = start; i < end; ++i) {
            const uint8_t owner = region.owner[i];
            if (owner == gm_initial || owner == core) {
                continue;
            }
            if (owner == gm_unwritten) {
                reject(Rule::gm_unwritten, "%s: byte %llu of argument %d was never written", operand,
                       static_cast<unsigned long long>(i), region.argument);
            } else if (!region.shared) {
                reject(Rule::gm_two_cores, "%s: core %d reads byte %llu of argument %d, which core %d writes", operand,
                       core, static_cast<unsigned long long>(i), region.argument, owner);
            }
            break;
        }
        for_blocks(start, end - start, [&](uint32_t block, uint32_t mask) {
            GmShadow& shadow = region.shadow[block];
            if (shadow.core != core) {
                shadow = GmShadow{0, 0, 0, 0, core}; // what another core did is the business of `owner`
            }
            if ((shadow.write_mask & mask) != 0 && pipe != pipe_s && !ordered(pipe, pipe_mte3, shadow.write_tick)) {
                reject(Rule::gm_order,
                       "%s: %s reads bytes of argument %d that MTE3 writes (line %d) with no barrier or event between",
                       operand, pipe_name(pipe), region.argument, shadow.write_line);
            }
            shadow.read_tick = pipe == pipe_mte2 ? tick : shadow.read_tick;
        });
    }

    void gm_write(Pipe pipe, uint32_t tick, Region& region, uint64_t start, uint64_t bytes, const char* operand)
    {
        if (bytes == 0) {
            return;
        }
        if (!region.writable) {
            reject(Rule::gm_read_only, "%s: writes argument %d, which is not in launch()'s outputs", operand,
                   region.argument);
        }
        const bool adds = atomic != atomic_none && pipe == pipe_mte3;
        const uint64_t end = std::min(start + bytes, region.bytes);
        for (uint64_t i = start; i < end; ++i) {
            uint8_t& owner = region.owner[i];
            if (owner < gm_initial && owner != core && !adds && !region.shared) {
                reject(Rule::gm_two_cores, "%s: core %d writes byte %llu of argument %d, which core %d wrote", operand,
                       core, static_cast<unsigned long long>(i), region.argument, owner);
            }
            if (adds && owner == gm_unwritten) {
                reject(Rule::gm_unwritten, "%s: adds to byte %llu of argument %d, which was never written", operand,
                       static_cast<unsigned long long>(i), region.argument);
            }
            owner = adds && owner != core ? owner : static_cast<uint8_t>(core);
        }
        for_blocks(start, end - start, [&](uint32_t block, uint32_t mask) {
            GmShadow& shadow = region.shadow[block];
            if (shadow.core != core) {
                shadow = GmShadow{0, 0, 0, 0, core};
            }
            const bool after = ordered(pipe, pipe_mte3, shadow.write_tick);
            if (!after && (shadow.write_mask & mask) != 0 && !adds && pipe == pipe_mte3) {
                reject(Rule::gm_order, "%s: writes bytes of argument %d again (line %d) without PipeBarrier<PIPE_MTE3>",
                       operand, region.argument, shadow.write_line);
            }
            if (pipe == pipe_mte3 && !ordered(pipe, pipe_mte2, shadow.read_tick)) {
                reject(Rule::gm_order, "%s: writes bytes of argument %d that MTE2 is reading", operand,
                       region.argument);
            }
            shadow.write_mask = after ? mask : shadow.write_mask | mask;
            shadow.write_tick = tick;
            shadow.write_line = where.line;
        });
    }

    /// Record a scalar access to global memory; the compiler orders it like one to the unified buffer.
    void gm_scalar(Region& region, uint64_t start, uint64_t bytes, bool write)
    {
        const uint32_t tick = ++now_[pipe_s];
        if (write) {
            gm_write(pipe_s, tick, region, start, bytes, "the tensor");
        } else {
            gm_read(pipe_s, tick, region, start, bytes, "the tensor");
        }
        count(pipe_s, {1});
    }

private:
    static constexpr uint32_t guard_bytes = 4096;

    /// Call visit(block, mask of its bytes) for every 32-byte block that bytes [start, start + bytes) touch.
    template <typename F>
    static void for_blocks(uint64_t start, uint64_t bytes, F visit)
    {
        const uint64_t end = start + bytes;
        for (uint64_t block = start / block_bytes; block * block_bytes < end; ++block) {
            const uint64_t first = block * block_bytes;
            const uint32_t from = start > first ? static_cast<uint32_t>(start - first) : 0;
            const uint32_t to = static_cast<uint32_t>(std::min<uint64_t>(end - first, block_bytes));
            visit(static_cast<uint32_t>(block), byte_mask(from, to));
        }
    }

    Violation violation_of(Rule rule, const char* format, va_list arguments) const
    {
        char text[1024];
        std::vsnprintf(text, sizeof(text), format, arguments);
        return {rule, std::string(api) + ": " + text, where.file, where.line, core};
    }

    /// Add to what a pipe knows to be finished.
    void learn(int pipe, const uint32_t* known)
    {
        uint32_t* mine = known_[pipe];
        for (int i = 0; i < pipe_count; ++i) {
            mine[i] = std::max(mine[i], known[i]);
        }
    }

    void wait_scalar(int pipe, uint32_t tick)
    {
        if (pipe == pipe_s || known_[pipe_s][pipe] >= tick) {
            return;
        }
        learn(pipe_s, known_[pipe]);
        known_[pipe_s][pipe] = now_[pipe];
    }

    void check_event(int source, int target, int id)
    {
        if (id < 0 || id >= max_events) {
            stop(Rule::event_range, "event id %d of %s_%s; ids are 0 to %d", id, pipe_name(source), pipe_name(target),
                 max_events - 1);
        }
    }

    [[gnu::cold, gnu::noinline]] void note_padding()
    {
        note("line " + std::to_string(where.line) + ": " + api +
             " copies out bytes that were never written, in a block that was written in part");
    }

    [[gnu::cold, gnu::noinline]] void unwritten(uint32_t block, uint32_t missing, const char* operand)
    {
        reject(Rule::unwritten, "%s: byte %u of the unified buffer is read and was never written", operand,
               block * block_bytes + static_cast<uint32_t>(__builtin_ctz(missing)));
        shadow_[block].written |= missing;
    }

    [[gnu::cold, gnu::noinline]] void hazard(Rule rule, int pipe, int other, uint32_t block, int line,
                                             const char* operand, const char* does, const char* other_does)
    {
        reject(rule, "%s: %s %s bytes [%u, %u) of the unified buffer, which %s %s (line %d); %s", operand,
               pipe_name(pipe), does, block * block_bytes, (block + 1) * block_bytes, other_does, pipe_name(other),
               line,
               pipe == other ? "copies of one pipe that overlap need a PipeBarrier between them"
                             : "no event or barrier orders the two");
    }

    std::vector<CoreCounts> cores_;
    const char* counted_name_ = nullptr;
    int counted_id_ = 0;
};

inline Machine machine;

}  // namespace neonext_twin
