// Small kernels that break one rule each. The comment on the offending line names the rule; the test reads it.
#include "bench.h"

// ---- global memory ----

KERNEL(gm_past_the_end)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a, b.x[kElements - 128], 256);  // error: gm-bounds | bytes [7936, 8448) of argument 0, which has 8192
}

KERNEL(gm_null)
{
    Bench b(gz, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a, b.x, 256);  // error: gm-bounds | None
}

KERNEL(gm_scalar_past_the_end)
{
    Bench b(gx, gy);
    half value = b.x.GetValue(kElements);  // error: gm-bounds | bytes [8192, 8194)
    b.y.SetValue(0, value);
}

KERNEL(gm_past_the_tensor)
{
    Bench b(gx, gy);
    b.x.SetGlobalBuffer((__gm__ half*)gx, 64);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a, b.x, 128);  // error: gm-tensor-bounds | 128 bytes
}

KERNEL(gm_writes_an_input)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    PipeBarrier<PIPE_ALL>();
    DataCopy(b.x, a, 128);  // error: gm-read-only | argument 0
}

KERNEL(gm_reads_an_output)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a, b.y[16], 128);  // error: gm-unwritten | byte 32 of argument 1
}

KERNEL(gm_same_place_from_two_cores)  // blocks: 2
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    PipeBarrier<PIPE_ALL>();
    DataCopy(b.y[GetBlockIdx() * 112], a, 128);  // error: gm-two-cores | core 1 writes byte 224 of argument 1
}

KERNEL(gm_read_back_at_once)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    PipeBarrier<PIPE_ALL>();
    DataCopy(b.y, a, 128);
    DataCopy(a[1024], b.y, 128);  // error: gm-order | MTE3 writes
}

KERNEL(gm_written_twice_at_once)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    PipeBarrier<PIPE_ALL>();
    DataCopy(b.y, a, 128);
    DataCopy(b.y[64], a, 128);  // error: gm-order | PipeBarrier<PIPE_MTE3>
}

// ---- the unified buffer ----

KERNEL(ub_scratch_of_brcb)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    Brcb(a[64], a, 1, {1, 8});
    TBuf<> rest;
    b.pipe.InitBuffer(rest, 240 * 1024);
    Brcb(a[64], a, 1, {1, 8});  // error: ub-reserved | from byte 253952 of the unified buffer on
}

KERNEL(ub_scratch_of_select)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    LocalTensor<uint8_t> bits(TPosition::VECCALC, 255 * 1024, 256);
    Duplicate(bits.ReinterpretCast<half>(), half(0), 128);
    PipeBarrier<PIPE_V>();
    Select(a, bits, a, half(1), SELMODE::VSEL_TENSOR_SCALAR_MODE, 128);  // error: ub-reserved | buffers reach to 261376
}

KERNEL(ub_repeats_past_the_end)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Muls(a, a, half(2), 128, 9, {1, 1, 8, 8});  // error: ub-bounds | repeat 8 reaches byte 2304 of a tensor of 2048
}

KERNEL(ub_stride_past_the_end)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    LocalTensor<half> c = b.work.Get<half>(512);
    Muls(c, a, half(2), 128, 4, {1, 1, 9, 8});  // error: ub-bounds | dst: repeat 3 reaches byte 1120
}

KERNEL(ub_copy_past_the_end)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a[512], b.x, {9, 4, 0, 4});  // error: ub-bounds | bytes [1024, 1152)
}

KERNEL(ub_scalar_past_the_end)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    a.SetValue(1024, half(0));  // error: ub-bounds | bytes [2048, 2050)
}

KERNEL(ub_view_past_the_end)
{
    Bench b(gx, gy);
    b.work.Get<float>(2049);  // error: ub-bounds | 8192 bytes
}

KERNEL(ub_too_much)
{
    Bench b(gx, gy);
    TBuf<> more;
    b.pipe.InitBuffer(more, 256 * 1024);  // error: ub-overrun | Ascend310P3 has (262144)
}

KERNEL(ub_too_many_buffers)
{
    TPipe pipe;
    TBuf<> buffers[65];
    for (TBuf<>& buffer : buffers) {
        pipe.InitBuffer(buffer, 32);  // error: too-many-buffers | 64
    }
}

KERNEL(ub_never_written)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.work.Get<half>();
    Duplicate(a, half(1), 100);
    Relu(a, a, 112);  // error: unwritten | byte 4296
}

KERNEL(ub_never_written_scalar)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.work.Get<half>();
    b.y.SetValue(0, a.GetValue(3));  // error: unwritten | byte 4102
}

// ---- parameters of instructions ----

KERNEL(operand_not_aligned)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Add(a[8], a[8], a, 64);  // error: alignment | src0 starts at byte 16
}

KERNEL(copy_not_aligned)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a[1], b.x, 64);  // error: alignment | dst starts at byte 2
}

KERNEL(gm_element_not_aligned)
{
    Bench b(gx, gy);
    b.x.SetGlobalBuffer((__gm__ half*)(gx + 1));
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a, b.x, 64);  // error: alignment | multiple of 2
}

KERNEL(copy_of_a_ragged_length)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a, b.x, 100);  // error: length | 200 bytes
}

KERNEL(repeats_256)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Adds(a, a, half(1), 128, 256, {1, 1, 0, 0});  // error: repeat | 256 repeats
}

KERNEL(repeats_0)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Adds(a, a, half(1), 128, 0, {1, 1, 8, 8});  // error: repeat | 0 repeats
}

KERNEL(mask_of_129_halves)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Add(a, a, a, 129, 1, {1, 1, 1, 8, 8, 8});  // error: mask | a mask of 129 lanes
}

KERNEL(mask_of_65_floats)
{
    Bench b(gx, gy);
    LocalTensor<float> a = b.filled<float>();
    Add(a, a, a, 65, 1, {1, 1, 1, 8, 8, 8});  // error: mask | 1 to 64
}

KERNEL(mask_word_too_many)
{
    Bench b(gx, gy);
    LocalTensor<float> a = b.filled<float>();
    uint64_t mask[2] = {1, 1};
    Add(a, a, a, mask, 1, {1, 1, 1, 8, 8, 8});  // error: mask | high word
}

KERNEL(mask_empty)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    uint64_t mask[2] = {0, 0};
    Add(a, a, a, mask, 1, {1, 1, 1, 8, 8, 8});  // error: mask | empty
}

KERNEL(mask_placeholder_on_3002)  // soc: Ascend310B1
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    SetVectorMask<half, MaskMode::NORMAL>(0, 0xff);
    uint64_t mask[2] = {0, 0};
    Add<half, false>(a, a, a, mask, 1, {1, 1, 1, 8, 8, 8});
    Add<half, false>(a, a, a, 8, 1, {1, 1, 1, 8, 8, 8});
    Add<half, false>(a, a, a, MASK_PLACEHOLDER, 1, {1, 1, 1, 8, 8, 8});  // error: mask | nothing is computed
}

KERNEL(counter_mode_on_3002)  // soc: Ascend310B1
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    SetMaskCount();
    uint64_t mask[2] = {128, 0};
    Add(a, a, a, mask, 1, {1, 1, 1, 8, 8, 8});  // error: mask | counter mode on __NPU_ARCH__ 3002
}

KERNEL(mask_in_counter_mode)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    SetMaskCount();
    Add(a, a, a, 100, 1, {1, 1, 1, 8, 8, 8});  // error: mask | counter mode
}

KERNEL(stride_256)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Add(a, a, a, 128, 1, {1, 1, 1, 256, 8, 8});  // error: stride | dstRepStride is 256
}

KERNEL(stride_negative_member)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    BinaryRepeatParams params;
    params.src1BlkStride = -1;
    Add(a, a, a, 128, 1, params);  // error: stride | src1BlkStride is -1
}

KERNEL(copy_of_5000_blocks)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a, b.x, {5000, 1, 0, 0});  // error: stride | blockCount is 5000
}

KERNEL(copy_with_a_wide_gap)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopyParams params{2, 1, 0, 0};
    params.srcGap = 65536;
    DataCopy(a, b.x, params);  // error: stride | srcGap is 65536
}

KERNEL(copy_of_nothing)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a, b.x, {1, 0, 0, 0});  // error: argument | blockLen 0
}

KERNEL(overlap_within_a_repeat)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Add(a[16], a, a[512], 128, 1, {1, 1, 1, 8, 8, 8});  // error: overlap | src0: block 1 of a repeat is block 0
}

KERNEL(overlap_between_repeats)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Add(a[128], a, a[512], 128, 2, {1, 1, 1, 8, 8, 8});  // error: overlap | repeat 1 reads
}

KERNEL(overlap_of_blocks)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Adds(a, a[512], half(1), 128, 1, {0, 1, 8, 8});  // error: overlap | block stride of 0
}

KERNEL(overlap_of_a_sum)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    MulAddDst(a, a[256], a[512], 128, 2, {1, 1, 1, 0, 8, 8});  // error: overlap | dst: repeat 1 reads
}

KERNEL(overlap_of_a_widening_cast)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Cast(a.ReinterpretCast<float>(), a, RoundMode::CAST_NONE, 128);  // error: overlap | repeat 1 reads
}

KERNEL(count_negative)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Add(a, a, a, -1);  // error: count | -1
}

KERNEL(count_of_a_comparison)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    LocalTensor<uint8_t> bits = b.work.Get<uint8_t>();
    Compare(bits, a, a, CMPMODE::EQ, 100);  // error: count | 128 elements
}

// ---- queues ----

KERNEL(enque_twice)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    b.in.EnQue(a);
    b.in.EnQue(a);  // error: queue-order | already
}

KERNEL(free_without_deque)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    b.in.EnQue(a);
    b.in.FreeTensor(a);  // error: queue-order | DeQue comes first
}

KERNEL(enque_elsewhere)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    b.out.EnQue(a);  // error: queue-foreign | this queue
}

KERNEL(enque_beyond_the_depth)
{
    Bench b(gx, gy, 2);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    LocalTensor<half> c = b.in.AllocTensor<half>();
    b.in.EnQue(a);
    b.in.EnQue(c);  // error: queue-depth | 1 tensors
}

KERNEL(alloc_without_free)
{
    Bench b(gx, gy);
    b.in.AllocTensor<half>();
    b.in.AllocTensor<half>();  // error: queue-full | would hang
}

KERNEL(deque_of_nothing)
{
    Bench b(gx, gy);
    b.in.DeQue<half>();  // error: queue-empty | empty
}

KERNEL(free_twice)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    b.in.FreeTensor(a);
    b.in.FreeTensor(a);  // error: freed-twice | already
}

KERNEL(use_after_free)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    b.in.FreeTensor(a);
    Relu(a, a, 128);  // error: used-after-free | FreeTensor
}

KERNEL(use_before_deque)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopy(a, b.x, 128);
    b.in.EnQue(a);
    Relu(a, a, 128);  // error: used-in-queue | DeQue
}

KERNEL(use_of_an_older_tensor)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    b.in.FreeTensor(a);
    LocalTensor<half> c = b.loaded();
    Relu(c, a, 128);  // error: stale-tensor | allocated again
}

KERNEL(use_after_reset)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.work.Get<half>();
    b.pipe.Reset();
    Duplicate(a, half(0), 128);  // error: stale-tensor | reset
}

// ---- events ----

KERNEL(wait_without_set)
{
    Bench b(gx, gy);
    WaitFlag<HardEvent::MTE2_V>(EVENT_ID3);  // error: flag-unset | MTE2_V 3
}

KERNEL(set_twice)
{
    Bench b(gx, gy);
    SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
    SetFlag<HardEvent::MTE2_V>(EVENT_ID0);  // error: flag-twice | is set already
}

KERNEL(set_for_nobody)
{
    Bench b(gx, gy);
    SetFlag<HardEvent::V_MTE3>(EVENT_ID1);  // error: flag-left | V_MTE3 1
}

KERNEL(event_9)
{
    Bench b(gx, gy);
    SetFlag<HardEvent::MTE2_V>(9);  // error: event-range | 0 to 7
}

KERNEL(events_without_end)
{
    Bench b(gx, gy);
    for (int i = 0; i < 9; ++i) {
        b.pipe.AllocEventID<HardEvent::MTE2_V>();  // error: events-used-up | all 8 events
    }
}

// ---- races ----

KERNEL(read_before_the_copy_is_done)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.work.Get<half>();
    DataCopy(a, b.x, 128);
    Relu(a, a, 128);  // error: read-after-write | V reads
}

KERNEL(copy_before_the_result_is_done)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    DataCopy(b.y, a, 128);  // error: read-after-write | MTE3 reads
}

KERNEL(wait_on_the_wrong_event)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.work.Get<half>();
    SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
    DataCopy(a, b.x, 128);
    WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
    Relu(a, a, 128);  // error: read-after-write | no event or barrier
}

KERNEL(copy_onto_a_fill)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    DataCopy(a, b.x, 128);  // error: write-after-write | MTE2 writes
}

KERNEL(copies_onto_each_other)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.work.Get<half>();
    DataCopy(a, b.x, 128);
    DataCopy(a[112], b.x, 128);  // error: write-after-write | copies of one pipe
}

KERNEL(overwrite_what_is_read)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Adds(b.work.Get<half>(), a, half(1), 1024);
    DataCopy(a, b.x[1024], 1024);  // error: write-after-read | is being read by V
}

KERNEL(overwrite_what_goes_out)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.filled<half>();
    PipeBarrier<PIPE_ALL>();
    DataCopy(b.y, a, 128);
    Duplicate(a, half(0), 128);  // error: write-after-read | is being read by MTE3
}

// ---- functions that the architecture or the simulator lacks ----

KERNEL(padded_copy_on_310p)
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.in.AllocTensor<half>();
    DataCopyPadExtParams<half> padding;
    DataCopyPad(a, b.x, DataCopyExtParams(1, 20, 0, 0, 0), padding);  // error: not-on-arch | 2002
}

KERNEL(shift_on_310p)
{
    Bench b(gx, gy);
    LocalTensor<uint16_t> a = b.filled<uint16_t>();
    ShiftLeft(a, a, uint16_t(1), 128);  // error: not-on-arch | ShiftLeft
}

KERNEL(library_on_3002)  // soc: Ascend310B1
{
    Bench b(gx, gy);
    LocalTensor<half> a = b.loaded();
    Tanh(a, a, 128);  // error: not-on-arch | no Tanh
}

KERNEL(sum_of_bfloat16)
{
    Bench b(gx, gy);
    LocalTensor<bfloat16_t> a = b.work.Get<bfloat16_t>();
    Add(a, a, a, 128);  // error: type-not-on-arch | no Add of bfloat16_t
}

KERNEL(rounding_of_310p)
{
    Bench b(gx, gy);
    LocalTensor<float> a = b.filled<float>();
    Cast(b.in.AllocTensor<half>(), a, RoundMode::CAST_RINT, 64);  // error: type-not-on-arch | CAST_RINT
}

KERNEL(cast_without_its_scale)
{
    Bench b(gx, gy);
    LocalTensor<int32_t> a = b.filled<int32_t>();
    Cast(b.in.AllocTensor<half>(), a, RoundMode::CAST_NONE, 64);  // error: unwritten | SetDeqScale
}

KERNEL(register_that_nothing_wrote)
{
    half value;
    GetReduceRepeatMaxMinSpr(value);  // error: unwritten | no reduction has written its register yet
}

KERNEL(multiply_add_of_integers)
{
    Bench b(gx, gy);
    LocalTensor<int32_t> a = b.filled<int32_t>();
    MulAddDst(a, a[64], a[128], 64);  // error: type-not-on-arch | MulAddDst of int32_t
}

KERNEL(waits_for_the_cube)
{
    Bench b(gx, gy);
    CrossCoreWaitFlag(0);  // error: not-in-twin | the simulator does not support this
}

KERNEL(sync_all_of_hardware)
{
    Bench b(gx, gy);
    SyncAll();  // error: not-on-arch | no SyncAll without workspaces
}

KERNEL(waits_for_nobody)  // blocks: 2
{
    Bench b(gx, gy);
    GlobalTensor<int32_t> sync;
    sync.SetGlobalBuffer((__gm__ int32_t*)gy, 64);
    LocalTensor<int32_t> room = b.work.Get<int32_t>();
    if (GetBlockIdx() == 0) {
        sync.SetValue(0, 0);
        IBWait(sync, room, 1, 0);  // error: core-hang | waits for another core
    }
}

KERNEL(more_cores_than_there_are)  // blocks: 9
{
    Bench b(gx, gy);
    GlobalTensor<int32_t> sync;
    sync.SetGlobalBuffer((__gm__ int32_t*)gx, 72);
    SyncAll(sync, b.work.Get<int32_t>());  // error: core-hang | 9 blocks wait for each other
}

KERNEL(two_kinds_of_cores_wait)  // blocks: 9
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_VECTOR_CORE);
    Bench b(gx, gy);
    GlobalTensor<int32_t> sync;
    sync.SetGlobalBuffer((__gm__ int32_t*)gx, 72);
    SyncAll(sync, b.work.Get<int32_t>());  // error: not-on-arch | AI cores and vector cores
}

KERNEL(own_assertion)
{
    ASSERT(GetBlockNum() == 2);  // error: kernel-assert | GetBlockNum() == 2
}

// ---- what would take Python with it: these run in a process of their own ----

KERNEL(null_pointer)
{
    PipeBarrier<PIPE_V>();  // error: crash | access outside of memory, in or after PipeBarrier
    *(volatile int32_t*)gz = 1;
}

KERNEL(no_end)
{
    PipeBarrier<PIPE_V>();  // error: time-out | did not end within its time, in or after PipeBarrier
    for (volatile uint32_t i = 0; gx != nullptr; i = i + 1) {
    }
}
