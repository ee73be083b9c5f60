// Buffers and tensors that the small kernels of these tests share.
#pragma once

#include "kernel_operator.h"

using namespace AscendC;

constexpr uint32_t kElements = 4096;

struct Bench {
    TPipe pipe;
    TQue<QuePosition::VECIN, 1> in;
    TQue<QuePosition::VECOUT, 1> out;
    TBuf<> work;
    GlobalTensor<half> x;
    GlobalTensor<half> y;

    __aicore__ inline Bench(GM_ADDR gx, GM_ADDR gy, uint32_t buffers = 1)
    {
        x.SetGlobalBuffer((__gm__ half*)gx);
        y.SetGlobalBuffer((__gm__ half*)gy);
        pipe.InitBuffer(in, buffers, 2048);
        pipe.InitBuffer(out, buffers, 2048);
        pipe.InitBuffer(work, 8192);
    }

    /// 1024 halves that came in through the queue.
    __aicore__ inline LocalTensor<half> loaded()
    {
        LocalTensor<half> a = in.AllocTensor<half>();
        DataCopy(a, x, 1024);
        in.EnQue(a);
        return in.DeQue<half>();
    }

    /// All of `work`, filled on the vector unit.
    template <typename T>
    __aicore__ inline LocalTensor<T> filled()
    {
        LocalTensor<T> a = work.Get<T>();
        Duplicate(a, T(1), static_cast<int32_t>(a.GetSize()));
        return a;
    }
};

#define KERNEL(NAME) extern "C" __global__ __aicore__ void NAME(GM_ADDR gx, GM_ADDR gy, GM_ADDR gz)
