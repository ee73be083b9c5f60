// Gradients of NeoCell's coefficients, y = A x B:
//
//     grad_a[p, t] = sum over rows m kOut + p and columns of dy[m kOut + p, :] * (x B)[m kIn + t, :]
//     grad_b[q, t] = sum over rows and columns n kOut + q of dy[:, n kOut + q] * (A x)[:, n kIn + t]
//
// for every channel and image. The gradient of x needs no kernel of its own: it is the forward operator with transposed
// matrices (ops/packing.py, `transposed`).
//
// Layout
//   That of neo_cell.cpp: NC1HWC0 in memory, rows of 16 coefficients. The result has a partial sum for each image, and
//   the caller sums over the images. So no two cores add to the same place: the result depends neither on the number
//   of cores nor on their order, and the operator needs no atomics.
//
// How it works
//   As in neo_cell.cpp a strip of rows is computed at a time, here all of it in float32. A x and x B are computed as
//   there. Each phase and tap is then one sum of products over the strip: up to 32 repeats stay apart in a scratch
//   buffer while the instructions run over the rest, and are then added pairwise, for accuracy as well as for speed. A
//   core does whole maps, so that each element of the result is written once.
//
// What bounds it
//   Repeats of MulAddDst: k taps of each phase over the whole strip, for both sides, besides the two products. Margins
//   of strips are loaded again, because loading them costs a fraction of these products.
#include "neo_cell_base.h"

namespace NeoCell {

// The kernel for one type S in memory; all arithmetic is in float32.
template <typename S>
class NeoCellGradient : public Products<float> {
public:
    __aicore__ inline void Init(
        const NeoCellTiling& tiling, GM_ADDR x, GM_ADDR dy, GM_ADDR coefA, GM_ADDR coefB, GM_ADDR gradA, GM_ADDR gradB)
    {
        Products<float>::Init(tiling);
        const NeoCellTiling& t = tiling;
        walk_.Init(t, false);
        const int64_t maps = static_cast<int64_t>(t.images) * t.planes * t.c0;
        const int64_t rowsOfA = static_cast<int64_t>(t.totalA) * NEO_CELL_LANES;
        const int64_t rowsOfB = static_cast<int64_t>(t.totalB) * NEO_CELL_LANES;
        x_.SetGlobalBuffer(reinterpret_cast<__gm__ S*>(x), maps * t.hIn * t.wIn);
        dy_.SetGlobalBuffer(reinterpret_cast<__gm__ S*>(dy), maps * t.hOut * t.wOut);
        coefA_.SetGlobalBuffer(reinterpret_cast<__gm__ S*>(coefA), rowsOfA);
        coefB_.SetGlobalBuffer(reinterpret_cast<__gm__ S*>(coefB), rowsOfB);
        gradA_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gradA), rowsOfA * t.images);
        gradB_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gradB), rowsOfB * t.images);
        const int32_t window = t.windowRows * t.windowColumns * t.c0;
        const int32_t output = t.strip * t.columns * t.c0;
        const int32_t rows = (t.mostA + t.mostB) * NEO_CELL_LANES;
        pipe_.InitBuffer(input_, 2, window * sizeof(S));
        pipe_.InitBuffer(upstream_, 2, output * sizeof(S));
        pipe_.InitBuffer(coefficient_, 2, rows * sizeof(S));
        pipe_.InitBuffer(sum_, 1, rows * sizeof(float));
        pipe_.InitBuffer(left_, t.strip * t.windowColumns * t.c0 * sizeof(float));
        pipe_.InitBuffer(right_, t.windowRows * t.columns * t.c0 * sizeof(float));
        pipe_.InitBuffer(scratch_, NEO_CELL_SCRATCH * NEO_CELL_GROUP * NEO_CELL_BLOCK);
        if constexpr (CAST) {
            pipe_.InitBuffer(wideInput_, window * sizeof(float));
            pipe_.InitBuffer(wideUpstream_, output * sizeof(float));
            pipe_.InitBuffer(wideCoefficient_, rows * sizeof(float));
        }
    }

    __aicore__ inline void Process()
    {
        Strip current;
        Strip next;
        if (!walk_.Next(current)) {
            return;
        }
        const int32_t core = static_cast<int32_t>(AscendC::GetBlockIdx());
        offsetA_ = tiling_->offsetA[core];
        offsetB_ = tiling_->offsetB[core];
        block_ = -1;
        Begin(current);
        Load(current);
        bool more = true;
        while (more) {
            LocalTensor<S> window;
            LocalTensor<S> upstream;
            if (!current.Empty()) {
                window = input_.template DeQue<S>();
                upstream = upstream_.template DeQue<S>();
            }
            more = walk_.Next(next);
            // Issued before the arithmetic of this strip, so that MTE2 loads while V computes.
            if (more) {
                Load(next);
            }
            if (!current.Empty()) {
                Compute(current, window, upstream);
                input_.FreeTensor(window);
                upstream_.FreeTensor(upstream);
            }
            const bool same = more && next.plane == current.plane && next.image == current.image;
            if (!same) {
                Store(current);
                if (more) {
                    Begin(next);
                }
            }
            current = next;
        }
        coefficient_.FreeTensor(coefficients_);
    }

private:
    static constexpr bool CAST = sizeof(S) != sizeof(float);

    // Begin a new map: load its coefficients, if the map before had others, and clear the sum.
    __aicore__ inline void Begin(const Strip& strip)
    {
        const NeoCellTiling& t = *tiling_;
        const int32_t block = strip.plane * t.c0 / NEO_CELL_LANES;
        if (block != block_) {
            const int32_t channel = block * NEO_CELL_LANES;
            int32_t run = strip.run;
            while (run > 0 && t.runEnd[run - 1] > channel) {
                --run;
            }
            if (block_ >= 0) {
                coefficient_.FreeTensor(coefficients_);
                offsetA_ += rowsA_;
                offsetB_ += rowsB_;
            }
            block_ = block;
            rowsA_ = NeoCellBlockRows(t, t.runA, run, channel);
            rowsB_ = NeoCellBlockRows(t, t.runB, run, channel);
            LocalTensor<S> local = coefficient_.template AllocTensor<S>();
            AscendC::DataCopy(local, coefA_[offsetA_ * NEO_CELL_LANES], rowsA_ * NEO_CELL_LANES);
            AscendC::DataCopy(
                local[rowsA_ * NEO_CELL_LANES], coefB_[offsetB_ * NEO_CELL_LANES], rowsB_ * NEO_CELL_LANES);
            coefficient_.EnQue(local);
            coefficients_ = coefficient_.template DeQue<S>();
            if constexpr (CAST) {
                Widen(wideCoefficient_.template Get<float>(), coefficients_, (rowsA_ + rowsB_) * NEO_CELL_LANES);
            }
        }
        // One buffer: the store of the map before has to be done, which this waits for.
        total_ = sum_.template AllocTensor<float>();
        AscendC::Duplicate(total_, 0.0f, (rowsA_ + rowsB_) * NEO_CELL_LANES);
        AscendC::PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void Store(const Strip& strip)
    {
        const NeoCellTiling& t = *tiling_;
        sum_.EnQue(total_);
        total_ = sum_.template DeQue<float>();
        const int64_t image = strip.image;
        const int32_t lane = strip.plane * t.c0 % NEO_CELL_LANES;
        StoreRows(gradA_[(image * t.totalA + offsetA_) * NEO_CELL_LANES + lane], total_[lane], rowsA_);
        StoreRows(
            gradB_[(image * t.totalB + offsetB_) * NEO_CELL_LANES + lane], total_[rowsA_ * NEO_CELL_LANES + lane],
            rowsB_);
        sum_.FreeTensor(total_);
    }

    // Store rows of coefficients. With c0 = 8 a row belongs to two planes, and this one stores its half.
    __aicore__ inline void StoreRows(const GlobalTensor<float>& dst, const LocalTensor<float>& src, int32_t rows)
    {
        const int32_t c0 = tiling_->c0;
        if (c0 == NEO_CELL_LANES) {
            AscendC::DataCopy(dst, src, static_cast<uint32_t>(rows * NEO_CELL_LANES));
            return;
        }
        const uint16_t own = static_cast<uint16_t>(c0 / LANES);
        const uint16_t others = static_cast<uint16_t>((NEO_CELL_LANES - c0) / LANES);
        AscendC::DataCopy(dst, src, AscendC::DataCopyParams(static_cast<uint16_t>(rows), own, others, others));
    }

    __aicore__ inline void Load(const Strip& strip)
    {
        if (strip.Empty()) {
            return;
        }
        const NeoCellTiling& t = *tiling_;
        const int64_t map = static_cast<int64_t>(strip.image) * t.planes + strip.plane;
        LocalTensor<S> window = input_.template AllocTensor<S>();
        LoadMap(
            window, x_, {map, 1, t.hIn, t.wIn, t.c0, strip.first, strip.last}, strip.Window(), strip.top, strip.bottom);
        input_.EnQue(window);
        LocalTensor<S> upstream = upstream_.template AllocTensor<S>();
        LoadMap(
            upstream, dy_, {map, 1, t.hOut, t.wOut, t.c0, strip.left, strip.right}, strip.Output(), strip.begin,
            strip.end);
        upstream_.EnQue(upstream);
    }

    __aicore__ inline void Widen(const LocalTensor<float>& dst, const LocalTensor<S>& src, int32_t count)
    {
        AscendC::Cast(dst, src, AscendC::RoundMode::CAST_NONE, count);
        AscendC::PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void Compute(
        const Strip& strip, const LocalTensor<S>& window, const LocalTensor<S>& upstream)
    {
        const int32_t c0 = tiling_->c0;
        if constexpr (CAST) {
            LocalTensor<float> x = wideInput_.template Get<float>();
            LocalTensor<float> dy = wideUpstream_.template Get<float>();
            Widen(x, window, strip.WindowRows() * strip.WindowColumns() * c0);
            Widen(dy, upstream, strip.Rows() * strip.Columns() * c0);
            Correlate(strip, x, dy, wideCoefficient_.template Get<float>());
        } else {
            Correlate(strip, window, upstream, coefficients_);
        }
    }

    __aicore__ inline void Correlate(
        const Strip& strip, const LocalTensor<float>& x, const LocalTensor<float>& dy,
        const LocalTensor<float>& coefficients)
    {
        const NeoCellTiling& t = *tiling_;
        const int32_t blocks = Blocks();
        const int32_t pitchIn = strip.WindowColumns() * blocks;
        const int32_t pitchOut = strip.Columns() * blocks;
        const int32_t rowsOfA = rowsA_ * NEO_CELL_LANES;
        const Range rows{strip.begin, strip.end, t.hIn, strip.Output(), strip.Window()};
        const Range columns{
            strip.left, strip.right, t.wIn, MakeLine(strip.left, strip.Columns(), 1),
            MakeLine(strip.first, strip.WindowColumns(), 1)};
        LocalTensor<float> left = left_.template Get<float>();
        LocalTensor<float> right = right_.template Get<float>();
        Product(
            left, x, coefficients, t.runA, strip.plane, strip.run, rows,
            {strip.WindowColumns(), 1, blocks, blocks, pitchIn, pitchIn, 0});
        Product(
            right, x, coefficients[rowsOfA], t.runB, strip.plane, strip.run, columns,
            {strip.WindowRows(), 1, pitchOut, pitchIn, blocks, blocks, 0});
        Sums(
            total_, dy, right, t.runA, strip.plane, strip.run, rows,
            {strip.Columns(), 1, blocks, blocks, pitchOut, pitchOut, 0});
        Sums(
            total_[rowsOfA], dy, left, t.runB, strip.plane, strip.run, columns,
            {strip.Rows(), 1, pitchOut, pitchIn, blocks, blocks, 0});
    }

    // Add to each row of coefficients of a side the products of `dy` (dst of the grid) and `values` (src).
    __aicore__ inline void Sums(
        const LocalTensor<float>& total, const LocalTensor<float>& dy, const LocalTensor<float>& values,
        const uint16_t* sides, int32_t plane, int32_t run, const Range& range, const Grid& across)
    {
        Parts parts;
        parts.Init(*tiling_, sides, plane, run, LANES);
        while (parts.Next()) {
            Plan(sides, parts, range, across);
            SetLanes(parts.lane, parts.lane + parts.end - parts.begin);
            const Phases& p = *phases_;
            Grid grid = across;
            grid.dstAlong = p.kOut * across.dstAlong;
            grid.srcAlong = p.kIn * across.srcAlong;
            for (int32_t phase = 0; phase < p.kOut; ++phase) {
                for (int32_t tap = p.start[phase]; tap < p.stop[phase]; ++tap) {
                    int32_t low = p.low[phase];
                    int32_t high = p.high[phase];
                    Clip(tap, range.size, low, high);
                    if (low > high) {
                        continue;
                    }
                    grid.repeats = high - low + 1;
                    const int32_t output = range.to.At(low * p.kOut + phase) * across.dstAlong;
                    const int32_t input = range.from.At(low * p.kIn + tap) * across.srcAlong;
                    Sum(total[(p.row[phase] + tap) * NEO_CELL_LANES + parts.column],
                        dy[(output + parts.block) * LANES], values[(input + parts.block) * LANES], grid);
                }
            }
        }
    }

    // Add the sum of a * b over a grid to `total`, lane by lane.
    __aicore__ inline void Sum(
        const LocalTensor<float>& total, const LocalTensor<float>& a, const LocalTensor<float>& b, const Grid& grid)
    {
        const int32_t groups = grid.lanes / NEO_CELL_GROUP;
        if (Fits(grid.dstAlong, grid.srcAlong)) {
            const int32_t step = Fits(grid.dstAcross, grid.srcAcross) ? NEO_CELL_GROUP : 1;
            for (int32_t done = 0; done < grid.repeats; done += NEO_CELL_SCRATCH) {
                const int32_t count = NeoCellMin(NEO_CELL_SCRATCH, grid.repeats - done);
                Start(count);
                // Consecutive instructions add to the same scratch repeats: only repeats within one are independent.
                for (int32_t lane = 0; lane < grid.lanes; lane += step) {
                    const int32_t output = done * grid.dstAlong + lane * grid.dstAcross;
                    const int32_t input = done * grid.srcAlong + lane * grid.srcAcross;
                    Accumulate(
                        0, NeoCellMin(step, grid.lanes - lane), count, grid.dstAlong, grid.srcAlong,
                        a[output * LANES], b[input * LANES], grid);
                }
                Finish(total, count);
            }
            return;
        }
        // Where distances along the axis do not fit, those across it do: there a position's blocks are neighbours.
        const int32_t count = NeoCellCeil(grid.lanes, NEO_CELL_GROUP);
        Start(count);
        for (int32_t i = 0; i < grid.repeats; ++i) {
            const LocalTensor<float> x = a[i * grid.dstAlong * LANES];
            const LocalTensor<float> y = b[i * grid.srcAlong * LANES];
            if (groups > 0) {
                Accumulate(
                    0, NEO_CELL_GROUP, groups, NEO_CELL_GROUP * grid.dstAcross, NEO_CELL_GROUP * grid.srcAcross, x, y,
                    grid);
            }
            if (groups < count) {
                const int32_t lane = groups * NEO_CELL_GROUP;
                Accumulate(
                    groups, grid.lanes - lane, 1, 0, 0, x[lane * grid.dstAcross * LANES],
                    y[lane * grid.srcAcross * LANES], grid);
            }
        }
        Finish(total, count);
    }

    // Clear the first `count` repeats of the scratch buffer.
    __aicore__ inline void Start(int32_t count)
    {
        SetBlocks(NEO_CELL_GROUP);
        AscendC::Duplicate<float, false>(
            scratch_.template Get<float>(), 0.0f, mask_, static_cast<uint8_t>(count), 1,
            NEO_CELL_GROUP);
        AscendC::PipeBarrier<PIPE_V>();
    }

    // scratch[repeat + i] += a * b for `count` repeats of `blocks` blocks across.
    __aicore__ inline void Accumulate(
        int32_t repeat, int32_t blocks, int32_t count, int32_t aStride, int32_t bStride, const LocalTensor<float>& a,
        const LocalTensor<float>& b, const Grid& grid)
    {
        SetBlocks(blocks);
        // For a single block the distance across has no meaning, so it does no harm that it may not fit.
        const AscendC::BinaryRepeatParams strides(
            1, static_cast<uint8_t>(grid.dstAcross), static_cast<uint8_t>(grid.srcAcross), NEO_CELL_GROUP,
            static_cast<uint8_t>(aStride), static_cast<uint8_t>(bStride));
        const LocalTensor<float> scratch = scratch_.template Get<float>();
        AscendC::MulAddDst<float, float, false>(
            scratch[repeat * NEO_CELL_GROUP * LANES], a, b, mask_, static_cast<uint8_t>(count),
            strides);
        AscendC::PipeBarrier<PIPE_V>();
    }

    // Add the first `count` repeats of the scratch buffer, and their 8 blocks, to `total`. Halving both each time
    // keeps the rounding error at the depth of a tree.
    __aicore__ inline void Finish(const LocalTensor<float>& total, int32_t count)
    {
        const LocalTensor<float> scratch = scratch_.template Get<float>();
        SetBlocks(NEO_CELL_GROUP);
        for (int32_t upper = (count + 1) / 2; count > 1; upper = (count + 1) / 2) {
            Fold(scratch, scratch, scratch[upper * NEO_CELL_GROUP * LANES], count - upper);
            count = upper;
        }
        for (int32_t blocks = NEO_CELL_GROUP / 2; blocks > 0; blocks /= 2) {
            SetBlocks(blocks);
            Fold(scratch, scratch, scratch[blocks * LANES], 1);
        }
        Fold(total, total, scratch, 1);
    }

    __aicore__ inline void Fold(
        const LocalTensor<float>& dst, const LocalTensor<float>& a, const LocalTensor<float>& b, int32_t repeats)
    {
        AscendC::Add<float, false>(
            dst, a, b, mask_, static_cast<uint8_t>(repeats),
            AscendC::BinaryRepeatParams(1, 1, 1, NEO_CELL_GROUP, NEO_CELL_GROUP, NEO_CELL_GROUP));
        AscendC::PipeBarrier<PIPE_V>();
    }

    Walk walk_;
    AscendC::TPipe pipe_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> input_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> upstream_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> coefficient_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> sum_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> left_;  // A x
    AscendC::TBuf<AscendC::TPosition::VECCALC> right_; // x B
    AscendC::TBuf<AscendC::TPosition::VECCALC> scratch_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> wideInput_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> wideUpstream_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> wideCoefficient_;
    GlobalTensor<S> x_;
    GlobalTensor<S> dy_;
    GlobalTensor<S> coefA_;
    GlobalTensor<S> coefB_;
    GlobalTensor<float> gradA_;
    GlobalTensor<float> gradB_;
    LocalTensor<S> coefficients_;
    LocalTensor<float> total_;
    int32_t block_; // the block of 16 channels whose coefficients are held, -1 for none
    int32_t offsetA_;
    int32_t offsetB_;
    int32_t rowsA_;
    int32_t rowsB_;
};

} // namespace NeoCell

extern "C" __global__ __aicore__ void neo_cell_grad(
    GM_ADDR x, GM_ADDR dy, GM_ADDR coef_a, GM_ADDR coef_b, GM_ADDR grad_a, GM_ADDR grad_b, GM_ADDR workspace,
    GM_ADDR tiling)
{
#if __CCE_AICORE__ == 200 // the 310P: blocks beyond its AI cores run on its vector cores
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_VECTOR_CORE);
#endif
    REGISTER_TILING_DEFAULT(NeoCellTiling);
    GET_TILING_DATA_WITH_STRUCT(NeoCellTiling, data, tiling);
    if (TILING_KEY_IS(0)) {
        NeoCell::NeoCellGradient<DTYPE_X> kernel;
        kernel.Init(data, x, dy, coef_a, coef_b, grad_a, grad_b);
        kernel.Process();
    }
}
