// The way in from Python: one C function that runs a kernel on all its cores, and its result as JSON.
#pragma once

#include "system.h"

namespace neonext_twin {

struct LaunchArgument {
    uint8_t* data;
    uint64_t bytes;
    uint64_t padded;
    int32_t writable;
    int32_t initialised;
    int32_t shared;
};

inline void append_string(std::string& out, const std::string& text)
{
    out += '"';
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            char escaped[8];
            std::snprintf(escaped, sizeof(escaped), "\\u%04x", c);
            out += escaped;
        } else {
            out += c;
        }
    }
    out += '"';
}

inline void append_number(std::string& out, const char* name, uint64_t value, bool first = false)
{
    out += first ? "\"" : ", \"";
    out += name;
    out += "\": " + std::to_string(value);
}

inline void append_refusal(std::string& out, const Refusal& refusal)
{
    out += "{\"rule\": ";
    append_string(out, rule_of(refusal.rule).id);
    out += ", \"text\": ";
    append_string(out, refusal.text);
    out += ", \"file\": ";
    append_string(out, refusal.file);
    append_number(out, "line", static_cast<uint64_t>(refusal.line));
    append_number(out, "core", static_cast<uint64_t>(refusal.core));
    out += "}";
}

inline void append_pipe(std::string& out, int pipe, const PipeCounts& counts)
{
    out += '{';
    append_number(out, "instructions", counts.instructions, true);
    if (pipe == pipe_v) {
        append_number(out, "repeats", counts.repeats);
        append_number(out, "elements", counts.elements);
        append_number(out, "macs", counts.macs);
    } else if (pipe != pipe_s) {
        append_number(out, "bursts", counts.bursts);
        append_number(out, "bytes", counts.bytes);
    }
    out += '}';
}

inline void append_pipes(std::string& out, const PipeCounts* pipes)
{
    constexpr int shown[] = {pipe_v, pipe_mte2, pipe_mte3, pipe_s};
    out += '{';
    for (const int pipe : shown) {
        out += pipe == pipe_v ? "\"" : ", \"";
        out += pipe_name(pipe);
        out += "\": ";
        append_pipe(out, pipe, pipes[pipe]);
    }
    out += '}';
}

inline std::string counts_json()
{
    std::string out = "{\"soc\": ";
    append_string(out, machine.soc);
    append_number(out, "arch", __NPU_ARCH__);
    append_number(out, "blocks", static_cast<uint64_t>(machine.blocks));
    out += ", \"not_a_device\": true, \"cores\": [";
    PipeCounts totals[pipe_count];
    for (size_t i = 0; i < machine.cores().size(); ++i) {
        const Machine::CoreCounts& core = machine.cores()[i];
        out += i == 0 ? "{" : ", {";
        append_number(out, "core", i, true);
        append_number(out, "ub_bytes", core.ub_bytes);
        out += ", \"pipes\": ";
        append_pipes(out, core.pipes);
        out += '}';
        for (int pipe = 0; pipe < pipe_count; ++pipe) {
            totals[pipe].add(core.pipes[pipe]);
        }
    }
    out += "], \"totals\": ";
    append_pipes(out, totals);
    out += ", \"by_instruction\": {";
    bool first = true;
    for (const NamedCounts& entry : Machine::named()) {
        if (entry.counts.instructions == 0) {
            continue;
        }
        out += first ? "" : ", ";
        first = false;
        append_string(out, entry.name);
        out += ": {";
        append_number(out, "instructions", entry.counts.instructions, true);
        append_number(out, "repeats", entry.counts.repeats);
        append_number(out, "elements", entry.counts.elements);
        append_number(out, "bytes", entry.counts.bytes);
        out += '}';
    }
    out += "}, \"hazards\": [";
    for (size_t i = 0; i < machine.hazards.size(); ++i) {
        out += i == 0 ? "" : ", ";
        append_refusal(out, machine.hazards[i]);
    }
    out += "], \"notes\": [";
    for (size_t i = 0; i < machine.notes.size(); ++i) {
        out += i == 0 ? "" : ", ";
        append_string(out, machine.notes[i]);
    }
    return out + "]}";
}

template <size_t... I>
inline void call_entry(void* entry, uint8_t* const* arguments, std::index_sequence<I...>)
{
    reinterpret_cast<void (*)(decltype(static_cast<void>(I), static_cast<uint8_t*>(nullptr))...)>(entry)(
        arguments[I]...);
}

template <size_t... N>
inline void call_entry(void* entry, uint8_t* const* arguments, size_t count, std::index_sequence<N...>)
{
    (void)((count == N && (call_entry(entry, arguments, std::make_index_sequence<N>()), true)) || ...);
}

constexpr size_t most_arguments = 24;

inline std::string result;

inline int launch(void* entry, const char* soc, uint32_t ub_bytes, int blocks, uint64_t tiling_key, int report_hazards,
                  const LaunchArgument* arguments, int count)
{
    machine.soc = soc;
    machine.blocks = blocks;
    machine.tiling_key = tiling_key;
    machine.report_hazards = report_hazards != 0;
    machine.regions.clear();
    uint8_t* addresses[most_arguments] = {};
    for (int i = 0; i < count; ++i) {
        const LaunchArgument& argument = arguments[i];
        Region region;
        region.base = argument.data;
        region.bytes = argument.bytes;
        region.padded = argument.padded;
        region.argument = i;
        region.writable = argument.writable != 0;
        region.shared = argument.shared != 0;
        if (region.writable) {
            region.owner.assign(argument.bytes, argument.initialised != 0 ? gm_initial : gm_unwritten);
            region.shadow.assign((argument.padded + block_bytes - 1) / block_bytes, GmShadow{});
        }
        addresses[i] = argument.data;
        machine.regions.push_back(std::move(region));
    }
    machine.start_launch(ub_bytes);
    try {
        for (int core = 0; core < blocks; ++core) {
            machine.start_core(core);
            call_entry(entry, addresses, static_cast<size_t>(count), std::make_index_sequence<most_arguments + 1>());
            machine.end_core();
        }
    } catch (const Refusal& refusal) {
        result.clear();
        append_refusal(result, refusal);
        return 1;
    }
    result = counts_json();
    return 0;
}

}  // namespace neonext_twin

#define NEONEXT_TWIN_EXPORT extern "C" __attribute__((visibility("default"), used)) inline

NEONEXT_TWIN_EXPORT int neonext_twin_launch(void* entry, const char* soc, uint32_t ub_bytes, int blocks,
                                            uint64_t tiling_key, int report_hazards,
                                            const neonext_twin::LaunchArgument* arguments, int count)
{
    return neonext_twin::launch(entry, soc, ub_bytes, blocks, tiling_key, report_hazards, arguments, count);
}

NEONEXT_TWIN_EXPORT const char* neonext_twin_result()
{
    return neonext_twin::result.c_str();
}
