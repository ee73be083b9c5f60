// The entry point for Python: one C function that runs a kernel on all its cores, and its result as JSON.
#pragma once

#include <cerrno>
#include <csignal>
#include <tuple>

#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "system.h"

namespace neonext_twin {

struct LaunchArgument {
    uint8_t* data;
    uint64_t bytes;
    uint64_t padded;
    int32_t writable;
    int32_t initialised;
    int32_t shared;
    int32_t by_value;
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

inline void append_violation(std::string& out, const Violation& violation)
{
    out += "{\"rule\": ";
    append_string(out, rule_of(violation.rule).id);
    out += ", \"text\": ";
    append_string(out, violation.text);
    out += ", \"file\": ";
    append_string(out, violation.file);
    append_number(out, "line", static_cast<uint64_t>(violation.line));
    append_number(out, "core", static_cast<uint64_t>(violation.core));
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
        out += std::string(", \"vector_core\": ") + (core.vector_core ? "true" : "false");
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
        append_violation(out, machine.hazards[i]);
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

/// Return a parameter's kind and size as Python reads them: p for a pointer, b, i, u or f for numbers, s for a struct.
template <typename T>
inline std::string parameter_kind()
{
    if constexpr (std::is_pointer_v<T>) {
        return "p8 ";
    } else {
        const char* kind = std::is_same_v<T, bool>                                  ? "b"
                           : std::is_floating_point_v<T> || std::is_same_v<T, half> ? "f"
                           : std::is_enum_v<T> || std::is_signed_v<T>               ? "i"
                           : std::is_unsigned_v<T>                                  ? "u"
                                                                                    : "s";
        return kind + std::to_string(sizeof(T)) + " ";
    }
}

template <typename T>
inline T parameter_value(uint8_t* data)
{
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(data);
    } else {
        T value;
        std::memcpy(static_cast<void*>(&value), data, sizeof(T));
        return value;
    }
}

template <typename... P>
inline std::string parameters_of(void (*)(P...))
{
    return (std::string() + ... + parameter_kind<std::decay_t<P>>());
}

template <typename... P, size_t... I>
inline void call_typed(void (*entry)(P...), uint8_t* const* values, std::index_sequence<I...>)
{
    std::tuple<std::decay_t<P>...> arguments{parameter_value<std::decay_t<P>>(values[I])...};
    entry(static_cast<P>(std::get<I>(arguments))...);
}

template <typename... P>
inline void call_typed(void (*entry)(P...), uint8_t* const* values)
{
    call_typed(entry, values, std::index_sequence_for<P...>());
}

constexpr size_t most_arguments = 24;

inline std::string result;

struct LaunchSettings {
    void* entry;
    const char* soc;
    uint32_t ub_bytes;
    int32_t blocks;
    uint64_t tiling_key;
    int32_t report_hazards;
    int32_t typed;
    int32_t ai_cores;
    int32_t cores;
    double seconds;
};

inline int launch(const LaunchSettings& settings, const LaunchArgument* arguments, int count)
{
    const int blocks = settings.blocks;
    machine.soc = settings.soc;
    machine.blocks = blocks;
    machine.ai_cores = settings.ai_cores;
    machine.vector_units = settings.cores;
    machine.tiling_key = settings.tiling_key;
    machine.report_hazards = settings.report_hazards != 0;
    machine.regions.clear();
    uint8_t* addresses[most_arguments] = {};
    for (int i = 0; i < count; ++i) {
        const LaunchArgument& argument = arguments[i];
        addresses[i] = argument.data;
        if (argument.by_value != 0) {
            continue;
        }
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
        machine.regions.push_back(std::move(region));
    }
    machine.start_launch(settings.ub_bytes);
    try {
        cores.run(blocks, [&] {
            if (settings.typed != 0) {
                reinterpret_cast<void (*)(uint8_t* const*)>(settings.entry)(addresses);
            } else {
                call_entry(settings.entry, addresses, static_cast<size_t>(count),
                           std::make_index_sequence<most_arguments + 1>());
            }
        });
    } catch (const Violation& violation) {
        result.clear();
        append_violation(result, violation);
        return 1;
    }
    result = counts_json();
    return 0;
}

// ---- in a process of its own: a kernel that crashes must not take Python with it ----

inline int child_pipe = -1;

inline void send_result(char status)
{
    const std::string text = status + result;
    for (size_t sent = 0; sent < text.size();) {
        const ssize_t done = ::write(child_pipe, text.data() + sent, text.size() - sent);
        if (done <= 0) {
            return;
        }
        sent += static_cast<size_t>(done);
    }
}

/// Report where the child was when it crashed or its time was over, and end it.
inline void dying(int signal)
{
    // The kernel may have ruined the memory that this report needs, so an alarm ends the process in any case.
    ::signal(SIGALRM, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::alarm(2);
    const bool late = signal == SIGALRM;
    Violation violation{late ? Rule::time_out : Rule::crash, "", machine.where.file, machine.where.line, machine.core};
    const char* name = signal == SIGFPE ? "division by zero" : signal == SIGABRT ? "abort" : "access outside of memory";
    violation.text = late ? "the kernel did not end within its time" : std::string("the kernel crashed: ") + name;
    violation.text += violation.line == 0 ? std::string(", before its first call")
                                      : std::string(", in or after ") + machine.api + " in this line";
    result.clear();
    append_violation(result, violation);
    send_result('1');
    ::_exit(1);
}

[[noreturn]] inline void run_child(const LaunchSettings& settings, const LaunchArgument* arguments, int count)
{
#ifdef __linux__
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    // The handler has a stack of its own, because the kernel may have used up the other one.
    static char handler_stack[1 << 16];
    stack_t stack{};
    stack.ss_sp = handler_stack;
    stack.ss_size = sizeof(handler_stack);
    ::sigaltstack(&stack, nullptr);
    struct sigaction action{};
    action.sa_handler = dying;
    action.sa_flags = SA_ONSTACK;
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM}) {
        ::sigaction(signal, &action, nullptr);
    }
    ::signal(SIGINT, SIG_DFL);
    ::signal(SIGTERM, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    itimerval limit{};
    limit.it_value.tv_sec = static_cast<time_t>(settings.seconds);
    limit.it_value.tv_usec =
        static_cast<suseconds_t>((settings.seconds - static_cast<double>(limit.it_value.tv_sec)) * 1e6);
    ::setitimer(ITIMER_REAL, &limit, nullptr);
    const int failed = launch(settings, arguments, count);
    send_result(failed != 0 ? '1' : '0');
    ::_exit(0);
}

/// Run the kernel in a forked child, whose arguments lie in shared memory. Return -1 if the system makes no child.
inline int launch_isolated(const LaunchSettings& settings, const LaunchArgument* arguments, int count)
{
    int ends[2];
    if (::pipe(ends) != 0) {
        return -1;
    }
    const pid_t child = ::fork();
    if (child == 0) {
        ::close(ends[0]);
        child_pipe = ends[1];
        run_child(settings, arguments, count);
    }
    ::close(ends[1]);
    std::string answer;
    char part[4096];
    ssize_t got = 0;
    while (child > 0 && ((got = ::read(ends[0], part, sizeof(part))) > 0 || (got < 0 && errno == EINTR))) {
        answer.append(part, got > 0 ? static_cast<size_t>(got) : 0);
    }
    ::close(ends[0]);
    if (child < 0) {
        return -1;
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    result.clear();
    if (answer.empty() || answer.back() != '}') {
        const std::string how = WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                                    : "exit code " + std::to_string(WEXITSTATUS(status));
        append_violation(result, Violation{Rule::crash, "the kernel's process ended with " + how, "", 0, 0});
        return 1;
    }
    result = answer.substr(1);
    return answer[0] == '0' ? 0 : 1;
}

}  // namespace neonext_twin

#define NEONEXT_TWIN_EXPORT extern "C" __attribute__((visibility("default"), used)) inline

NEONEXT_TWIN_EXPORT int neonext_twin_launch(const neonext_twin::LaunchSettings* settings,
                                            const neonext_twin::LaunchArgument* arguments, int count)
{
    return settings->seconds > 0 ? neonext_twin::launch_isolated(*settings, arguments, count)
                                 : neonext_twin::launch(*settings, arguments, count);
}

NEONEXT_TWIN_EXPORT const char* neonext_twin_result()
{
    return neonext_twin::result.c_str();
}

// An entry point that knows its parameters' types; Python appends it to the kernel's source.
#define NEONEXT_TWIN_ENTRY(...)                                                        \
    NEONEXT_TWIN_EXPORT const char* neonext_twin_parameters()                          \
    {                                                                                  \
        static const std::string parameters = neonext_twin::parameters_of(&__VA_ARGS__); \
        return parameters.c_str();                                                     \
    }                                                                                  \
    NEONEXT_TWIN_EXPORT void neonext_twin_entry(uint8_t* const* values)                \
    {                                                                                  \
        neonext_twin::call_typed(&__VA_ARGS__, values);                                \
    }
