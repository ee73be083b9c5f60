// Kernels that keep the rules, small enough to be compiled for several devices and options.
#include "bench.h"

// z = x + y through queues, double buffered, the work split over the cores.
extern "C" __global__ __aicore__ void add_queues(GM_ADDR gx, GM_ADDR gy, GM_ADDR gz, GM_ADDR tiling)
{
    const uint32_t total = *(__gm__ uint32_t*)tiling;
    constexpr uint32_t tile = 256;
    TPipe pipe;
    TQue<QuePosition::VECIN, 2> in_x;
    TQue<QuePosition::VECIN, 2> in_y;
    TQue<QuePosition::VECOUT, 2> out;
    pipe.InitBuffer(in_x, 2, tile * sizeof(half));
    pipe.InitBuffer(in_y, 2, tile * sizeof(half));
    pipe.InitBuffer(out, 2, tile * sizeof(half));
    GlobalTensor<half> x;
    GlobalTensor<half> y;
    GlobalTensor<half> z;
    x.SetGlobalBuffer((__gm__ half*)gx, total);
    y.SetGlobalBuffer((__gm__ half*)gy, total);
    z.SetGlobalBuffer((__gm__ half*)gz, total);
    for (uint32_t i = GetBlockIdx() * tile; i < total; i += GetBlockNum() * tile) {
        LocalTensor<half> a = in_x.AllocTensor<half>();
        LocalTensor<half> b = in_y.AllocTensor<half>();
        DataCopy(a, x[i], tile);
        DataCopy(b, y[i], {1, tile * sizeof(half) / 32, 0, 0});
        in_x.EnQue(a);
        in_y.EnQue<half>(b);
        a = in_x.DeQue<half>();
        b = in_y.DeQue<half>();
        LocalTensor<half> c = out.AllocTensor<half>();
        Add(c, a, b, tile);
        out.EnQue(c);
        in_x.FreeTensor(a);
        in_y.FreeTensor(b);
        c = out.DeQue<half>();
        DataCopy(z[i], c, tile);
        out.FreeTensor(c);
    }
}

// The same with tensors at fixed addresses and explicit events.
extern "C" __global__ __aicore__ void add_events(GM_ADDR gx, GM_ADDR gy, GM_ADDR gz, GM_ADDR tiling)
{
    const uint32_t total = *(__gm__ uint32_t*)tiling;
    constexpr uint32_t tile = 256;
    LocalTensor<half> a(TPosition::VECIN, 0, tile);
    LocalTensor<half> b(TPosition::VECIN, 512, tile);
    LocalTensor<half> c(TPosition::VECOUT, 1024, tile);
    GlobalTensor<half> x;
    GlobalTensor<half> y;
    GlobalTensor<half> z;
    x.SetGlobalBuffer((__gm__ half*)gx);
    y.SetGlobalBuffer((__gm__ half*)gy);
    z.SetGlobalBuffer((__gm__ half*)gz);
    SetFlag<HardEvent::V_MTE2>(EVENT_ID0);
    SetFlag<HardEvent::MTE3_V>(EVENT_ID0);
    for (uint32_t i = GetBlockIdx() * tile; i < total; i += GetBlockNum() * tile) {
        WaitFlag<HardEvent::V_MTE2>(EVENT_ID0);
        DataCopy(a, x[i], tile);
        DataCopy(b, y[i], tile);
        SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
        WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
        WaitFlag<HardEvent::MTE3_V>(EVENT_ID0);
        Add(c, a, b, 128, 2, {1, 1, 1, 8, 8, 8});
        SetFlag<HardEvent::V_MTE2>(EVENT_ID0);
        SetFlag<HardEvent::V_MTE3>(EVENT_ID0);
        WaitFlag<HardEvent::V_MTE3>(EVENT_ID0);
        DataCopy(z[i], c, tile);
        SetFlag<HardEvent::MTE3_V>(EVENT_ID0);
    }
    WaitFlag<HardEvent::V_MTE2>(EVENT_ID0);
    WaitFlag<HardEvent::MTE3_V>(EVENT_ID0);
}

// y = x * x + y in half, so that the rounding of the product and of the sum shows.
extern "C" __global__ __aicore__ void square(GM_ADDR gx, GM_ADDR gy, GM_ADDR gz)
{
    Bench b(gx, gy);
    LocalTensor<half> x = b.loaded();
    LocalTensor<half> z = b.out.AllocTensor<half>();
    Duplicate(z, half(-1.0f), 1024);
    MulAddDst(z, x, x, 1024);
    b.out.EnQue(z);
    z = b.out.DeQue<half>();
    DataCopy(b.y, z, 1024);
    b.out.FreeTensor(z);
    b.in.FreeTensor(x);
}

// y = x + 1 through queues of depth 0, which keep no list: the caller holds the tensors.
extern "C" __global__ __aicore__ void in_place(GM_ADDR gx, GM_ADDR gy, GM_ADDR)
{
    TPipe pipe;
    TQue<QuePosition::VECIN, 0> in;
    TQue<QuePosition::VECOUT, 0> out;
    pipe.InitBuffer(in, 2, 512);
    pipe.InitBuffer(out, 2, 512);
    GlobalTensor<half> x;
    GlobalTensor<half> y;
    x.SetGlobalBuffer((__gm__ half*)gx);
    y.SetGlobalBuffer((__gm__ half*)gy);
    LocalTensor<half> a;
    LocalTensor<half> b;
    for (uint32_t i = 0; i < kElements; i += 256) {
        in.AllocTensor<half>(a);
        DataCopy(a, x[i], 256);
        in.EnQue(a);
        in.DeQue<half>(a);
        out.AllocTensor<half>(b);
        Adds(b, a, half(1), 256);
        in.FreeTensor(a);
        out.EnQue(b);
        out.DeQue<half>(b);
        DataCopy(y[i], b, 256);
        out.FreeTensor(b);
    }
}

// The device accepts a tensor that is never freed; the simulator only adds a remark.
extern "C" __global__ __aicore__ void forgetful(GM_ADDR gx, GM_ADDR gy, GM_ADDR)
{
    Bench b(gx, gy);
    b.loaded();
}
