// The library's functions on rows, sorting and the like: each entry reads x (and more), calls one, and writes y.
#include "kernel_operator.h"

using namespace AscendC;

constexpr uint32_t kPlace = 4096;

/// A buffer at a fixed place of the unified buffer, after a copy from global memory if there is any.
template <typename T>
inline LocalTensor<T> loaded(uint32_t place, GM_ADDR from, uint32_t count)
{
    LocalTensor<T> tensor(TPosition::VECCALC, place * kPlace, kPlace / sizeof(T));
    if (from != nullptr) {
        GlobalTensor<T> global;
        global.SetGlobalBuffer((__gm__ T*)from, count);
        DataCopy(tensor, global, count);
        PipeBarrier<PIPE_ALL>();
    }
    return tensor;
}

template <typename T>
inline void stored(GM_ADDR to, const LocalTensor<T>& tensor, uint32_t count)
{
    GlobalTensor<T> global;
    global.SetGlobalBuffer((__gm__ T*)to, count);
    PipeBarrier<PIPE_ALL>();
    DataCopy(global, tensor, count);
    PipeBarrier<PIPE_ALL>();
}

#define KERNEL(NAME) extern "C" __global__ __vector__ void NAME(GM_ADDR gx, GM_ADDR gy, GM_ADDR gz)

KERNEL(sums_of_rows)
{
    auto x = loaded<half>(0, gx, 3 * 208);
    auto y = loaded<half>(1, nullptr, 16);
    Duplicate(y, half(0), 16);
    Sum(y, x, loaded<uint8_t>(2, nullptr, 0), SumParams{3, 208, 200});
    stored(gy, y, 16);
    Mean<half, float>(y, x, MeanParams{3, 208, 200});
    stored(gz, y, 16);
}

/// Rows of 19 halves, padded to 32; the padding was never written and is not read.
KERNEL(softmax)
{
    LocalTensor<half> x(TPosition::VECCALC, 0, 1024), y(TPosition::VECCALC, kPlace, 1024);
    LocalTensor<float> largest(TPosition::VECCALC, 2 * kPlace, 32), sum(TPosition::VECCALC, 3 * kPlace, 32);
    GlobalTensor<half> from;
    from.SetGlobalBuffer((__gm__ half*)gx, 4 * 32);
    DataCopy(x, from, 4 * 32);
    PipeBarrier<PIPE_ALL>();
    SoftMaxTiling tiling;
    SoftMax<half>(y, sum, largest, x, tiling, {4, 32, 4, 19});
    SimpleSoftMax<half>(x, sum, largest, x, tiling, {4, 32, 4, 19});
    stored(gz, sum, 32);
    Sub(y, y, x, 19);  // both forms agree
    Muls(y, y, half(1000), 19);
    Add(x, x, y, 19);
    PipeBarrier<PIPE_ALL>();
    GlobalTensor<half> to;
    to.SetGlobalBuffer((__gm__ half*)gy, 4 * 32);
    DataCopy(to, x, 4 * 32);
}

KERNEL(bits)
{
    auto x = loaded<int16_t>(0, gx, 64);
    Xor(x, x, x[32], 32);
    stored(gy, x, 32);
}

KERNEL(series)
{
    auto x = loaded<float>(0, gx, 64);
    Exp<float, 10>(x, x, 64);
    stored(gy, x, 64);
}

KERNEL(broadcasts)
{
    const uint32_t row[2] = {1, 16}, column[2] = {16, 1}, to[2] = {16, 16};
    auto x = loaded<half>(0, gx, 16);
    auto y = loaded<half>(1, nullptr, 0);
    Broadcast<half, 2, 0>(y, x, to, row);
    stored(gy, y, 256);
    auto space = loaded<uint8_t>(2, nullptr, 0);
    Broadcast<half, 2, 1>(y, x, to, column, space);
    stored(gz, y, 256);
}

// Compiled for one architecture, because that takes seconds.
#if __NPU_ARCH__ == 2201
KERNEL(softmax_of_padding)
{
    auto x = loaded<float>(0, gx, 32);
    SoftMaxTiling tiling;
    SoftMax<float>(x, x, tiling, {2, 16, 2, 9});
    Adds(x, x, 1.0f, 32);  // the padding of a result is nobody's to read
    stored(gy, x, 32);
}

KERNEL(softmax_without_a_shape)
{
    auto x = loaded<float>(0, gx, 32);
    SoftMax<float>(x, x, SoftMaxTiling{});
}

KERNEL(layer_norm)
{
    auto x = loaded<float>(0, gx, 96);
    auto y = loaded<float>(1, nullptr, 0), mean = loaded<float>(2, nullptr, 0), other = loaded<float>(3, nullptr, 0);
    LayerNormTiling tiling;
    tiling.bLength = tiling.sLength = 2;
    tiling.hLength = 16;
    tiling.originalHLength = 13;
    Duplicate(mean, 0.0f, 8);
    Duplicate(other, 0.0f, 8);
    LayerNorm<float>(y, mean, other, x, x[64], x[80], 1e-3f, tiling);
    stored(gy, y, 64);
    stored(gz, other, 8);
}

KERNEL(rms_norm)
{
    auto x = loaded<half>(0, gx, 96);
    auto y = loaded<half>(1, nullptr, 0);
    RmsNormTiling tiling;
    tiling.bLength = 5;
    tiling.sLength = 1;
    tiling.hLength = tiling.originalHLength = 16;
    RmsNorm<half>(y, x, x[80], loaded<uint8_t>(2, nullptr, 0), half(0.001), tiling);
    stored(gy, y, 80);
}

KERNEL(patterns)
{
    const uint32_t shape[2] = {5, 8};
    auto x = loaded<float>(0, gx, 40);
    auto y = loaded<float>(1, nullptr, 0);
    Duplicate(y, 0.0f, 64);
    auto space = loaded<uint8_t>(2, nullptr, 0);
    ReduceSum<float, Pattern::Reduce::AR>(y, x, space, shape, true);
    ReduceMax<float, Pattern::Reduce::RA, true>(y[8], x, shape, true);
    ReduceMin<float, Pattern::Reduce::AR>(y[16], x, space, shape, true);
    ReduceMean<float, Pattern::Reduce::RA>(y[24], x, shape, true);
    ReduceProd<float, Pattern::Reduce::RA>(y[32], x, shape, true);
    ReduceAny<float, Pattern::Reduce::AR>(y[40], x, shape, true);
    ReduceAll<float, Pattern::Reduce::AR>(y[48], x, shape, true);
    stored(gy, y, 56);
}

KERNEL(cumulated)
{
    static constexpr CumSumConfig down{false, false, true};
    auto x = loaded<float>(0, gx, 32);
    auto y = loaded<float>(1, nullptr, 0), last = loaded<float>(2, nullptr, 0);
    CumSum<float>(y, last, x, CumSumInfo{2, 16});
    stored(gy, y, 32);
    CumSum<float, down>(y, last, x, CumSumInfo{2, 16});
    stored(gz, last, 16);
}

KERNEL(quantized)
{
    auto x = loaded<float>(0, gx, 64);
    x.SetSize(64);
    auto y = loaded<int8_t>(1, nullptr, 0);
    auto wide = loaded<int32_t>(2, nullptr, 0);
    auto z = loaded<half>(3, nullptr, 0);
    AscendQuant<float>(y, x, 10.0f, 3.0f);
    AscendQuant<float>(y, x, x[56], 0.5f, 8, 32);
    stored(gy, y, 64);
    Arange(wide, 0, 3, 16);
    AscendDequant<half, float>(z, wide, x, DequantParams{2, 8, 7});
    AscendDequant<half, float>(z, wide, 0.25f, DequantParams{1, 16, 16});
    stored(gz, z, 16);
}

KERNEL(sorted)
{
    auto x = loaded<half>(0, gx, 64);
    auto index = loaded<uint32_t>(1, nullptr, 0);
    auto pairs = loaded<half>(2, nullptr, 0), y = loaded<half>(3, nullptr, 0);
    auto order = loaded<uint32_t>(4, nullptr, 0);
    Arange(index.ReinterpretCast<int32_t>(), 0, 1, 64);
    LocalTensor<half> scores;
    Concat(scores, x, y, 4);
    Sort<half, true>(pairs, scores, index, y, 2);
    Extract(y, order, pairs, 2);
    stored(gy, y, 64);
    stored(gz, order, 64);
}

KERNEL(scratch_over_the_source)
{
    auto x = loaded<float>(0, gx, 64);
    Sum(x[512], x, x.ReinterpretCast<uint8_t>(), SumParams{1, 64, 64});
}

KERNEL(numbers)
{
    auto x = loaded<float>(0, gx, 64);
    auto y = loaded<float>(1, nullptr, 0);
    x.SetSize(64);
    Power<float>(y, x, 2.0f);
    Power<float>(y, 2.0f, y, 64);
    stored(gy, y, 64);
}

KERNEL(nearest)
{
    auto x = loaded<float>(0, gx, 64);
    Rint(x, x, 64);
    stored(gy, x, 64);
}

/// 95 floats in each buffer, and no gap between them: the last repeat is shorter and does not reach the next buffer.
KERNEL(close_together)
{
    LocalTensor<float> x(TPosition::VECCALC, 0, 96), y(TPosition::VECCALC, 384, 96), z(TPosition::VECCALC, 768, 96);
    GlobalTensor<float> from;
    from.SetGlobalBuffer((__gm__ float*)gx, 96);
    DataCopy(x, from, 96);
    DataCopy(y, from, 96);
    PipeBarrier<PIPE_ALL>();
    Div(z, x, y, 95);
    stored(gy, z, 96);
}
#endif
