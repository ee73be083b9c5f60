// The rules that the simulator checks: the one table of their names and meanings. A page of docs/ is tested against it.
#pragma once

// Name, id and meaning of every rule, and whether it is a hazard: a hazard may still give the right result by luck, so
// hazards="report" only lists these and goes on.
#define NEONEXT_TWIN_RULES(RULE)                                                                                  \
    RULE(gm_bounds, "gm-bounds", "an access outside every argument in global memory", false)                      \
    RULE(gm_tensor_bounds, "gm-tensor-bounds", "an access beyond the size given to SetGlobalBuffer", true)        \
    RULE(gm_read_only, "gm-read-only", "a write to an argument that is not declared as an output", false)         \
    RULE(gm_unwritten, "gm-unwritten", "global memory read before anything was written there", false)             \
    RULE(gm_two_cores, "gm-two-cores", "two cores write the same byte, or one reads what another writes", false)  \
    RULE(gm_order, "gm-order", "copies through the same global memory with nothing that orders them", true)       \
    RULE(ub_bounds, "ub-bounds", "an access outside a local tensor", false)                                       \
    RULE(ub_overrun, "ub-overrun", "more unified buffer than the device has", false)                              \
    RULE(ub_reserved, "ub-reserved", "buffers where a called function keeps its scratch (the last 8 KiB)", false) \
    RULE(too_many_buffers, "too-many-buffers", "more than 64 buffers in one TPipe", false)                        \
    RULE(unwritten, "unwritten", "a buffer or register read before anything was written there", true)             \
    RULE(alignment, "alignment", "an address that is not aligned as the instruction needs", false)                \
    RULE(length, "length", "a copy whose length is not a multiple of 32 bytes", false)                            \
    RULE(repeat, "repeat", "a repeat count outside 1 to 255", false)                                              \
    RULE(mask, "mask", "a mask that the element size does not allow", false)                                      \
    RULE(stride, "stride", "a stride or length that does not fit its field", false)                               \
    RULE(overlap, "overlap", "operands that overlap in a way the instruction does not support", false)            \
    RULE(count, "count", "a count of elements that the function does not allow", false)                           \
    RULE(queue_order, "queue-order", "EnQue of a tensor that is not in use (enqueued already, or freed)", false)  \
    RULE(queue_foreign, "queue-foreign", "a tensor given to a queue that did not allocate it", false)             \
    RULE(queue_depth, "queue-depth", "more tensors in a queue than its depth", false)                             \
    RULE(queue_full, "queue-full", "AllocTensor with no free buffer: the core would hang", false)                 \
    RULE(queue_empty, "queue-empty", "DeQue from an empty queue", false)                                          \
    RULE(freed_twice, "freed-twice", "FreeTensor of a tensor that is free already", false)                        \
    RULE(used_after_free, "used-after-free", "a tensor used after FreeTensor", false)                             \
    RULE(used_in_queue, "used-in-queue", "a tensor used between EnQue and DeQue", false)                          \
    RULE(stale_tensor, "stale-tensor", "a tensor from before its buffer was allocated again or reset", false)     \
    RULE(flag_unset, "flag-unset", "WaitFlag of an event that nothing set: the core would hang", false)           \
    RULE(flag_twice, "flag-twice", "SetFlag of an event that is set already", false)                              \
    RULE(flag_left, "flag-left", "an event still set when the kernel ends", true)                                 \
    RULE(event_range, "event-range", "an event id that does not exist", false)                                    \
    RULE(events_used_up, "events-used-up", "more events of one kind in use than the device has", false)           \
    RULE(read_after_write, "read-after-write", "a pipe reads what another may still be writing", true)            \
    RULE(write_after_write, "write-after-write", "a pipe writes what another may still be writing", true)         \
    RULE(write_after_read, "write-after-read", "a pipe writes what another may still be reading", true)           \
    RULE(not_on_arch, "not-on-arch", "a function that the architecture does not have", false)                     \
    RULE(type_not_on_arch, "type-not-on-arch", "a data type that the function does not take there", false)        \
    RULE(argument, "argument", "an argument outside its documented range", false)                                 \
    RULE(not_in_twin, "not-in-twin", "a part of AscendC that the simulator does not support", false)              \
    RULE(kernel_assert, "kernel-assert", "an assertion of the kernel itself failed", false)                       \
    RULE(core_hang, "core-hang", "a core waits for another that does not come", false)                            \
    RULE(crash, "crash", "the kernel crashed the process that it ran in (`isolated=True` only)", false)           \
    RULE(time_out, "time-out", "the kernel did not end within `timeout` (`isolated=True` only)", false)

namespace neonext_twin {

#define NEONEXT_TWIN_RULE_NAME(NAME, ID, TEXT, HAZARD) NAME,
enum class Rule { NEONEXT_TWIN_RULES(NEONEXT_TWIN_RULE_NAME) };
#undef NEONEXT_TWIN_RULE_NAME

struct RuleText {
    const char* id;
    const char* text;
    bool hazard;
};

#define NEONEXT_TWIN_RULE_TEXT(NAME, ID, TEXT, HAZARD) {ID, TEXT, HAZARD},
constexpr RuleText rule_table[] = {NEONEXT_TWIN_RULES(NEONEXT_TWIN_RULE_TEXT)};
#undef NEONEXT_TWIN_RULE_TEXT

constexpr const RuleText& rule_of(Rule rule)
{
    return rule_table[static_cast<int>(rule)];
}

}  // namespace neonext_twin
