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
//   Several images of a small map share a strip, as in neo_cell.cpp. Each still has sums of its own, in an order that
//   does not depend on its neighbours: they lie side by side in the scratch buffer and in the result, so that one
//   instruction continues the same sum of all images.
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
        const int32_t window = t.group * t.windowRows * t.windowColumns * t.c0;
        const int32_t output = t.group * t.strip * t.columns * t.c0;
        const int32_t product = NeoCellMax(t.strip * t.windowColumns, t.windowRows * t.columns);
        const int32_t rows = (t.mostA + t.mostB) * NEO_CELL_LANES;
        pipe_.InitBuffer(input_, 2, window * sizeof(S));
        pipe_.InitBuffer(upstream_, 2, output * sizeof(S));
        pipe_.InitBuffer(coefficient_, 2, rows * sizeof(S));
        pipe_.InitBuffer(sum_, 1, t.group * rows * sizeof(float));
        pipe_.InitBuffer(product_, t.group * product * t.c0 * sizeof(float));
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

    // The images of a strip: how many, and how far apart in blocks.
    struct Images {
        int32_t count;
        int32_t dst;
        int32_t src;
    };

    // Begin new maps: load their coefficients, if the maps before had others, and clear the sums.
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
        // One buffer: the store of the maps before has to be done, which this waits for.
        total_ = sum_.template AllocTensor<float>();
        AscendC::Duplicate(total_, 0.0f, (rowsA_ + rowsB_) * strip.images * NEO_CELL_LANES);
        AscendC::PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void Store(const Strip& strip)
    {
        const NeoCellTiling& t = *tiling_;
        sum_.EnQue(total_);
        total_ = sum_.template DeQue<float>();
        const int32_t lane = strip.plane * t.c0 % NEO_CELL_LANES;
        for (int32_t i = 0; i < strip.images; ++i) {
            const int64_t image = strip.image + i;
            const int32_t first = i * NEO_CELL_LANES + lane;
            StoreRows(
                gradA_[(image * t.totalA + offsetA_) * NEO_CELL_LANES + lane], total_[first], rowsA_, strip.images);
            StoreRows(
                gradB_[(image * t.totalB + offsetB_) * NEO_CELL_LANES + lane],
                total_[rowsA_ * strip.images * NEO_CELL_LANES + first], rowsB_, strip.images);
        }
        sum_.FreeTensor(total_);
    }

    // Store rows of coefficients of one of `images`, whose rows alternate in UB. With c0 = 8 a row belongs to two
    // planes, and this one stores its half.
    __aicore__ inline void StoreRows(
        const GlobalTensor<float>& dst, const LocalTensor<float>& src, int32_t rows, int32_t images)
    {
        const int32_t c0 = tiling_->c0;
        if (c0 == NEO_CELL_LANES && images == 1) {
            AscendC::DataCopy(dst, src, static_cast<uint32_t>(rows * NEO_CELL_LANES));
            return;
        }
        const int32_t own = c0 / LANES;
        AscendC::DataCopy(
            dst, src,
            AscendC::DataCopyParams(
                static_cast<uint16_t>(rows), static_cast<uint16_t>(own), static_cast<uint16_t>(images * ROW - own),
                static_cast<uint16_t>(ROW - own)));
    }

    __aicore__ inline void Load(const Strip& strip)
    {
        if (strip.Empty()) {
            return;
        }
        const NeoCellTiling& t = *tiling_;
        LocalTensor<S> window = input_.template AllocTensor<S>();
        for (int32_t i = 0; i < strip.images; ++i) {
            LoadMap(
                window[i * strip.WindowColumns() * t.c0], x_, MapOf(t, strip, i, t.hIn, t.wIn, strip.first, strip.last),
                strip.Window(), strip.top, strip.bottom);
        }
        input_.EnQue(window);
        LocalTensor<S> upstream = upstream_.template AllocTensor<S>();
        for (int32_t i = 0; i < strip.images; ++i) {
            LoadMap(
                upstream[i * strip.Columns() * t.c0], dy_,
                MapOf(t, strip, i, t.hOut, t.wOut, strip.left, strip.right), strip.Output(), strip.begin, strip.end);
        }
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
            Widen(x, window, strip.WindowRows() * strip.WindowPitch() * c0);
            Widen(dy, upstream, strip.Rows() * strip.Pitch() * c0);
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
        const int32_t pitchIn = strip.WindowPitch() * blocks;
        const int32_t pitchOut = strip.Pitch() * blocks;
        const int32_t widthIn = strip.WindowColumns() * blocks;
        const int32_t widthOut = strip.Columns() * blocks;
        const int32_t rowsOfA = rowsA_ * NEO_CELL_LANES;
        const Range rows{strip.begin, strip.end, t.hIn, strip.Output(), strip.Window()};
        const Range columns{
            strip.left, strip.right, t.wIn, MakeLine(strip.left, strip.Columns(), 1),
            MakeLine(strip.first, strip.WindowColumns(), 1)};
        LocalTensor<float> product = product_.template Get<float>();
        Product(
            product, x, coefficients, t.runA, strip.plane, strip.run, rows,
            {strip.WindowPitch(), 1, blocks, blocks, pitchIn, pitchIn, 0});
        Sums(
            total_[rowsOfA * strip.images], dy, product, t.runB, strip.plane, strip.run, columns,
            {strip.Rows(), 1, pitchOut, pitchIn, blocks, blocks, 0}, {strip.images, widthOut, widthIn});
        Product(
            product, x, coefficients[rowsOfA], t.runB, strip.plane, strip.run, columns,
            {strip.WindowRows() * strip.images, 1, widthOut, widthIn, blocks, blocks, 0});
        Sums(
            total_, dy, product, t.runA, strip.plane, strip.run, rows,
            {strip.Columns(), 1, blocks, blocks, pitchOut, pitchOut, 0}, {strip.images, widthOut, widthOut});
    }

    // Add to each row of coefficients of a side the products of `dy` (dst of the grid) and `values` (src).
    __aicore__ inline void Sums(
        const LocalTensor<float>& total, const LocalTensor<float>& dy, const LocalTensor<float>& values,
        const uint16_t* sides, int32_t plane, int32_t run, const Range& range, const Grid& across,
        const Images& images)
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
                    Sum(total[(p.row[phase] + tap) * images.count * NEO_CELL_LANES + parts.column],
                        dy[(output + parts.block) * LANES], values[(input + parts.block) * LANES], grid, images);
                }
            }
        }
    }

    // Add the sum of a * b over a grid to `total`, lane by lane, for each image. Whether distances along the axis fit
    // into an instruction decides on the order of the sum. Where images share a strip, they do for each by itself
    // (NeoCellMostImages), and the grids of all images fit into the scratch buffer.
    __aicore__ inline void Sum(
        const LocalTensor<float>& total, const LocalTensor<float>& a, const LocalTensor<float>& b, const Grid& grid,
        const Images& images)
    {
        if (images.count == 1 && !Fits(grid.dstAlong, grid.srcAlong)) {
            SumAcross(total, a, b, grid);
            return;
        }
        const int32_t step = Fits(grid.dstAcross, grid.srcAcross) ? NEO_CELL_GROUP : 1;
        for (int32_t done = 0; done < grid.repeats; done += NEO_CELL_SCRATCH) {
            const int32_t count = NeoCellMin(NEO_CELL_SCRATCH, grid.repeats - done);
            // Consecutive instructions add to the same scratch repeats: only repeats within one are independent.
            for (int32_t lane = 0; lane < grid.lanes; lane += step) {
                const int32_t output = done * grid.dstAlong + lane * grid.dstAcross;
                const int32_t input = done * grid.srcAlong + lane * grid.srcAcross;
                SetBlocks(NeoCellMin(step, grid.lanes - lane));
                Accumulate(lane == 0, count, a[output * LANES], b[input * LANES], grid, images);
            }
            Finish(total, count, NeoCellMin(step, grid.lanes), images.count);
        }
    }

    // The same where distances along the axis do not fit: those across it do, because there a position's blocks are
    // neighbours.
    __aicore__ inline void SumAcross(
        const LocalTensor<float>& total, const LocalTensor<float>& a, const LocalTensor<float>& b, const Grid& grid)
    {
        const int32_t groups = grid.lanes / NEO_CELL_GROUP;
        const int32_t count = NeoCellCeil(grid.lanes, NEO_CELL_GROUP);
        const int32_t lane = groups * NEO_CELL_GROUP;
        SetBlocks(NEO_CELL_GROUP);
        AscendC::Duplicate<float, false>(
            scratch_.template Get<float>(), 0.0f, mask_, static_cast<uint8_t>(count), 1, NEO_CELL_GROUP);
        AscendC::PipeBarrier<PIPE_V>();
        for (int32_t i = 0; i < grid.repeats; ++i) {
            const LocalTensor<float> x = a[i * grid.dstAlong * LANES];
            const LocalTensor<float> y = b[i * grid.srcAlong * LANES];
            if (groups > 0) {
                SetBlocks(NEO_CELL_GROUP);
                Multiply(
                    false, 0, groups, NEO_CELL_GROUP, NEO_CELL_GROUP * grid.dstAcross, NEO_CELL_GROUP * grid.srcAcross,
                    x, y, grid);
            }
            if (groups < count) {
                SetBlocks(grid.lanes - lane);
                Multiply(
                    false, groups, 1, 0, 0, 0, x[lane * grid.dstAcross * LANES], y[lane * grid.srcAcross * LANES],
                    grid);
            }
        }
        Finish(total, count, NEO_CELL_GROUP, 1);
    }

    // scratch[i * images + image] += a * b, or = where `first`, for `count` repeats i along the axis. Repeats of an
    // instruction are either those, or the images, whichever takes fewer instructions: the sums are the same.
    __aicore__ inline void Accumulate(
        bool first, int32_t count, const LocalTensor<float>& a, const LocalTensor<float>& b, const Grid& grid,
        const Images& images)
    {
        if (images.count <= count && Fits(grid.dstAlong, grid.srcAlong)) {
            for (int32_t i = 0; i < images.count; ++i) {
                Multiply(
                    first, i, count, images.count * NEO_CELL_GROUP, grid.dstAlong, grid.srcAlong,
                    a[i * images.dst * LANES], b[i * images.src * LANES], grid);
            }
            return;
        }
        for (int32_t i = 0; i < count; ++i) {
            Multiply(
                first, i * images.count, images.count, NEO_CELL_GROUP, images.dst, images.src,
                a[i * grid.dstAlong * LANES], b[i * grid.srcAlong * LANES], grid);
        }
    }

    // Multiply a and b, into the scratch buffer from `repeat` on or, unless `first`, added to what is there. The mask
    // is set already. For a single block the distance across has no meaning, so it does no harm that it may not fit.
    __aicore__ inline void Multiply(
        bool first, int32_t repeat, int32_t count, int32_t stride, int32_t aStride, int32_t bStride,
        const LocalTensor<float>& a, const LocalTensor<float>& b, const Grid& grid)
    {
        const AscendC::BinaryRepeatParams strides(
            1, static_cast<uint8_t>(grid.dstAcross), static_cast<uint8_t>(grid.srcAcross),
            static_cast<uint8_t>(stride), static_cast<uint8_t>(aStride), static_cast<uint8_t>(bStride));
        const LocalTensor<float> dst = scratch_.template Get<float>()[repeat * NEO_CELL_GROUP * LANES];
        if (first) {
            AscendC::Mul<float, false>(dst, a, b, mask_, static_cast<uint8_t>(count), strides);
        } else {
            AscendC::MulAddDst<float, float, false>(dst, a, b, mask_, static_cast<uint8_t>(count), strides);
        }
        AscendC::PipeBarrier<PIPE_V>();
    }

    // Add the first `count` repeats of each image in the scratch buffer, and their `blocks` blocks, to `total`. Halving
    // both each time keeps the rounding error at the depth of a tree.
    __aicore__ inline void Finish(const LocalTensor<float>& total, int32_t count, int32_t blocks, int32_t images)
    {
        const LocalTensor<float> scratch = scratch_.template Get<float>();
        SetBlocks(blocks);
        for (int32_t upper = (count + 1) / 2; count > 1; upper = (count + 1) / 2) {
            Fold(scratch, scratch[upper * images * NEO_CELL_GROUP * LANES], (count - upper) * images, NEO_CELL_GROUP);
            count = upper;
        }
        for (int32_t upper = (blocks + 1) / 2; blocks > 1; upper = (blocks + 1) / 2) {
            SetBlocks(blocks - upper);
            Fold(scratch, scratch[upper * LANES], images, NEO_CELL_GROUP);
            blocks = upper;
        }
        SetBlocks(1);
        Fold(total, scratch, images, ROW);
    }

    // Add repeats of the scratch buffer to `dst`, whose repeats are `stride` blocks apart.
    __aicore__ inline void Fold(
        const LocalTensor<float>& dst, const LocalTensor<float>& from, int32_t repeats, int32_t stride)
    {
        AscendC::Add<float, false>(
            dst, dst, from, mask_, static_cast<uint8_t>(repeats),
            AscendC::BinaryRepeatParams(
                1, 1, 1, static_cast<uint8_t>(stride), static_cast<uint8_t>(stride), NEO_CELL_GROUP));
        AscendC::PipeBarrier<PIPE_V>();
    }

    Walk walk_;
    AscendC::TPipe pipe_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> input_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> upstream_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> coefficient_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> sum_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> product_; // A x, then x B
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
