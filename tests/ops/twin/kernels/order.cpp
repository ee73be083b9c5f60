// Order by hand: correct kernels that look risky, and each one's neighbour with one event in the wrong place. The names
// of the wrong ones end in the rule that they break.
#include "bench.h"

constexpr uint32_t kTile = 256;
constexpr uint32_t kTiles = kElements / kTile;

namespace {

/// x to y through two buffers, doubled, with one event of each kind and direction for each buffer.
struct Double {
    TPipe pipe;
    TBuf<> store;
    GlobalTensor<half> x, y;
    LocalTensor<half> in[2], out[2];

    __aicore__ inline Double(GM_ADDR gx, GM_ADDR gy)
    {
        x.SetGlobalBuffer((__gm__ half*)gx, kElements);
        y.SetGlobalBuffer((__gm__ half*)gy, kElements);
        pipe.InitBuffer(store, 4 * kTile * sizeof(half));
        for (int i = 0; i < 2; ++i) {
            in[i] = store.Get<half>()[i * kTile];
            out[i] = store.Get<half>()[(2 + i) * kTile];
        }
    }

    __aicore__ inline void load(uint32_t tile) { DataCopy(in[tile % 2], x[tile * kTile], kTile); }
    __aicore__ inline void compute(uint32_t tile) { Adds(out[tile % 2], in[tile % 2], half(1), kTile); }
    __aicore__ inline void store_back(uint32_t tile) { DataCopy(y[tile * kTile], out[tile % 2], kTile); }
};

/// Events both ways. `early` gives a buffer back before it was read; `late` loads into one before it waits for it.
__aicore__ inline void both_ways(GM_ADDR gx, GM_ADDR gy, bool early, bool late)
{
    Double d(gx, gy);
    for (int i = 0; i < 2; ++i) {
        SetFlag<HardEvent::V_MTE2>(i);
        SetFlag<HardEvent::MTE3_V>(i);
    }
    for (uint32_t tile = 0; tile < kTiles; ++tile) {
        const int id = tile % 2;
        if (late) {
            d.load(tile);
        }
        WaitFlag<HardEvent::V_MTE2>(id);
        if (!late) {
            d.load(tile);
        }
        SetFlag<HardEvent::MTE2_V>(id);
        WaitFlag<HardEvent::MTE3_V>(id);
        WaitFlag<HardEvent::MTE2_V>(id);
        if (early) {
            SetFlag<HardEvent::V_MTE2>(id);
        }
        d.compute(tile);
        if (!early) {
            SetFlag<HardEvent::V_MTE2>(id);
        }
        SetFlag<HardEvent::V_MTE3>(id);
        WaitFlag<HardEvent::V_MTE3>(id);
        d.store_back(tile);
        SetFlag<HardEvent::MTE3_V>(id);
    }
    for (int i = 0; i < 2; ++i) {
        WaitFlag<HardEvent::V_MTE2>(i);
        WaitFlag<HardEvent::MTE3_V>(i);
    }
}

/// The next tile is loaded while this one is computed. `late` starts the load into the buffer that is being read.
__aicore__ inline void ping_pong(GM_ADDR gx, GM_ADDR gy, bool late)
{
    Double d(gx, gy);
    d.load(0);
    SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
    for (uint32_t tile = 0; tile < kTiles; ++tile) {
        if (tile + 1 < kTiles) {
            if (tile > 0 && !late) {
                WaitFlag<HardEvent::V_MTE2>(EVENT_ID0);
            }
            d.load(tile + 1);
        }
        WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
        if (tile + 1 < kTiles) {
            SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
        }
        if (tile > 1) {
            WaitFlag<HardEvent::MTE3_V>(tile % 2);
        }
        d.compute(tile);
        if (tile + 2 < kTiles && !late) {
            SetFlag<HardEvent::V_MTE2>(EVENT_ID0);
        }
        SetFlag<HardEvent::V_MTE3>(EVENT_ID0);
        WaitFlag<HardEvent::V_MTE3>(EVENT_ID0);
        d.store_back(tile);
        if (tile + 2 < kTiles) {
            SetFlag<HardEvent::MTE3_V>(tile % 2);
        }
    }
}

/// Queues of depth 2, two tensors on their way. `keeps` uses the first after the queue has it back.
__aicore__ inline void two_deep(GM_ADDR gx, GM_ADDR gy, bool keeps)
{
    TPipe pipe;
    TQue<QuePosition::VECIN, 2> in;
    TQue<QuePosition::VECOUT, 2> out;
    pipe.InitBuffer(in, 2, kTile * sizeof(half));
    pipe.InitBuffer(out, 2, kTile * sizeof(half));
    GlobalTensor<half> x, y;
    x.SetGlobalBuffer((__gm__ half*)gx, kElements);
    y.SetGlobalBuffer((__gm__ half*)gy, kElements);
    LocalTensor<half> kept;
    for (uint32_t tile = 0; tile < kTiles; tile += 2) {
        for (uint32_t i = tile; i < tile + 2; ++i) {
            LocalTensor<half> a = in.AllocTensor<half>();
            DataCopy(a, x[i * kTile], kTile);
            in.EnQue(a);
        }
        for (uint32_t i = tile; i < tile + 2; ++i) {
            LocalTensor<half> a = in.DeQue<half>();
            LocalTensor<half> b = out.AllocTensor<half>();
            Adds(b, keeps && i > tile ? kept : a, half(1), kTile);
            out.EnQue(b);
            kept = a;
            in.FreeTensor(a);
        }
        for (uint32_t i = tile; i < tile + 2; ++i) {
            LocalTensor<half> b = out.DeQue<half>();
            DataCopy(y[i * kTile], b, kTile);
            out.FreeTensor(b);
        }
    }
}

}  // namespace

KERNEL(double_buffer) { both_ways(gx, gy, false, false); }
KERNEL(ping_pong_flags) { ping_pong(gx, gy, false); }
KERNEL(queue_of_two) { two_deep(gx, gy, false); }
KERNEL(given_back_early__write_after_read) { both_ways(gx, gy, true, false); }
KERNEL(waited_for_too_late__write_after_read) { both_ways(gx, gy, false, true); }
KERNEL(loaded_while_read__write_after_read) { ping_pong(gx, gy, true); }
KERNEL(kept_too_long__used_after_free) { two_deep(gx, gy, true); }
