// The rules that the simulator checks: the one table of their names and meanings. A page of docs/ is tested against it.
#pragma once

namespace neonext_twin {

enum class Rule {
    gm_bounds,
    gm_tensor_bounds,
    gm_read_only,
    gm_unwritten,
    gm_two_cores,
    gm_order,
    ub_bounds,
    ub_overrun,
    too_many_buffers,
    unwritten,
    alignment,
    length,
    repeat,
    mask,
    stride,
    overlap,
    count,
    queue_order,
    queue_foreign,
    queue_depth,
    queue_full,
    queue_empty,
    freed_twice,
    used_after_free,
    used_in_queue,
    stale_tensor,
    flag_unset,
    flag_twice,
    flag_left,
    event_range,
    events_used_up,
    read_after_write,
    write_after_write,
    write_after_read,
    not_on_arch,
    type_not_on_arch,
    argument,
    not_in_twin,
    kernel_assert,
    crash,
    time_out,
};

struct RuleText {
    Rule rule;
    const char* id;
    const char* text;
    // A hazard may still give the right result by luck, so hazards="report" only lists these and goes on.
    bool hazard;
};

constexpr RuleText rule_table[] = {
    {Rule::gm_bounds, "gm-bounds", "an access outside every argument in global memory", false},
    {Rule::gm_tensor_bounds, "gm-tensor-bounds", "an access beyond the size given to SetGlobalBuffer", true},
    {Rule::gm_read_only, "gm-read-only", "a write to an argument that is not declared as an output", false},
    {Rule::gm_unwritten, "gm-unwritten", "global memory read before anything was written there", false},
    {Rule::gm_two_cores, "gm-two-cores", "two cores write the same byte, or one reads what another writes", false},
    {Rule::gm_order, "gm-order", "copies through the same global memory with nothing that orders them", true},
    {Rule::ub_bounds, "ub-bounds", "an access outside a local tensor", false},
    {Rule::ub_overrun, "ub-overrun", "more unified buffer than the device has", false},
    {Rule::too_many_buffers, "too-many-buffers", "more than 64 buffers in one TPipe", false},
    {Rule::unwritten, "unwritten", "unified buffer read before anything was written there", true},
    {Rule::alignment, "alignment", "an address that is not aligned as the instruction needs", false},
    {Rule::length, "length", "a copy whose length is not a multiple of 32 bytes", false},
    {Rule::repeat, "repeat", "a repeat count outside 1 to 255", false},
    {Rule::mask, "mask", "a mask that the element size does not allow", false},
    {Rule::stride, "stride", "a stride or length that does not fit its field", false},
    {Rule::overlap, "overlap", "operands that overlap in a way the instruction does not support", false},
    {Rule::count, "count", "a count of elements that the function does not allow", false},
    {Rule::queue_order, "queue-order", "EnQue of a tensor that is not in use (enqueued already, or freed)", false},
    {Rule::queue_foreign, "queue-foreign", "a tensor given to a queue that did not allocate it", false},
    {Rule::queue_depth, "queue-depth", "more tensors in a queue than its depth", false},
    {Rule::queue_full, "queue-full", "AllocTensor with no free buffer: the core would hang", false},
    {Rule::queue_empty, "queue-empty", "DeQue from an empty queue", false},
    {Rule::freed_twice, "freed-twice", "FreeTensor of a tensor that is free already", false},
    {Rule::used_after_free, "used-after-free", "a tensor used after FreeTensor", false},
    {Rule::used_in_queue, "used-in-queue", "a tensor used between EnQue and DeQue", false},
    {Rule::stale_tensor, "stale-tensor", "a tensor from before its buffer was allocated again or reset", false},
    {Rule::flag_unset, "flag-unset", "WaitFlag of an event that nothing set: the core would hang", false},
    {Rule::flag_twice, "flag-twice", "SetFlag of an event that is set already", false},
    {Rule::flag_left, "flag-left", "an event still set when the kernel ends", true},
    {Rule::event_range, "event-range", "an event id that does not exist", false},
    {Rule::events_used_up, "events-used-up", "more events of one kind in use than the device has", false},
    {Rule::read_after_write, "read-after-write", "a pipe reads what another may still be writing", true},
    {Rule::write_after_write, "write-after-write", "a pipe writes what another may still be writing", true},
    {Rule::write_after_read, "write-after-read", "a pipe writes what another may still be reading", true},
    {Rule::not_on_arch, "not-on-arch", "a function that the architecture does not have", false},
    {Rule::type_not_on_arch, "type-not-on-arch", "a data type that the function does not take there", false},
    {Rule::argument, "argument", "an argument outside its documented range", false},
    {Rule::not_in_twin, "not-in-twin", "a part of AscendC that the simulator does not support", false},
    {Rule::kernel_assert, "kernel-assert", "an assertion of the kernel itself failed", false},
    {Rule::crash, "crash", "the kernel crashed the process that it ran in (`isolated=True` only)", false},
    {Rule::time_out, "time-out", "the kernel did not end within `timeout` (`isolated=True` only)", false},
};

constexpr const RuleText& rule_of(Rule rule)
{
    return rule_table[static_cast<int>(rule)];
}

constexpr bool rules_in_order()
{
    for (int i = 0; i < static_cast<int>(sizeof(rule_table) / sizeof(rule_table[0])); ++i) {
        if (static_cast<int>(rule_table[i].rule) != i) {
            return false;
        }
    }
    return sizeof(rule_table) / sizeof(rule_table[0]) == static_cast<int>(Rule::time_out) + 1;
}
static_assert(rules_in_order());

}  // namespace neonext_twin
