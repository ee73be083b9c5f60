// NeoCell forward: y = A x B + bias for every channel, A and B block-diagonal (ops/packing.py has the equations).
//
// Layout
//   Storage is NC1HWC0: a block of 32 bytes holds 16 channels (float16) of one position. One vector instruction does
//   the same multiply-add for 8 positions of 16 channels in each repeat, with the coefficients of the 16 channels
//   broadcast over the positions by strides of zero. Only the vector unit works; nothing in between goes to memory.
//
// How it works
//   Both products run on a strip of rows in the unified buffer (UB): first A x (taps over rows), then the product with
//   B (taps over columns). A comes first because then neighbouring strips share input rows, which are loaded once and
//   kept in UB by a copy, and never results. While a strip is computed, the next one is loaded and the one before is
//   stored.
//
//   Rows of a strip lie in UB phase by phase (rows r, r + k, r + 2 k, ...), where the copies from and to memory put
//   them. So a tap of a phase in A x is one instruction over all its rows and columns. In the product with B the 8
//   blocks of a repeat are either rows, with repeats over the columns of a phase, or columns of a phase, with repeats
//   over rows: `Cost` chooses, and it also counts conflicts between banks. Where a map holds hardly more than one
//   period (7 x 7 with k = 7), repeats run over the phases, whose coefficients are evenly apart.
//
//   Several images of a small map share a strip. Their rows lie side by side, so that the strip is a wider map to A and
//   a higher one to B, and each instruction does more repeats.
//
// What bounds it (docs/device-model.md has the sources; none of it was measured on a device by us)
//   - Repeats: 8 positions each, k + (spread of the lanes' shifts) taps for each of the two products. The documents
//     give a repeat of MulAddDst 2 cycles and an instruction about 22 more, so repeats for each instruction matter as
//     much as repeats in total.
//   - UB, in rows of W 32-byte blocks: input 2 (R + h) (double buffered, h <= 2 (k - 1) rows of margin), A x R, output
//     2 R. For 56 x 56 and k = 7, R = 16 takes 212 KiB. R is chosen by the same costs (NeoCellCost).
//   - Memory: every input row once, except for margins where a core starts or ends inside a map; every output once;
//     coefficients once for each core and block of channels, and only those taps that one of the 16 channels has.
//   - Cores: on a 310P, the vector cores beside the AI cores, with shares by their rates. A row with 7 x 7 matrices
//     costs up to 1.8 times one with 4 x 4, so cores get the same cost, not the same number of rows. The order (plane,
//     image, row) lets a core keep its coefficients over the images of a batch.
//
// Tried and rejected
//   - NHWC: the same instructions, but a strip of 16 channels is 32 bytes out of each position's C, so copies move 32
//     bytes where NC1HWC0 copies whole rows; with 128 channels in a repeat no tap is zero for all of them.
//   - B first: the margin rows would be multiplied with B twice.
//   - Rows in their natural order: 1.6 to 2.7 times the instructions at 56 and 28, though 10 % fewer repeats.
//   - An odd row pitch, which puts rows below each other into different banks: the one long line of A x gets a ragged
//     end (4453 instructions for stage 1 of T instead of 3069), and columns as blocks have no conflict for odd k
//     anyway.
//   - The bias in the last multiply-add: no instruction adds a third operand to a product and the sum so far. As the
//     start of the sum it would be rounded differently, and cost the same: MulAddDst takes a cycle more than Mul.
//   - Another order of the channels: shifts that share a block of 16 are neighbours already (docs/device-model.md).
//   - All taps of one phase in a row: each waits for the one before it; sweeps over the phases (neo_cell_base.h) do
//     not.
//   Not tried: two block-diagonal products on the cube, which need every channel's map as a matrix of its own, but are
//   predicted to be near this kernel at 224 (docs/device-model.md).
#include "neo_cell_base.h"

namespace NeoCell {

// The kernel for one type S in memory and one type T of the arithmetic.
template <typename S, typename T>
class NeoCellForward : public Products<T> {
public:
    __aicore__ inline void Init(
        const NeoCellTiling& tiling, GM_ADDR x, GM_ADDR coefA, GM_ADDR coefB, GM_ADDR bias, GM_ADDR y)
    {
        Products<T>::Init(tiling);
        const NeoCellTiling& t = tiling;
        walk_.Init(t, true);
        const int64_t maps = static_cast<int64_t>(t.images) * t.planes * t.c0;
        x_.SetGlobalBuffer(reinterpret_cast<__gm__ S*>(x), maps * t.hIn * t.wIn);
        y_.SetGlobalBuffer(reinterpret_cast<__gm__ S*>(y), maps * t.hOut * t.wOut);
        coefA_.SetGlobalBuffer(reinterpret_cast<__gm__ S*>(coefA), t.totalA * NEO_CELL_LANES);
        coefB_.SetGlobalBuffer(reinterpret_cast<__gm__ S*>(coefB), t.totalB * NEO_CELL_LANES);
        if (t.hasBias != 0) {
            bias_.SetGlobalBuffer(
                reinterpret_cast<__gm__ S*>(bias), NeoCellCeil(t.planes * t.c0, NEO_CELL_LANES) * NEO_CELL_LANES);
        }
        const int32_t window = t.group * t.windowRows * t.windowColumns * t.c0;
        const int32_t output = t.group * t.strip * t.columns * t.c0;
        const int32_t rows = t.mostA + t.mostB + 1;
        // Two buffers each, so that the copies in and out run while the vector unit computes.
        pipe_.InitBuffer(input_, 2, window * sizeof(S));
        pipe_.InitBuffer(output_, 2, output * sizeof(S));
        pipe_.InitBuffer(coefficient_, 2, rows * NEO_CELL_LANES * sizeof(S));
        pipe_.InitBuffer(middle_, t.group * t.strip * t.windowColumns * t.c0 * sizeof(T));
        if constexpr (CAST) {
            // Two windows: rows that both strips need are copied from the one to the other.
            pipe_.InitBuffer(window_[0], window * sizeof(T));
            pipe_.InitBuffer(window_[1], window * sizeof(T));
            now_ = 0;
            pipe_.InitBuffer(result_, output * sizeof(T));
            pipe_.InitBuffer(wide_, rows * NEO_CELL_LANES * sizeof(T));
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
        offsetA_ = this->tiling_->offsetA[core];
        offsetB_ = this->tiling_->offsetB[core];
        LoadCoefficients(current);
        TakeCoefficients();
        Load(current, 0);
        LocalTensor<S> held = Take(current);
        if constexpr (CAST) {
            Widen(current, held, 0);
        }
        bool more = true;
        while (more) {
            more = walk_.Next(next);
            const bool other = more && Block(next) != Block(current);
            const int32_t kept = more ? Kept(current, next) : 0;
            // Issued before the arithmetic of this strip, so that MTE2 loads while V computes.
            if (more) {
                if (other) {
                    LoadCoefficients(next);
                }
                Load(next, kept);
            }
            Compute(current, held);
            // Only now are the old coefficients used up; the new ones wait in the queue's second buffer.
            if (other) {
                coefficient_.FreeTensor(coefficients_);
                TakeCoefficients();
            }
            if (more) {
                held = Keep(current, held, next, kept);
            } else {
                Release(current, held);
            }
            current = next;
        }
        coefficient_.FreeTensor(coefficients_);
    }

private:
    static constexpr bool CAST = sizeof(S) != sizeof(T);
    // Both round to nearest even. 2002 has no CAST_RINT to half, and no architecture has CAST_NONE to bfloat16.
    static constexpr AscendC::RoundMode NARROW =
        AscendC::IsSameType<S, half>::value ? AscendC::RoundMode::CAST_NONE : AscendC::RoundMode::CAST_RINT;

    __aicore__ inline int32_t Block(const Strip& strip) const
    {
        return strip.plane * this->tiling_->c0 / NEO_CELL_LANES;
    }

    // Load the coefficients of the strip's block of 16 channels, A, B and bias, into one buffer.
    __aicore__ inline void LoadCoefficients(const Strip& strip)
    {
        const NeoCellTiling& t = *this->tiling_;
        const int32_t channel = Block(strip) * NEO_CELL_LANES;
        // With c0 = 8 the plane may be the second half of its block, whose first half began in an earlier run.
        int32_t run = strip.run;
        while (run > 0 && t.runEnd[run - 1] > channel) {
            --run;
        }
        nextA_ = NeoCellBlockRows(t, t.runA, run, channel);
        const int32_t rowsB = NeoCellBlockRows(t, t.runB, run, channel);
        LocalTensor<S> local = coefficient_.template AllocTensor<S>();
        AscendC::DataCopy(local, coefA_[offsetA_ * NEO_CELL_LANES], nextA_ * NEO_CELL_LANES);
        AscendC::DataCopy(local[nextA_ * NEO_CELL_LANES], coefB_[offsetB_ * NEO_CELL_LANES], rowsB * NEO_CELL_LANES);
        if (t.hasBias != 0) {
            AscendC::DataCopy(local[(nextA_ + rowsB) * NEO_CELL_LANES], bias_[channel], NEO_CELL_LANES);
        }
        coefficient_.EnQue(local);
        offsetA_ += nextA_;
        offsetB_ += rowsB;
        nextB_ = rowsB;
    }

    // Wait for the coefficients that were loaded last, and widen them if the arithmetic is wider.
    __aicore__ inline void TakeCoefficients()
    {
        coefficients_ = coefficient_.template DeQue<S>();
        rowsA_ = nextA_;
        rowsB_ = nextB_;
        if constexpr (CAST) {
            const int32_t rows = rowsA_ + rowsB_ + (this->tiling_->hasBias != 0 ? 1 : 0);
            AscendC::PipeBarrier<PIPE_V>();
            AscendC::Cast(
                wide_.template Get<T>(), coefficients_, AscendC::RoundMode::CAST_NONE, rows * NEO_CELL_LANES);
            AscendC::PipeBarrier<PIPE_V>();
        }
    }

    // Return how many rows of `next`'s window the window of `current` has.
    __aicore__ inline int32_t Kept(const Strip& current, const Strip& next) const
    {
        return next.follows && !current.Empty() ? NeoCellMax(0, current.bottom - next.top) : 0;
    }

    // Start the copy of a strip's window, except for its first `kept` rows.
    __aicore__ inline void Load(const Strip& strip, int32_t kept)
    {
        if (strip.Empty()) {
            return;
        }
        const NeoCellTiling& t = *this->tiling_;
        LocalTensor<S> local = input_.template AllocTensor<S>();
        if (kept < strip.WindowRows()) {
            const int32_t width = strip.WindowColumns() * t.c0;
            for (int32_t i = 0; i < strip.images; ++i) {
                LoadMap(
                    local[i * width], x_, MapOf(t, strip, i, t.hIn, t.wIn, strip.first, strip.last), strip.Window(),
                    strip.top + kept, strip.bottom);
            }
        }
        input_.EnQue(local);
    }

    __aicore__ inline LocalTensor<S> Take(const Strip& strip)
    {
        LocalTensor<S> local;
        if (!strip.Empty()) {
            local = input_.template DeQue<S>();
        }
        return local;
    }

    __aicore__ inline void Release(const Strip& strip, LocalTensor<S>& held)
    {
        if (!CAST && !strip.Empty()) {
            input_.FreeTensor(held);
        }
    }

    // Return the window of `next`, once `current` is computed. The rows that both have are copied on the vector unit,
    // which is cheaper than loading them again; the others were loaded.
    __aicore__ inline LocalTensor<S> Keep(const Strip& current, LocalTensor<S>& held, const Strip& next, int32_t kept)
    {
        LocalTensor<S> local = Take(next);
        if constexpr (CAST) {
            const LocalTensor<T> from = window_[now_].template Get<T>();
            now_ = 1 - now_;
            CopyKept(window_[now_].template Get<T>(), from, current, next, kept);
            Widen(next, local, kept);
        } else {
            CopyKept(local, held, current, next, kept);
            Release(current, held);
        }
        return local;
    }

    template <typename U>
    __aicore__ inline void CopyKept(
        const LocalTensor<U>& dst, const LocalTensor<U>& src, const Strip& current, const Strip& next, int32_t kept)
    {
        const int32_t row = next.WindowPitch() * this->tiling_->c0;
        const Line to = next.Window();
        const Line from = current.Window();
        // The rows of one phase lie together in both windows, so each phase is one copy.
        for (int32_t phase = 0; phase < to.period && kept > 0; ++phase) {
            const Places places(to, phase, to.origin, to.origin + kept);
            if (places.count > 0) {
                AscendC::DataCopy(
                    dst[places.begin * row], src[from.At(places.row) * row],
                    static_cast<uint32_t>(places.count * row));
            }
        }
        AscendC::PipeBarrier<PIPE_V>();
    }

    // Convert the loaded rows, except for the first `kept`, to the type of the arithmetic.
    __aicore__ inline void Widen(const Strip& strip, LocalTensor<S>& local, int32_t kept)
    {
        if (strip.Empty()) {
            return;
        }
        const LocalTensor<T> window = window_[now_].template Get<T>();
        const int32_t row = strip.WindowPitch() * this->tiling_->c0;
        const Line line = strip.Window();
        for (int32_t phase = 0; phase < line.period; ++phase) {
            const Places places(line, phase, strip.top + kept, strip.bottom);
            if (places.count > 0) {
                AscendC::Cast(
                    window[places.begin * row], local[places.begin * row], AscendC::RoundMode::CAST_NONE,
                    places.count * row);
            }
        }
        AscendC::PipeBarrier<PIPE_V>();
        input_.FreeTensor(local);
    }

    __aicore__ inline void Compute(const Strip& strip, const LocalTensor<S>& held)
    {
        LocalTensor<S> stored = output_.template AllocTensor<S>();
        if constexpr (CAST) {
            LocalTensor<T> result = result_.template Get<T>();
            Multiply(strip, window_[now_].template Get<T>(), wide_.template Get<T>(), result);
            AscendC::Cast(stored, result, NARROW, strip.Output().Places() * strip.Pitch() * this->tiling_->c0);
        } else {
            Multiply(strip, held, coefficients_, stored);
        }
        output_.EnQue(stored);
        stored = output_.template DeQue<S>();
        const NeoCellTiling& t = *this->tiling_;
        const int32_t width = strip.Columns() * t.c0;
        for (int32_t i = 0; i < strip.images; ++i) {
            StoreMap(
                y_, stored[i * width], MapOf(t, strip, i, t.hOut, t.wOut, strip.left, strip.right), strip.Output(),
                strip.end);
        }
        output_.FreeTensor(stored);
    }

    __aicore__ inline void Multiply(
        const Strip& strip, const LocalTensor<T>& window, const LocalTensor<T>& coefficients,
        const LocalTensor<T>& result)
    {
        const NeoCellTiling& t = *this->tiling_;
        const int32_t blocks = this->Blocks();
        const Line rows = strip.Output();
        const int32_t pitchOut = strip.Pitch() * blocks;
        // A strip that reads no input at all, below or beside what a shifted grid covers, is zero plus bias.
        if (strip.Empty()) {
            this->Zero(result, {pitchOut, rows.Places(), 1, 1, pitchOut, pitchOut, 0});
        } else {
            LocalTensor<T> middle = middle_.template Get<T>();
            const int32_t pitch = strip.WindowPitch() * blocks;
            this->Product(
                middle, window, coefficients, t.runA, strip.plane, strip.run,
                {strip.begin, strip.end, t.hIn, rows, strip.Window()},
                {strip.WindowPitch(), 1, blocks, blocks, pitch, pitch, 0});
            // The product with B goes over all places, also those that no row takes: they must hold numbers.
            for (int32_t place = strip.Rows() % rows.period; place % rows.period != 0; ++place) {
                const int32_t empty = ((place + 1) * rows.each - 1) * pitch * Products<T>::LANES;
                this->Zero(middle[empty], {pitch, 1, 1, 1, 0, 0, 0});
                AscendC::PipeBarrier<PIPE_V>();
            }
            this->Product(
                result, middle, coefficients[rowsA_ * NEO_CELL_LANES], t.runB, strip.plane, strip.run,
                {strip.left, strip.right, t.wIn, MakeLine(strip.left, strip.Columns(), 1),
                 MakeLine(strip.first, strip.WindowColumns(), 1)},
                {rows.Places() * strip.images, 1, strip.Columns() * blocks, strip.WindowColumns() * blocks, blocks,
                 blocks, 0});
        }
        if (t.hasBias != 0) {
            AscendC::PipeBarrier<PIPE_V>();
            const int32_t lane = strip.plane * t.c0 % NEO_CELL_LANES;
            this->AddToAll(
                result, coefficients[(rowsA_ + rowsB_) * NEO_CELL_LANES + lane],
                {strip.Pitch(), rows.Places(), blocks, blocks, pitchOut, pitchOut, 0});
        }
        AscendC::PipeBarrier<PIPE_V>();
    }

    Walk walk_;
    AscendC::TPipe pipe_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> input_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> output_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> coefficient_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> middle_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> window_[2]; // of this strip and of the one before
    AscendC::TBuf<AscendC::TPosition::VECCALC> result_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> wide_;
    GlobalTensor<S> x_;
    GlobalTensor<S> coefA_;
    GlobalTensor<S> coefB_;
    GlobalTensor<S> bias_;
    GlobalTensor<S> y_;
    LocalTensor<S> coefficients_;
    int32_t now_;     // index of this strip's window
    int32_t offsetA_; // next row of coefficients to load
    int32_t offsetB_;
    int32_t nextA_; // rows of the coefficients loaded last
    int32_t nextB_;
    int32_t rowsA_; // rows of those in use
    int32_t rowsB_;
};

template <typename S, typename T>
__aicore__ inline void RunForward(
    const NeoCellTiling& tiling, GM_ADDR x, GM_ADDR coefA, GM_ADDR coefB, GM_ADDR bias, GM_ADDR y)
{
    NeoCellForward<S, T> kernel;
    kernel.Init(tiling, x, coefA, coefB, bias, y);
    kernel.Process();
}

} // namespace NeoCell

// Tiling key 0 computes in the type of x; key 1 in float32, for float16 on request and for bfloat16 always.
extern "C" __global__ __aicore__ void neo_cell(
    GM_ADDR x, GM_ADDR coef_a, GM_ADDR coef_b, GM_ADDR bias, GM_ADDR y, GM_ADDR workspace, GM_ADDR tiling)
{
#if __CCE_AICORE__ == 200 // the 310P: blocks beyond its AI cores run on its vector cores
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_VECTOR_CORE);
#endif
    REGISTER_TILING_DEFAULT(NeoCellTiling);
    GET_TILING_DATA_WITH_STRUCT(NeoCellTiling, data, tiling);
#if ORIG_DTYPE_X != DT_BF16
    if (TILING_KEY_IS(0)) {
        NeoCell::RunForward<DTYPE_X, DTYPE_X>(data, x, coef_a, coef_b, bias, y);
    }
#endif
#if ORIG_DTYPE_X != DT_FLOAT
    if (TILING_KEY_IS(1)) {
        NeoCell::RunForward<DTYPE_X, float>(data, x, coef_a, coef_b, bias, y);
    }
#endif
}
