// Kernels that keep the rules: their results are compared with NumPy's.
#include "bench.h"

// y = x converted; the tiling key chooses the types, the tiling data the rounding mode.
template <typename D, typename S>
__aicore__ inline void convert(GM_ADDR gx, GM_ADDR gy, GM_ADDR tiling)
{
    const uint32_t total = ((__gm__ uint32_t*)tiling)[0];
    const RoundMode mode = static_cast<RoundMode>(((__gm__ uint32_t*)tiling)[1]);
    constexpr uint32_t tile = 2048;
    TPipe pipe;
    TQue<QuePosition::VECIN, 1> in;
    TQue<QuePosition::VECOUT, 1> out;
    pipe.InitBuffer(in, 1, tile * sizeof(S));
    pipe.InitBuffer(out, 1, tile * sizeof(D));
    GlobalTensor<S> x;
    GlobalTensor<D> y;
    x.SetGlobalBuffer((__gm__ S*)gx, total);
    y.SetGlobalBuffer((__gm__ D*)gy, total);
    for (uint32_t i = 0; i < total; i += tile) {
        LocalTensor<S> a = in.template AllocTensor<S>();
        DataCopy(a, x[i], tile);
        in.EnQue(a);
        a = in.template DeQue<S>();
        LocalTensor<D> b = out.template AllocTensor<D>();
        Cast(b, a, mode, tile);
        out.EnQue(b);
        in.FreeTensor(a);
        b = out.template DeQue<D>();
        DataCopy(y[i], b, tile);
        out.FreeTensor(b);
    }
}

extern "C" __global__ __aicore__ void cast(GM_ADDR gx, GM_ADDR gy, GM_ADDR tiling)
{
    if (TILING_KEY_IS(0)) {
        convert<float, half>(gx, gy, tiling);
    } else if (TILING_KEY_IS(1)) {
        convert<half, float>(gx, gy, tiling);
    } else if (TILING_KEY_IS(2)) {
        convert<int32_t, half>(gx, gy, tiling);
    } else if (TILING_KEY_IS(3)) {
        convert<bfloat16_t, float>(gx, gy, tiling);
    } else if (TILING_KEY_IS(4)) {
        convert<float, bfloat16_t>(gx, gy, tiling);
    } else if (TILING_KEY_IS(5)) {
        convert<uint8_t, half>(gx, gy, tiling);
    } else if (TILING_KEY_IS(6)) {
        convert<int32_t, float>(gx, gy, tiling);
    } else if (TILING_KEY_IS(7)) {
        convert<float, int32_t>(gx, gy, tiling);
    } else if (TILING_KEY_IS(8)) {
        convert<half, int8_t>(gx, gy, tiling);
    }
}

// One call between the copies in and out; the tiling key chooses it. 1024 elements of x and y, 4096 of `out`.
template <typename T>
class Calls {
public:
    __aicore__ inline Calls(GM_ADDR gx, GM_ADDR gy, GM_ADDR gz)
    {
        constexpr uint32_t bytes = 1024 * sizeof(T);
        x_.SetGlobalBuffer((__gm__ T*)gx);
        y_.SetGlobalBuffer((__gm__ T*)gy);
        z_.SetGlobalBuffer((__gm__ T*)gz);
        pipe_.InitBuffer(in_x_, 1, bytes);
        pipe_.InitBuffer(in_y_, 1, bytes);
        pipe_.InitBuffer(out_, 1, bytes);
        pipe_.InitBuffer(work_, 4096);
        x = in_x_.template AllocTensor<T>();
        y = in_y_.template AllocTensor<T>();
        DataCopy(x, x_, 1024);
        DataCopy(y, y_, 1024);
        in_x_.EnQue(x);
        in_y_.EnQue(y);
        x = in_x_.template DeQue<T>();
        y = in_y_.template DeQue<T>();
        z = out_.template AllocTensor<T>();
        work = work_.template Get<T>();
        Duplicate(z, T(0.0f), 1024);
    }

    __aicore__ inline void Store()
    {
        out_.EnQue(z);
        z = out_.template DeQue<T>();
        DataCopy(z_, z, 1024);
        out_.FreeTensor(z);
        in_x_.FreeTensor(x);
        in_y_.FreeTensor(y);
    }

    LocalTensor<T> x;
    LocalTensor<T> y;
    LocalTensor<T> z;
    LocalTensor<T> work;

private:
    TPipe pipe_;
    TQue<QuePosition::VECIN, 1> in_x_;
    TQue<QuePosition::VECIN, 1> in_y_;
    TQue<QuePosition::VECOUT, 1> out_;
    TBuf<> work_;
    GlobalTensor<T> x_;
    GlobalTensor<T> y_;
    GlobalTensor<T> z_;
};

template <typename T>
__aicore__ inline void call(GM_ADDR gx, GM_ADDR gy, GM_ADDR gz, int key)
{
    constexpr int lanes = 256 / sizeof(T);
    constexpr int repeats = 1024 / lanes;
    Calls<T> c(gx, gy, gz);
    switch (key) {
        case 0: {  // bits of a mask
            uint64_t mask[2] = {0x5555555555555555, sizeof(T) == 2 ? 0xffff0000ffff0000 : 0};
            Add(c.z, c.x, c.y, mask, repeats, {1, 1, 1, 8, 8, 8});
            break;
        }
        case 1:  // one coefficient block for all blocks and repeats, added up
            MulAddDst(c.z, c.x, c.y, lanes, repeats, {1, 1, 0, 8, 8, 0});
            break;
        case 2:  // every second block
            Muls(c.z, c.x, T(3.0f), lanes, repeats / 2, {2, 2, 16, 16});
            break;
        case 3:  // the mask is set outside
            SetMaskNorm();
            SetVectorMask<T>(40);
            Sub<T, false>(c.z, c.x, c.y, MASK_PLACEHOLDER, repeats, {1, 1, 1, 8, 8, 8});
            ResetMask();
            break;
        case 4:  // a count across repeats
            SetMaskCount();
            SetVectorMask<T, MaskMode::COUNTER>(0, 300);
            Max<T, false>(c.z, c.x, c.y, MASK_PLACEHOLDER, 1, {1, 1, 1, 8, 8, 8});
            SetMaskNorm();
            ResetMask();
            break;
        case 5:
            Axpy(c.z, c.x, T(0.5f), 1024);
            break;
        case 6:  // bits of a comparison choose
            Compare(c.work.template ReinterpretCast<uint8_t>(), c.x, c.y, CMPMODE::LT, 1024);
            Select(c.z, c.work.template ReinterpretCast<uint8_t>(), c.x, c.y, SELMODE::VSEL_TENSOR_TENSOR_MODE, 1024);
            break;
        case 7:
            CompareScalar(c.work.template ReinterpretCast<uint8_t>(), c.x, T(0.0f), CMPMODE::GE, 1024);
            Select(c.z, c.work.template ReinterpretCast<uint8_t>(), c.x, T(-1.0f), SELMODE::VSEL_TENSOR_SCALAR_MODE,
                   1024);
            break;
        case 8:
            WholeReduceSum(c.z, c.x, lanes, repeats, 1, 1, 8);
            break;
        case 9:
            BlockReduceMax(c.z, c.x, repeats, lanes, 1, 1, 8);
            break;
        case 10:
            PairReduceSum(c.z, c.x, repeats, lanes, 1, 1, 8);
            break;
        case 11:
            ReduceMax(c.z, c.x, c.work, 1024, true);
            break;
        case 12:
            ReduceSum(c.z, c.x, c.work, 1024);
            break;
        case 13:
            Brcb(c.z, c.x, 1024 / (8 * 32 / int(sizeof(T))), {1, 8});
            break;
        case 14:  // lanes backwards
            for (int i = 0; i < 64; ++i) {
                c.work.template ReinterpretCast<uint32_t>().SetValue(i, (63 - i) * sizeof(T));
            }
            Gather(c.z, c.x, c.work.template ReinterpretCast<uint32_t>(), 0, 64);
            break;
        case 15: {
            uint64_t kept = 0;
            GatherMask(c.z, c.x, 2, false, 0, {1, repeats, 8, 0}, kept);
            c.z.SetValue(1023, T(float(kept)));
            break;
        }
        case 16:  // the sum of two tensors as an operator, a scalar on top
            c.z = c.x + c.y;
            c.z(5) = c.z(4);
            break;
        case 17:
            DataCopy(c.z[64], c.x, {4, 2, 2, 6});
            break;
        case 18:
            FusedMulAdd(c.z, c.x, c.y, 1024);
            LeakyRelu(c.z, c.z, T(0.25f), 1024);
            break;
        case 20: {  // registers that reductions write
            T value, index;
            WholeReduceMax(c.z, c.x, lanes, repeats, 1, 1, 8);
            GetReduceRepeatMaxMinSpr(value, index);
            ReduceSum(c.work, c.x, c.work[64], 1024);
            c.z.SetValue(1021, GetReduceRepeatSumSpr<T>());
            c.z.SetValue(1022, value);
            c.z.SetValue(1023, index);
            break;
        }
        case 21:
            Gelu<T, true>(c.z, c.x, 1024);
            break;
        case 22:
            FasterGeluV2(c.z, c.x, c.work.template ReinterpretCast<uint8_t>(), 1024);
            break;
        case 23:
            SwiGLU(c.z, c.x, c.y, 1.5f, 1024);
            break;
        case 24:
            GeGLU(c.z, c.x, c.y, c.work.template ReinterpretCast<uint8_t>());
            break;
        case 25:
            Fmod(c.z, c.x, c.y, 1024);
            break;
        default:
            CreateVecIndex(c.z, T(7.0f), 1024);
    }
    c.Store();
}

extern "C" __global__ __aicore__ void call_half(GM_ADDR gx, GM_ADDR gy, GM_ADDR gz)
{
    call<half>(gx, gy, gz, static_cast<int>(TILING_KEY_VAR));
}

extern "C" __global__ __aicore__ void call_float(GM_ADDR gx, GM_ADDR gy, GM_ADDR gz)
{
    call<float>(gx, gy, gz, static_cast<int>(TILING_KEY_VAR));
}

// x is added to y atomically by every core; the tail is copied without alignment.
extern "C" __global__ __aicore__ void add_up(GM_ADDR gx, GM_ADDR gy)
{
    TPipe pipe;
    TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> through;
    pipe.InitBuffer(through, 1, 256);
    GlobalTensor<float> x;
    GlobalTensor<float> y;
    x.SetGlobalBuffer((__gm__ float*)gx, 45);
    y.SetGlobalBuffer((__gm__ float*)gy, 45);
    LocalTensor<float> a = through.AllocTensor<float>();
    DataCopyPad(a, x, DataCopyExtParams(1, 45 * sizeof(float), 0, 0, 0), DataCopyPadExtParams<float>(true, 0, 3, 0.0f));
    through.EnQue(a);
    a = through.DeQue<float>();
    SetAtomicAdd<float>();
    DataCopyPad(y, a, DataCopyExtParams(1, 45 * sizeof(float), 0, 0, 0));
    SetAtomicNone();
    through.FreeTensor(a);
}

// 256 halves to numbers of 4 bits and back.
extern "C" __global__ __aicore__ void four_bits(GM_ADDR gx, GM_ADDR gq, GM_ADDR gy)
{
    LocalMemAllocator<Hardware::UB> room;
    LocalTensor<half> a = room.Alloc<half, 256>();
    LocalTensor<uint8_t> q = room.Alloc<uint8_t, 128>();
    LocalTensor<half> b = room.Alloc<half, 256>();
    GlobalTensor<half> x;
    GlobalTensor<uint8_t> packed;
    GlobalTensor<half> y;
    x.SetGlobalBuffer((__gm__ half*)gx, 256);
    packed.SetGlobalBuffer((__gm__ uint8_t*)gq, 128);
    y.SetGlobalBuffer((__gm__ half*)gy, 256);
    DataCopy(a, x, 256);
    SetFlag<HardEvent::MTE2_V>(0);
    WaitFlag<HardEvent::MTE2_V>(0);
    LocalTensor<int4b_t> four = q.ReinterpretCast<int4b_t>();
    Cast<int4b_t, half>(four, a, RoundMode::CAST_RINT, 128, 2, {1, 1, 2, 8});
    PipeBarrier<PIPE_V>();
    Cast<half, int4b_t>(b, four, RoundMode::CAST_NONE, 256);
    SetFlag<HardEvent::V_MTE3>(0);
    WaitFlag<HardEvent::V_MTE3>(0);
    DataCopy(packed, q, 128);
    DataCopy(y, b, 256);
}

// 128 scores and their indices become one sorted queue of pairs.
extern "C" __global__ __aicore__ void sort_pairs(GM_ADDR gx, GM_ADDR gindex, GM_ADDR gy)
{
    LocalMemAllocator<Hardware::UB> room;
    LocalTensor<float> scores = room.Alloc<float, 128>();
    LocalTensor<uint32_t> indices = room.Alloc<uint32_t, 128>();
    LocalTensor<float> queues = room.Alloc<float, 256>();
    LocalTensor<float> sorted = room.Alloc<float, 256>();
    GlobalTensor<float> x;
    GlobalTensor<uint32_t> index;
    GlobalTensor<float> y;
    x.SetGlobalBuffer((__gm__ float*)gx, 128);
    index.SetGlobalBuffer((__gm__ uint32_t*)gindex, 128);
    y.SetGlobalBuffer((__gm__ float*)gy, 256);
    DataCopy(scores, x, 128);
    DataCopy(indices, index, 128);
    SetFlag<HardEvent::MTE2_V>(0);
    WaitFlag<HardEvent::MTE2_V>(0);
    Sort32<float>(queues, scores, indices, 4);
    PipeBarrier<PIPE_V>();
    const uint16_t lengths[4] = {32, 32, 32, 32};
    MrgSort<float>(sorted, {queues, queues[64], queues[128], queues[192]}, {lengths, false, 15, 1});
    SetFlag<HardEvent::V_MTE3>(0);
    WaitFlag<HardEvent::V_MTE3>(0);
    DataCopy(y, sorted, 256);
}

// The first 8 numbers of each of 18 rows of 64: in counter mode a repeat of Copy has as many blocks as the mask counts.
extern "C" __global__ __aicore__ void copy_rows(GM_ADDR gx, GM_ADDR gy)
{
    LocalMemAllocator<Hardware::UB> room;
    LocalTensor<int32_t> a = room.Alloc<int32_t, 18 * 64>();
    LocalTensor<int32_t> b = room.Alloc<int32_t, 18 * 8>();
    GlobalTensor<int32_t> x;
    GlobalTensor<int32_t> y;
    x.SetGlobalBuffer((__gm__ int32_t*)gx, 18 * 64);
    y.SetGlobalBuffer((__gm__ int32_t*)gy, 18 * 8);
    DataCopy(a, x, 18 * 64);
    SetFlag<HardEvent::MTE2_V>(0);
    WaitFlag<HardEvent::MTE2_V>(0);
    SetMaskCount();
    SetVectorMask<int32_t, MaskMode::COUNTER>(72);
    Copy<int32_t, false>(b, a, MASK_PLACEHOLDER, 2, {1, 8, 9, 72});
    SetMaskNorm();
    ResetMask();
    SetFlag<HardEvent::V_MTE3>(0);
    WaitFlag<HardEvent::V_MTE3>(0);
    DataCopy(y, b, 18 * 8);
}

// 256 numbers to the places that their offsets name.
extern "C" __global__ __aicore__ void scatter(GM_ADDR gx, GM_ADDR goffset, GM_ADDR gy)
{
    LocalMemAllocator<Hardware::UB> room;
    LocalTensor<float> a = room.Alloc<float, 256>();
    LocalTensor<uint32_t> offsets = room.Alloc<uint32_t, 256>();
    LocalTensor<float> b = room.Alloc<float, 256>();
    GlobalTensor<float> x;
    GlobalTensor<uint32_t> offset;
    GlobalTensor<float> y;
    x.SetGlobalBuffer((__gm__ float*)gx, 256);
    offset.SetGlobalBuffer((__gm__ uint32_t*)goffset, 256);
    y.SetGlobalBuffer((__gm__ float*)gy, 256);
    DataCopy(a, x, 256);
    DataCopy(offsets, offset, 256);
    SetFlag<HardEvent::MTE2_V>(0);
    WaitFlag<HardEvent::MTE2_V>(0);
    Scatter(b, a, offsets, 0, 256);
    SetFlag<HardEvent::V_MTE3>(0);
    WaitFlag<HardEvent::V_MTE3>(0);
    DataCopy(y, b, 256);
}

// (2, 3, 4, 8) to (2, 4, 8, 3).
extern "C" __global__ __aicore__ void channels_last(GM_ADDR gx, GM_ADDR gy)
{
    LocalMemAllocator<Hardware::UB> room;
    LocalTensor<half> a = room.Alloc<half, 192>();
    LocalTensor<half> b = room.Alloc<half, 192>();
    LocalTensor<uint8_t> work = room.Alloc<uint8_t, 3584>();
    GlobalTensor<half> x;
    GlobalTensor<half> y;
    x.SetGlobalBuffer((__gm__ half*)gx, 192);
    y.SetGlobalBuffer((__gm__ half*)gy, 192);
    DataCopy(a, x, 192);
    SetFlag<HardEvent::MTE2_V>(0);
    WaitFlag<HardEvent::MTE2_V>(0);
    Transpose(b, a, work, TransposeParamsExt(2, 3, 4, 8, TransposeType::TRANSPOSE_NCHW2NHWC));
    SetFlag<HardEvent::V_MTE3>(0);
    WaitFlag<HardEvent::V_MTE3>(0);
    DataCopy(y, b, 192);
}

// Every core passes 8 numbers on to the next one: all at once (key 0), or one core after another (key 1).
extern "C" __global__ __aicore__ void pass_on(GM_ADDR gx, GM_ADDR gy, GM_ADDR gsync)
{
    TPipe pipe;
    TBuf<> buffer;
    pipe.InitBuffer(buffer, 2048);
    GlobalTensor<int32_t> x;
    GlobalTensor<int32_t> y;
    GlobalTensor<int32_t> sync;
    x.SetGlobalBuffer((__gm__ int32_t*)gx);
    y.SetGlobalBuffer((__gm__ int32_t*)gy);
    sync.SetGlobalBuffer((__gm__ int32_t*)gsync);
    LocalTensor<int32_t> a = buffer.Get<int32_t>();
    LocalTensor<int32_t> room = a[64];
    const int32_t core = GetBlockIdx();
    const int32_t cores = GetBlockNum();
    if (TILING_KEY_IS(0)) {
        DataCopy(a, x[core * 8], 8);
        SetFlag<HardEvent::MTE2_MTE3>(0);
        WaitFlag<HardEvent::MTE2_MTE3>(0);
        DataCopy(x[core * 8], a, 8);
        SyncAll(sync, room);
        DataCopy(a, x[(core + cores - 1) % cores * 8], 8);
    } else {
        if (core + 1 < cores) { // the cores start in order, and the last one is the first that may go on
            IBWait(sync, room, core + 1, 3);
        }
        DataCopy(a, core + 1 < cores ? y[(core + 1) * 8] : x, 8);
        SetFlag<HardEvent::MTE2_V>(0);
        WaitFlag<HardEvent::MTE2_V>(0);
        Adds(a, a, 1, 8);
        SetFlag<HardEvent::V_MTE3>(0);
        WaitFlag<HardEvent::V_MTE3>(0);
    }
    SetFlag<HardEvent::MTE2_MTE3>(1);
    WaitFlag<HardEvent::MTE2_MTE3>(1);
    DataCopy(y[core * 8], a, 8);
    if (TILING_KEY_IS(1) && core > 0) {
        IBSet(sync, room, core, 3);
    }
}

// Twice, each core in its turn: x = 2 x + index of the core.
extern "C" __global__ __aicore__ void take_turns(GM_ADDR gx, GM_ADDR gsync)
{
    TPipe pipe;
    TBuf<> buffer;
    pipe.InitBuffer(buffer, 2048);
    GlobalTensor<float> x;
    GlobalTensor<int32_t> sync;
    x.SetGlobalBuffer((__gm__ float*)gx);
    sync.SetGlobalBuffer((__gm__ int32_t*)gsync);
    LocalTensor<float> a = buffer.Get<float>();
    LocalTensor<int32_t> room = buffer.Get<int32_t>()[64];
    InitDetermineComputeWorkspace(sync, room);
    for (int turn = 0; turn < 2; ++turn) {
        WaitPreBlock(sync, room);
        DataCopy(a, x, 8);
        SetFlag<HardEvent::MTE2_V>(0);
        WaitFlag<HardEvent::MTE2_V>(0);
        Muls(a, a, 2.0f, 8);
        Adds(a, a, static_cast<float>(GetBlockIdx()), 8);
        SetFlag<HardEvent::V_MTE3>(0);
        WaitFlag<HardEvent::V_MTE3>(0);
        DataCopy(x, a, 8);
        NotifyNextBlock(sync, room);
    }
}

struct Shape {
    uint32_t rows;
    uint32_t columns;
};

// Tiling data through the toolchain's macros.
extern "C" __global__ __aicore__ void shape(GM_ADDR gy, GM_ADDR tiling)
{
    REGISTER_TILING_DEFAULT(Shape);
    GET_TILING_DATA(first, tiling);
    GET_TILING_DATA_WITH_STRUCT(Shape, second, tiling);
    GlobalTensor<uint32_t> y;
    y.SetGlobalBuffer((__gm__ uint32_t*)gy, 2);
    y.SetValue(0, first.rows);
    y.SetValue(1, second.columns);
}
