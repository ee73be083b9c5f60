// The state of one launch: memory and its shadows, the pipes' clocks, the counters, and refusals.
//
// Order of two instructions is decided by vector clocks. known_[p][q] is the number of the last instruction of pipe q
// that is certain to have finished before the next one of pipe p starts. Set/WaitFlag and barriers carry that knowledge
// from pipe to pipe, and nothing else does.
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

/// The line of the kernel that called: a default argument of every public function.
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

/// What a copy to global memory does with what is there.
enum Atomic : uint8_t { atomic_none, atomic_add, atomic_max, atomic_min };

struct Refusal {
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

/// Shadow of 32 bytes of the unified buffer.
struct BlockShadow {
    uint32_t written = 0;
    uint32_t write_tick = 0;
    int32_t write_line = 0;
    uint32_t write_pipe = pipe_v;
    uint32_t read_tick[4] = {0, 0, 0, 0};
    int32_t read_line[4] = {0, 0, 0, 0};
};

/// Shadow of 32 bytes of a writable argument in global memory. The byte mask tells writes of neighbours apart.
struct GmShadow {
    uint32_t write_tick = 0;
    uint32_t write_mask = 0;
    uint32_t read_tick = 0;
    int32_t write_line = 0;
};

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

/// Bytes [from, to) of a 32-byte block as a mask.
inline uint32_t byte_mask(uint32_t from, uint32_t to)
{
    const uint64_t upper = (uint64_t{1} << to) - 1;
    return static_cast<uint32_t>(upper & ~((uint64_t{1} << from) - 1));
}

class Machine {
public:
    // Launch configuration.
    std::string soc;
    uint32_t ub_bytes = 0;
    int blocks = 1;
    uint64_t tiling_key = 0;
    bool report_hazards = false;

    // The running core.
    int core = 0;
    uint8_t* ub = nullptr;
    const char* api = "";
    Where where;
    uint32_t ub_end = 0;
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
    uint64_t reserved_count = 0;
    uint64_t control = 0;
    float reduce_value = 0;
    uint32_t reduce_index = 0;
    float reduce_sum = 0;

    std::vector<Region> regions;
    std::vector<Refusal> hazards;
    std::vector<std::string> notes;

    /// Starts a public function: refusals from here on name it and its caller.
    void enter(const char* name, Where at)
    {
        api = name;
        if (at.line != 0) {
            where = at;
        }
    }

    [[gnu::format(printf, 3, 4), gnu::cold, gnu::noinline]] void refuse(Rule rule, const char* format, ...)
    {
        char text[1024];
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(text, sizeof(text), format, arguments);
        va_end(arguments);
        Refusal refusal{rule, std::string(api) + ": " + text, where.file, where.line, core};
        if (!report_hazards || !rule_of(rule).hazard) {
            throw refusal;
        }
        for (const Refusal& known : hazards) {
            if (known.rule == rule && known.line == refusal.line && known.file == refusal.file) {
                return;
            }
        }
        hazards.push_back(std::move(refusal));
    }

    /// Something that whoever reads the counts must know, once.
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
        storage_.assign(ub_bytes + 2 * guard_bytes, 0);
        const uintptr_t start = reinterpret_cast<uintptr_t>(storage_.data());
        ub = reinterpret_cast<uint8_t*>((start + guard_bytes) / guard_bytes * guard_bytes);
        hazards.clear();
        notes.clear();
        cores_.assign(blocks, CoreCounts{});
        for (NamedCounts& entry : named()) {
            entry.counts = PipeCounts{};
        }
        std::memset(known_, 0, sizeof(known_));
        std::memset(now_, 0, sizeof(now_));
    }

    void start_core(int index)
    {
        core = index;
        counts_ = &cores_[index];
        // What the buffer holds at the start is whatever the kernel before it left there.
        std::memset(ub, 0xff, ub_bytes);
        shadow_.assign((ub_bytes + block_bytes - 1) / block_bytes, BlockShadow{});
        for (auto& source : flags_) {
            for (auto& target : source) {
                for (Flag& flag : target) {
                    flag = Flag{};
                }
            }
        }
        ub_end = ub_peak = 0;
        ++pool_epoch;
        mask_low = mask_high = ~uint64_t{0};
        mask_counter = false;
        atomic = atomic_none;
        pad_value_set = false;
        api = "";
        where = Where{};
        finish_everything();
    }

    void end_core()
    {
        cores_[core].ub_bytes = ub_peak;
        for (int source = 0; source < pipe_count; ++source) {
            for (int target = 0; target < pipe_count; ++target) {
                for (int id = 0; id < max_events; ++id) {
                    const Flag& flag = flags_[source][target][id];
                    if (flag.set && !flag.queue) {
                        enter("SetFlag", flag.where);
                        refuse(Rule::flag_left,
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
        counts_->pipes[pipe].add(counts);
        if (api != counted_name_) {
            counted_name_ = api;
            counted_id_ = name_id(api);
        }
        named()[counted_id_].counts.add(counts);
    }

    // ---- order ----

    static constexpr int max_events = 8;

    /// Starts an instruction on a pipe. Every instruction is sent out by the scalar unit, so it knows what S knows.
    uint32_t issue(Pipe pipe)
    {
        learn(pipe, known_[pipe_s]);
        known_[pipe][pipe_s] = std::max(known_[pipe][pipe_s], now_[pipe_s]);
        return ++now_[pipe];
    }

    /// Whether what instruction `tick` of `earlier` did is visible to the instruction that `pipe` runs now. V and S
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
            refuse(Rule::flag_twice, "event %s_%s %d is set already (line %d) and nothing has waited for it",
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
            refuse(Rule::flag_unset, "waits for event %s_%s %d, which nothing has set: the core would hang",
                   pipe_name(source), pipe_name(target), id);
        }
        flag.set = false;
        learn(target, flag.known);
        learn(target, known_[pipe_s]);
    }

    /// PipeBarrier: everything on the pipe has finished before its next instruction.
    void barrier(int pipe) { known_[pipe][pipe] = now_[pipe]; }

    void barrier_all() { finish_everything(); }

    // ---- the unified buffer ----

    void read_block(Pipe pipe, uint32_t tick, uint32_t block, uint32_t need, const char* operand)
    {
        BlockShadow& shadow = shadow_[block];
        if ((shadow.written & need) != need) {
            // Copies out are whole blocks: the last one may have more bytes than the kernel has to give.
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

    /// Bytes [address, address + bytes) of the unified buffer, read or written by one pipe.
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

    /// Takes back that bytes were written: a padded copy leaves values there that no kernel may rely on.
    void forget_bytes(uint32_t address, uint32_t bytes)
    {
        for_blocks(address, bytes, [&](uint32_t block, uint32_t mask) { shadow_[block].written &= ~mask; });
        std::memset(ub + address, 0xa5, bytes);
    }

    /// A scalar access. The compiler (--cce-auto-sync, its default) orders S against every other pipe in both
    /// directions, so this waits instead of refusing.
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
        PipeCounts counts;
        counts.instructions = 1;
        count(pipe_s, counts);
    }

    // ---- global memory ----

    Region* region_of(const void* pointer)
    {
        const uint8_t* address = static_cast<const uint8_t*>(pointer);
        for (Region& region : regions) {
            if (region.base != nullptr && address >= region.base && address <= region.base + region.padded) {
                return &region;
            }
        }
        return nullptr;
    }

    /// Checks bytes of global memory against the argument that holds them; `declared` bounds the GlobalTensor.
    Region& gm_range(const uint8_t* base, uint64_t declared, uint64_t offset, uint64_t bytes, const char* operand)
    {
        Region* region = region_of(base);
        if (region == nullptr) {
            if (base == nullptr) {
                refuse(Rule::gm_bounds, "%s has no address: SetGlobalBuffer was not called, or the argument is None",
                       operand);
            }
            refuse(Rule::gm_bounds, "%s starts outside of every argument of the kernel", operand);
            throw Refusal{Rule::gm_bounds, "outside of global memory", where.file, where.line, core};
        }
        const uint64_t start = static_cast<uint64_t>(base - region->base) + offset;
        if (offset + bytes > declared || offset > declared) {
            refuse(Rule::gm_tensor_bounds,
                   "%s: bytes [%llu, %llu) of a GlobalTensor that SetGlobalBuffer gave %llu bytes", operand,
                   static_cast<unsigned long long>(offset), static_cast<unsigned long long>(offset + bytes),
                   static_cast<unsigned long long>(declared));
        }
        if (start > region->padded || bytes > region->padded - start) {
            refuse(Rule::gm_bounds, "%s: bytes [%llu, %llu) of argument %d, which has %llu", operand,
                   static_cast<unsigned long long>(start), static_cast<unsigned long long>(start + bytes),
                   region->argument, static_cast<unsigned long long>(region->bytes));
            throw Refusal{Rule::gm_bounds, "outside of global memory", where.file, where.line, core};
        }
        return *region;
    }

    void gm_read(Pipe pipe, uint32_t tick, Region& region, uint64_t start, uint64_t bytes, const char* operand)
    {
        if (!region.writable || bytes == 0) {
            return;
        }
        const uint64_t end = std::min(start + bytes, region.bytes);
        for (uint64_t i = start; i < end; ++i) {
            const uint8_t owner = region.owner[i];
            if (owner == gm_initial || owner == core) {
                continue;
            }
            if (owner == gm_unwritten) {
                refuse(Rule::gm_unwritten, "%s: byte %llu of argument %d was never written", operand,
                       static_cast<unsigned long long>(i), region.argument);
            } else if (!region.shared) {
                refuse(Rule::gm_two_cores, "%s: core %d reads byte %llu of argument %d, which core %d writes", operand,
                       core, static_cast<unsigned long long>(i), region.argument, owner);
            }
            break;
        }
        gm_blocks(start, end, [&](uint64_t block, uint32_t mask) {
            GmShadow& shadow = region.shadow[block];
            if ((shadow.write_mask & mask) != 0 && pipe != pipe_s && !ordered(pipe, pipe_mte3, shadow.write_tick)) {
                refuse(Rule::gm_order,
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
            refuse(Rule::gm_read_only, "%s: writes argument %d, which launch() was not told is an output", operand,
                   region.argument);
        }
        const bool adds = atomic != atomic_none && pipe == pipe_mte3;
        const uint64_t end = std::min(start + bytes, region.bytes);
        for (uint64_t i = start; i < end; ++i) {
            uint8_t& owner = region.owner[i];
            if (owner < gm_initial && owner != core && !adds && !region.shared) {
                refuse(Rule::gm_two_cores, "%s: core %d writes byte %llu of argument %d, which core %d wrote", operand,
                       core, static_cast<unsigned long long>(i), region.argument, owner);
            }
            if (adds && owner == gm_unwritten) {
                refuse(Rule::gm_unwritten, "%s: adds to byte %llu of argument %d, which was never written", operand,
                       static_cast<unsigned long long>(i), region.argument);
            }
            owner = adds && owner != core ? owner : static_cast<uint8_t>(core);
        }
        gm_blocks(start, end, [&](uint64_t block, uint32_t mask) {
            GmShadow& shadow = region.shadow[block];
            const bool after = ordered(pipe, pipe_mte3, shadow.write_tick);
            if (!after && (shadow.write_mask & mask) != 0 && !adds && pipe == pipe_mte3) {
                refuse(Rule::gm_order, "%s: writes bytes of argument %d again (line %d) without PipeBarrier<PIPE_MTE3>",
                       operand, region.argument, shadow.write_line);
            }
            if (pipe == pipe_mte3 && !ordered(pipe, pipe_mte2, shadow.read_tick)) {
                refuse(Rule::gm_order, "%s: writes bytes of argument %d that MTE2 is reading", operand,
                       region.argument);
            }
            shadow.write_mask = after ? mask : shadow.write_mask | mask;
            shadow.write_tick = tick;
            shadow.write_line = where.line;
        });
    }

    /// A scalar access to global memory: ordered against copies by the compiler, like those to the unified buffer.
    void gm_scalar(Region& region, uint64_t start, uint64_t bytes, bool write)
    {
        const uint32_t tick = ++now_[pipe_s];
        if (write) {
            gm_write(pipe_s, tick, region, start, bytes, "the tensor");
        } else {
            gm_read(pipe_s, tick, region, start, bytes, "the tensor");
        }
        PipeCounts counts;
        counts.instructions = 1;
        count(pipe_s, counts);
    }

private:
    static constexpr uint32_t guard_bytes = 4096;

    struct Flag {
        bool set = false;
        bool queue = false;
        Where where;
        uint32_t known[pipe_count] = {};
    };

    template <typename F>
    static void for_blocks(uint32_t address, uint32_t bytes, F visit)
    {
        const uint32_t end = address + bytes;
        for (uint32_t block = address / block_bytes; block * block_bytes < end; ++block) {
            const uint32_t start = block * block_bytes;
            const uint32_t from = address > start ? address - start : 0;
            const uint32_t to = std::min(end - start, block_bytes);
            visit(block, byte_mask(from, to));
        }
    }

    template <typename F>
    static void gm_blocks(uint64_t start, uint64_t end, F visit)
    {
        for (uint64_t block = start / block_bytes; block * block_bytes < end; ++block) {
            const uint64_t first = block * block_bytes;
            const uint32_t from = start > first ? static_cast<uint32_t>(start - first) : 0;
            const uint32_t to = static_cast<uint32_t>(std::min<uint64_t>(end - first, block_bytes));
            visit(block, byte_mask(from, to));
        }
    }

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

    void finish_everything()
    {
        for (auto& known : known_) {
            std::memcpy(known, now_, sizeof(now_));
        }
    }

    void check_event(int source, int target, int id)
    {
        if (id < 0 || id >= max_events) {
            refuse(Rule::event_range, "event id %d of %s_%s; there are 0 to %d", id, pipe_name(source),
                   pipe_name(target), max_events - 1);
            throw Refusal{Rule::event_range, "event id", where.file, where.line, core};
        }
    }

    [[gnu::cold, gnu::noinline]] void note_padding()
    {
        note("line " + std::to_string(where.line) + ": " + api +
             " copies out bytes that were never written, in a block that was written in part");
    }

    [[gnu::cold, gnu::noinline]] void unwritten(uint32_t block, uint32_t missing, const char* operand)
    {
        refuse(Rule::unwritten, "%s: byte %u of the unified buffer is read and was never written", operand,
               block * block_bytes + static_cast<uint32_t>(__builtin_ctz(missing)));
        shadow_[block].written |= missing;
    }

    [[gnu::cold, gnu::noinline]] void hazard(Rule rule, int pipe, int other, uint32_t block, int line,
                                             const char* operand, const char* does, const char* other_does)
    {
        refuse(rule, "%s: %s %s bytes [%u, %u) of the unified buffer, which %s %s (line %d); %s", operand,
               pipe_name(pipe), does, block * block_bytes, (block + 1) * block_bytes, other_does, pipe_name(other),
               line,
               pipe == other ? "copies of one pipe that overlap need a PipeBarrier between them"
                             : "no event or barrier orders the two");
    }

    std::vector<uint8_t> storage_;
    std::vector<BlockShadow> shadow_;
    std::vector<CoreCounts> cores_;
    CoreCounts* counts_ = nullptr;
    const char* counted_name_ = nullptr;
    int counted_id_ = 0;
    uint32_t known_[pipe_count][pipe_count] = {};
    uint32_t now_[pipe_count] = {};
    Flag flags_[pipe_count][pipe_count][max_events];
};

inline Machine machine;

}  // namespace neonext_twin
