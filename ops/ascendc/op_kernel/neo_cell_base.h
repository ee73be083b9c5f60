// The common parts of the NeoCell kernels: a product with one side's matrices, and the walk over strips of the maps.
//
// A product is a sum over taps. Its operands are grids of 32-byte blocks in the unified buffer, and one step of the sum
// is the same multiply-add on every block of a grid. What costs time is the number of vector instructions (about 22
// cycles each) and of their repeats (2 cycles, more where blocks of a repeat share banks), so the code here chooses,
// for each part of the channels, in which order the blocks of a grid become repeats (`Plan`, `Cost`, `Run`). Scalar
// work is slow on the device, so plans are kept for as long as they hold (`PhasesKey`).
#ifndef NEO_CELL_BASE_H
#define NEO_CELL_BASE_H

#include "kernel_operator.h"
#include "neo_cell_tiling.h"

namespace NeoCell {

using AscendC::GlobalTensor;
using AscendC::LocalTensor;

constexpr int32_t MAX_REPEATS = 255;

enum class Step { MULTIPLY, MULTIPLY_ADD, ADD, ZERO };

// A grid of 32-byte blocks, `lanes` across by `repeats` along; distances in blocks.
struct Grid {
    int32_t lanes;
    int32_t repeats;
    int32_t dstAcross;
    int32_t srcAcross;
    int32_t dstAlong;
    int32_t srcAlong;
    int32_t withAlong; // of the coefficients, which are the same across
};

// The places of the rows (or columns) of a map in UB: in their natural order, or those of a phase together.
struct Line {
    int32_t origin; // the first one
    int32_t period; // phases, 1 if the rows lie in their natural order
    int32_t each;   // places for each phase

    __aicore__ inline int32_t At(int32_t index) const
    {
        const int32_t place = index - origin;
        return period == 1 ? place : place % period * each + place / period;
    }

    // Return the places between a row and the one `distance` rows on; `distance` is the period, if there is one.
    __aicore__ inline int32_t Step(int32_t distance) const
    {
        return period == 1 ? distance : 1;
    }

    __aicore__ inline int32_t Places() const
    {
        return period * each;
    }
};

__aicore__ inline Line MakeLine(int32_t origin, int32_t count, int32_t period)
{
    return {origin, period, NeoCellCeil(count, period)};
}

// Outputs [begin, end) of a product, and the places of outputs and inputs; there are `size` inputs.
struct Range {
    int32_t begin;
    int32_t end;
    int32_t size;
    Line to;
    Line from;
};

// The values that phases depend on. Neighbouring planes and strips often share them, and scalar work is slow, so phases
// are planned again only when one of these changes.
struct PhasesKey {
    int32_t firstRun; // of the segment
    int32_t lastRun;
    int32_t firstOwn; // of the 32-byte block
    int32_t lastOwn;
    int32_t row;
    int32_t begin;
    int32_t end;
    int32_t size;
    int32_t lanes;
    int32_t across;
    __aicore__ inline bool operator==(const PhasesKey& other) const
    {
        return firstRun == other.firstRun && lastRun == other.lastRun && firstOwn == other.firstOwn &&
               lastOwn == other.lastOwn && row == other.row && begin == other.begin && end == other.end &&
               size == other.size && lanes == other.lanes && across == other.across;
    }
};

// The plan of a segment for the channels of one 32-byte block: the taps of each phase, and the order of the repeats.
struct Phases {
    PhasesKey key;
    int32_t kIn;
    int32_t kOut;
    int32_t from;                       // first period of which the range has a part
    int32_t to;                         // last one
    int32_t sweeps;                     // most taps of a phase that the range has
    bool together;                      // repeats run over neighbouring phases instead of periods
    bool turned;                        // blocks of a repeat lie along the axis, and repeats run across
    int16_t start[NEO_CELL_MAX_KERNEL]; // first tap
    int16_t stop[NEO_CELL_MAX_KERNEL];  // behind the last one
    int16_t row[NEO_CELL_MAX_KERNEL];   // row of coefficients of tap 0
    int32_t low[NEO_CELL_MAX_KERNEL];   // first period that the range has
    int32_t high[NEO_CELL_MAX_KERNEL];  // last one
};

// Outputs [begin, end) x [left, right) of one plane of `images` neighbouring images, and the inputs [top, bottom) x
// [first, last) that they read. In UB the rows of the images lie side by side, so that they are one map to a product
// with A, whose lanes are columns, and a higher one to a product with B, whose lanes are rows.
struct Strip {
    int32_t plane;
    int32_t image;
    int32_t images;
    int32_t run; // first run of the plane
    int32_t begin;
    int32_t end;
    int32_t left;
    int32_t right;
    int32_t top;
    int32_t bottom;
    int32_t first;
    int32_t last;
    int32_t phasesIn;  // phases in whose order the rows lie in UB: 1, or those of the matrices A
    int32_t phasesOut;
    bool follows; // lies right below the strip before, in the same columns, and can keep rows of it
    __aicore__ inline bool Empty() const
    {
        return top >= bottom || first >= last;
    }
    __aicore__ inline int32_t Rows() const
    {
        return end - begin;
    }
    __aicore__ inline int32_t Columns() const
    {
        return right - left;
    }
    __aicore__ inline int32_t WindowRows() const
    {
        return bottom - top;
    }
    __aicore__ inline int32_t WindowColumns() const
    {
        return last - first;
    }
    // Columns of a row in UB, over all images.
    __aicore__ inline int32_t WindowPitch() const
    {
        return images * WindowColumns();
    }
    __aicore__ inline int32_t Pitch() const
    {
        return images * Columns();
    }
    __aicore__ inline Line Window() const
    {
        return MakeLine(top, bottom - top, phasesIn);
    }
    __aicore__ inline Line Output() const
    {
        return MakeLine(begin, end - begin, phasesOut);
    }
};

// The strips of this core, in the order (plane, image, columns, rows).
class Walk {
public:
    // `ordered`: rows of a phase may lie together.
    __aicore__ inline void Init(const NeoCellTiling& tiling, bool ordered)
    {
        tiling_ = &tiling;
        ordered_ = ordered;
        const int32_t core = static_cast<int32_t>(AscendC::GetBlockIdx());
        const bool works = core < tiling.cores;
        unit_ = works ? tiling.first[core] : 0;
        end_ = works ? tiling.first[core + 1] : 0;
        pieceEnd_ = 0;
        row_ = 0;
        left_ = tiling.wOut;
        run_ = 0;
    }

    __aicore__ inline bool Next(Strip& strip)
    {
        const NeoCellTiling& t = *tiling_;
        strip.follows = row_ < pieceEnd_;
        if (!strip.follows) {
            left_ += t.columns;
            if (left_ >= t.wOut) {
                if (unit_ >= end_) {
                    return false;
                }
                const int32_t map = unit_ / t.hOut;
                pieceBegin_ = unit_ - map * t.hOut;
                pieceEnd_ = NeoCellMin(t.hOut, pieceBegin_ + end_ - unit_);
                unit_ += pieceEnd_ - pieceBegin_;
                plane_ = map / t.images;
                image_ = map - plane_ * t.images;
                images_ = 1;
                // Whole maps of the same plane go together.
                while (pieceEnd_ - pieceBegin_ == t.hOut && images_ < t.group && image_ + images_ < t.images &&
                       end_ - unit_ >= t.hOut) {
                    ++images_;
                    unit_ += t.hOut;
                }
                left_ = 0;
                while (t.runEnd[run_] <= plane_ * t.c0) {
                    ++run_;
                }
                lastRun_ = run_;
                while (t.runEnd[lastRun_] < (plane_ + 1) * t.c0) {
                    ++lastRun_;
                }
            }
            row_ = pieceBegin_;
        }
        strip.plane = plane_;
        strip.image = image_;
        strip.images = images_;
        strip.run = run_;
        strip.left = left_;
        strip.right = NeoCellMin(left_ + t.columns, t.wOut);
        NeoCellWindow(t.runB, run_, lastRun_, strip.left, strip.right, t.wIn, strip.first, strip.last);
        Order(strip);
        strip.begin = row_;
        const int32_t rows = strip.phasesOut == 1 ? t.strip : NeoCellOrderedStrip(t.strip, strip.phasesOut);
        strip.end = NeoCellMin(row_ + rows, pieceEnd_);
        NeoCellWindow(t.runA, run_, lastRun_, strip.begin, strip.end, t.hIn, strip.top, strip.bottom);
        row_ = strip.end;
        return true;
    }

private:
    // Rows of a phase that lie together make one long run of positions for each tap. That pays where rows are long. It
    // needs matrices A of one size for all channels of the plane, and gaps between the rows that fit into a copy.
    __aicore__ inline void Order(Strip& strip) const
    {
        const NeoCellTiling& t = *tiling_;
        const NeoCellMatrix a = NeoCellUnpack(t.runA[run_]);
        bool ordered = ordered_ && t.strip >= a.kOut && strip.WindowPitch() >= 2 * NEO_CELL_GROUP &&
                       NeoCellMax(a.kIn * t.wIn, a.kOut * t.wOut) * 2 <= NEO_CELL_MAX_GAP;
        for (int32_t run = run_ + 1; run <= lastRun_; ++run) {
            ordered = ordered && NeoCellSameSize(t.runA[run_], t.runA[run]);
        }
        strip.phasesIn = ordered ? a.kIn : 1;
        strip.phasesOut = ordered ? a.kOut : 1;
    }

    const NeoCellTiling* tiling_;
    bool ordered_;
    int32_t unit_; // output rows over (plane, image, row)
    int32_t end_;
    int32_t pieceBegin_; // rows of the plane that are this core's
    int32_t pieceEnd_;
    int32_t row_;
    int32_t left_;
    int32_t plane_;
    int32_t image_;
    int32_t images_;
    int32_t run_;
    int32_t lastRun_;
};

// The parts of a plane's channels. A part has the channels of one segment in one 32-byte block: one plan, one mask.
struct Parts {
    NeoCellSegment segment;
    int32_t row;    // row of the block of 16 channels at which the segment's coefficients start
    int32_t block;  // 32-byte block of a position
    int32_t begin;  // channels
    int32_t end;
    int32_t lane;   // place of `begin` in the block
    int32_t column; // place of the block in a row of coefficients

    __aicore__ inline void Init(
        const NeoCellTiling& tiling, const uint16_t* sides, int32_t plane, int32_t run, int32_t lanes)
    {
        tiling_ = &tiling;
        sides_ = sides;
        lanes_ = lanes;
        first_ = plane * tiling.c0;
        blocks_ = tiling.c0 / lanes;
        const int32_t channel = first_ / NEO_CELL_LANES * NEO_CELL_LANES;
        stop_ = NeoCellMin(channel + NEO_CELL_LANES, tiling.runEnd[tiling.runs - 1]);
        while (run > 0 && tiling.runEnd[run - 1] > channel) {
            --run;
        }
        segment = NeoCellNextSegment(tiling, sides, run, channel, stop_);
        row = 0;
        block = -1;
    }

    __aicore__ inline bool Next()
    {
        while (true) {
            if (++block == blocks_) {
                if (segment.end >= stop_) {
                    return false;
                }
                row += NeoCellSegmentRows(sides_, segment);
                segment = NeoCellNextSegment(
                    *tiling_, sides_, NeoCellRunAfter(*tiling_, segment), segment.end, stop_);
                block = 0;
            }
            const int32_t from = first_ + block * lanes_;
            begin = NeoCellMax(segment.begin, from);
            end = NeoCellMin(segment.end, from + lanes_);
            lane = begin - from;
            column = from % NEO_CELL_LANES;
            if (begin < end) {
                return true;
            }
        }
    }

private:
    const NeoCellTiling* tiling_;
    const uint16_t* sides_;
    int32_t lanes_;
    int32_t first_;
    int32_t blocks_;
    int32_t stop_;
};

// Vector instructions on maps of 32-byte blocks; T is the type of the arithmetic.
template <typename T>
class Products {
public:
    // Channels of a block, and blocks of a row of coefficients.
    static constexpr int32_t LANES = NEO_CELL_BLOCK / static_cast<int32_t>(sizeof(T));
    static constexpr int32_t ROW = NEO_CELL_LANES / LANES;

    __aicore__ inline void Init(const NeoCellTiling& tiling)
    {
        tiling_ = &tiling;
        blocks_ = tiling.c0 / LANES;
        masked_ = -1;
        sides_[0].key.end = 0;
        sides_[1].key.end = 0;
    }

    // Return the 32-byte blocks of each position of a map.
    __aicore__ inline int32_t Blocks() const
    {
        return blocks_;
    }

    // Compute one side of y = A x B for all channels of a plane: sums over taps along one axis, the same for all lanes
    // across. `coefficients` are the rows of the plane's block of 16 channels; `run` is the first run of the plane.
    __aicore__ inline void Product(
        const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& coefficients,
        const uint16_t* sides, int32_t plane, int32_t run, const Range& range, const Grid& grid)
    {
        Parts parts;
        parts.Init(*tiling_, sides, plane, run, LANES);
        while (parts.Next()) {
            Plan(sides, parts, range, grid);
            SetLanes(parts.lane, parts.lane + parts.end - parts.begin);
            const int32_t offset = parts.block * LANES;
            Sweep(dst[offset], src[offset], coefficients[parts.column], range, grid);
        }
    }

    // Clear every block of a grid.
    __aicore__ inline void Zero(const LocalTensor<T>& dst, const Grid& grid)
    {
        SetLanes(0, LANES);
        Run<Step::ZERO>(dst, dst, dst, grid);
    }

    // Add one block to every block of a grid, for each block of a position.
    __aicore__ inline void AddToAll(const LocalTensor<T>& dst, const LocalTensor<T>& block, const Grid& grid)
    {
        SetLanes(0, LANES);
        for (int32_t i = 0; i < blocks_; ++i) {
            Run<Step::ADD>(dst[i * LANES], dst[i * LANES], block[i * LANES], grid);
        }
    }

protected:
    // Plan the phases of a part, in `phases_`.
    __aicore__ inline void Plan(const uint16_t* sides, const Parts& part, const Range& range, const Grid& grid)
    {
        const NeoCellSegment& segment = part.segment;
        int32_t firstRun = segment.first;
        while (tiling_->runEnd[firstRun] <= part.begin) {
            ++firstRun;
        }
        int32_t lastRun = firstRun;
        while (tiling_->runEnd[lastRun] < part.end) {
            ++lastRun;
        }
        phases_ = &sides_[sides == tiling_->runA ? 0 : 1];
        const PhasesKey key{segment.first, segment.last, firstRun,   lastRun,    part.row,
                            range.begin,   range.end,    range.size, grid.lanes, grid.srcAcross};
        if (phases_->key == key) {
            return;
        }
        Phases& p = *phases_;
        p.key = key;
        p.kIn = segment.kIn;
        p.kOut = segment.kOut;
        p.sweeps = 0;
        int32_t row = part.row;
        p.from = range.begin / p.kOut;
        p.to = (range.end - 1) / p.kOut;
        const int32_t fromPhase = range.begin - p.from * p.kOut;
        const int32_t toPhase = range.end - 1 - p.to * p.kOut;
        for (int32_t phase = 0; phase < p.kOut; ++phase) {
            int32_t start;
            int32_t stop;
            NeoCellTaps(sides, segment.first, segment.last, phase, start, stop);
            p.row[phase] = static_cast<int16_t>(row - start);
            row += stop - start;
            NeoCellTaps(sides, firstRun, lastRun, phase, start, stop);
            p.start[phase] = static_cast<int16_t>(start);
            p.stop[phase] = static_cast<int16_t>(stop);
            p.low[phase] = p.from + (phase < fromPhase ? 1 : 0);
            p.high[phase] = p.to - (phase > toPhase ? 1 : 0);
            if (p.low[phase] <= p.high[phase]) {
                p.sweeps = NeoCellMax(p.sweeps, stop - start);
            }
        }
        // Repeats over phases or over periods, whichever takes fewer instructions.
        int32_t groups = 0;
        for (int32_t phase = 0; phase < p.kOut; phase = Alike(phase)) {
            ++groups;
        }
        p.together = groups * (p.to - p.from + 1) < p.kOut && (range.to.period == 1 || range.begin % p.kOut == 0);
        Grid straight = grid;
        straight.repeats = NeoCellCeil(range.end - range.begin, p.kOut);
        straight.dstAlong = range.to.Step(p.kOut) * grid.dstAlong;
        straight.srcAlong = range.from.Step(p.kIn) * grid.srcAlong;
        p.turned = !p.together && Cost(Turned(straight)) < Cost(straight);
    }

    __aicore__ static inline Grid Turned(const Grid& grid)
    {
        return {grid.repeats,  grid.lanes,     grid.dstAlong, grid.srcAlong,
                grid.dstAcross, grid.srcAcross, grid.withAlong};
    }

    // Estimate the cycles of a step on a grid: 22 to start an instruction, 2 for a repeat of MulAddDst, more where
    // blocks of a repeat lie in the same one of the 16 groups of banks. docs/device-model.md has the sources.
    __aicore__ static inline int32_t Cost(const Grid& layout)
    {
        const Grid grid = Flat(layout);
        const int32_t groups = grid.lanes / NEO_CELL_GROUP;
        const int32_t rest = grid.lanes % NEO_CELL_GROUP != 0 ? 1 : 0;
        if (!Fits(grid.dstAcross, grid.srcAcross)) {
            return 24 * grid.lanes * grid.repeats;
        }
        const bool along = Fits(grid.dstAlong, grid.srcAlong);
        const bool over = Fits(NEO_CELL_GROUP * grid.dstAcross, NEO_CELL_GROUP * grid.srcAcross);
        int32_t starts = along ? groups : groups * grid.repeats;
        starts = over ? NeoCellMin(starts, groups > 0 ? grid.repeats : 0) : starts;
        starts += along ? rest : rest * grid.repeats;
        return 22 * starts +
               2 * (groups + rest) * grid.repeats * NeoCellMax(Ways(grid.dstAcross), Ways(grid.srcAcross));
    }

    // Return the cycles in which 8 blocks so far apart are reached: they lie in 16 / gcd(stride, 16) groups of banks.
    __aicore__ static inline int32_t Ways(int32_t stride)
    {
        const int32_t common = stride & -stride;
        return common <= 2 ? 1 : NeoCellMin(common / 2, NEO_CELL_GROUP);
    }

    // Return a grid whose repeats follow each other without a gap as one long line, which takes fewer instructions.
    __aicore__ static inline Grid Flat(const Grid& grid)
    {
        if (grid.withAlong != 0 || grid.dstAlong != grid.lanes * grid.dstAcross ||
            grid.srcAlong != grid.lanes * grid.srcAcross) {
            return grid;
        }
        return {grid.lanes * grid.repeats, 1, grid.dstAcross, grid.srcAcross, 0, 0, 0};
    }

    // Return the end of the phases from `phase` on that read the same taps, with rows of coefficients evenly apart: a
    // repeat stride can then step through the coefficients.
    __aicore__ inline int32_t Alike(int32_t phase) const
    {
        const Phases& p = *phases_;
        int32_t next = phase + 1;
        while (next < p.kOut && p.start[next] == p.start[phase] && p.stop[next] == p.stop[phase] &&
               p.row[next] - p.row[next - 1] == p.row[phase + 1] - p.row[phase]) {
            ++next;
        }
        return next;
    }

    // Sum over the taps, ascending whatever the strip, so that the result does not depend on the cores. Each output's
    // first tap inside the map writes, the others add. In each sweep every phase takes one tap, so that neighbouring
    // instructions do not wait for each other's results.
    __aicore__ inline void Sweep(
        const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& coefficients, const Range& range,
        const Grid& across)
    {
        const Phases& p = *phases_;
        for (int32_t sweep = 0; sweep < p.sweeps; ++sweep) {
            int32_t next;
            for (int32_t phase = 0; phase < p.kOut; phase = next) {
                next = p.together ? Alike(phase) : phase + 1;
                if (p.start[phase] + sweep >= p.stop[phase]) {
                    continue;
                }
                if (p.together) {
                    OverPhases(dst, src, coefficients, range, across, phase, next, sweep);
                } else {
                    OverPeriods(dst, src, coefficients, range, across, phase, sweep);
                }
            }
            AscendC::PipeBarrier<PIPE_V>();
        }
    }

    // Do one tap of one phase, in all periods.
    __aicore__ inline void OverPeriods(
        const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& coefficients, const Range& range,
        const Grid& across, int32_t phase, int32_t sweep)
    {
        const Phases& p = *phases_;
        const int32_t tap = p.start[phase] + sweep;
        const int32_t last = p.high[phase];
        int32_t low = p.low[phase];
        int32_t high = last;
        if (low > high) {
            return;
        }
        // The first block of a shifted grid lies partly before the map, so its first tap is tap 0, while that of the
        // other periods is `start`: it is multiplied apart from them, and tap 0 must not be added again.
        const bool cut = low == 0 && p.start[phase] < 0;
        low += cut && tap <= 0 ? 1 : 0;
        Clip(tap, range.size, low, high);
        Grid grid = across;
        grid.dstAlong = range.to.Step(p.kOut) * across.dstAlong;
        grid.srcAlong = range.from.Step(p.kIn) * across.srcAlong;
        grid.withAlong = 0;
        grid.repeats = high - low + 1;
        const int32_t output = low * p.kOut + phase;
        const int32_t input = low * p.kIn + tap;
        const int32_t row = p.row[phase] + tap;
        if (sweep != 0) {
            Tap<Step::MULTIPLY_ADD>(dst, src, coefficients, range, across, grid, output, input, row);
            return;
        }
        Tap<Step::MULTIPLY>(dst, src, coefficients, range, across, grid, output, input, row);
        if (cut) {
            grid.repeats = 1;
            Tap<Step::MULTIPLY>(dst, src, coefficients, range, across, grid, phase, 0, p.row[phase]);
        }
        // Outputs whose block lies behind the map have no tap that would write them.
        const int32_t none = NeoCellMax(low, high + 1);
        grid.repeats = last - none + 1;
        Tap<Step::ZERO>(dst, src, coefficients, range, across, grid, none * p.kOut + phase, 0, 0);
    }

    // Do one tap of the phases [phase, next), which read the same taps, in each period.
    __aicore__ inline void OverPhases(
        const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& coefficients, const Range& range,
        const Grid& across, int32_t phase, int32_t next, int32_t sweep)
    {
        const Phases& p = *phases_;
        Grid grid = across;
        grid.dstAlong = (range.to.period == 1 ? 1 : range.to.each) * across.dstAlong;
        grid.srcAlong = 0;
        grid.withAlong = next > phase + 1 ? (p.row[phase + 1] - p.row[phase]) * ROW : 0;
        for (int32_t period = p.from; period <= p.to; ++period) {
            const int32_t begin = NeoCellMax(period * p.kOut + phase, range.begin);
            grid.repeats = NeoCellMin(period * p.kOut + next, range.end) - begin;
            const bool cut = period == 0 && p.start[phase] < 0;
            int32_t tap = p.start[phase] + sweep;
            if (cut && sweep == 0) {
                tap = 0;
            } else if (cut && tap <= 0) {
                continue;
            }
            const int32_t input = period * p.kIn + tap;
            const int32_t row = p.row[begin - period * p.kOut] + tap;
            if (input >= range.size) {
                if (sweep == 0) {
                    Tap<Step::ZERO>(dst, src, coefficients, range, across, grid, begin, 0, 0);
                }
            } else if (sweep == 0) {
                Tap<Step::MULTIPLY>(dst, src, coefficients, range, across, grid, begin, input, row);
            } else {
                Tap<Step::MULTIPLY_ADD>(dst, src, coefficients, range, across, grid, begin, input, row);
            }
        }
    }

    // Do a step on `grid`, which starts at an output, an input and a row of coefficients; nothing if it has no repeats.
    template <Step STEP>
    __aicore__ inline void Tap(
        const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& coefficients, const Range& range,
        const Grid& across, const Grid& grid, int32_t output, int32_t input, int32_t row)
    {
        if (grid.repeats <= 0) {
            return;
        }
        const LocalTensor<T> to = dst[range.to.At(output) * across.dstAlong * LANES];
        const Grid all = phases_->turned ? Turned(grid) : grid;
        if constexpr (STEP == Step::ZERO) {
            Run<STEP>(to, to, to, all);
        } else {
            Run<STEP>(
                to, src[range.from.At(input) * across.srcAlong * LANES], coefficients[row * NEO_CELL_LANES], all);
        }
    }

    // Clip [low, high] to the periods whose input m * kIn + tap lies in the map.
    __aicore__ inline void Clip(int32_t tap, int32_t size, int32_t& low, int32_t& high) const
    {
        const int32_t k = phases_->kIn;
        while (low * k + tap < 0) {
            ++low;
        }
        while (low <= high && high * k + tap >= size) {
            --high;
        }
    }

    // Let channels [begin, end) of every block take part from here on.
    __aicore__ inline void SetLanes(int32_t begin, int32_t end)
    {
        lanes_ = ((static_cast<uint64_t>(1) << (end - begin)) - 1) << begin;
        masked_ = -1;
    }

    // Let the first `blocks` blocks of a repeat take part. Setting the mask costs scalar instructions, so it is set
    // only when it changes.
    __aicore__ inline void SetBlocks(int32_t blocks)
    {
        if (masked_ == blocks) {
            return;
        }
        masked_ = blocks;
        constexpr int32_t half = 64 / LANES; // blocks in 64 bits of mask
        mask_[0] = 0;
        mask_[1] = 0;
        for (int32_t i = 0; i < blocks; ++i) {
            mask_[i / half] |= lanes_ << (i % half * LANES);
        }
        AscendC::SetVectorMask<T, AscendC::MaskMode::NORMAL>(mask_[1], mask_[0]);
    }

    __aicore__ static inline bool Fits(int32_t stride, int32_t other)
    {
        return stride <= NEO_CELL_MAX_STRIDE && other <= NEO_CELL_MAX_STRIDE;
    }

    // Do one step on a grid. A repeat covers 8 blocks across. Repeats run along, or over groups of 8 across, whichever
    // needs fewer instructions among those whose distances fit into an instruction.
    template <Step STEP>
    __aicore__ inline void Run(
        const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& with, const Grid& layout)
    {
        const Grid grid = Flat(layout);
        const int32_t groups = grid.lanes / NEO_CELL_GROUP;
        const int32_t rest = grid.lanes - groups * NEO_CELL_GROUP;
        const bool along = Fits(grid.dstAlong, grid.srcAlong);
        // Blocks across are too far apart for a repeat: each becomes a line of its own.
        if (!Fits(grid.dstAcross, grid.srcAcross)) {
            Grid one = grid;
            one.dstAcross = 1;
            one.srcAcross = 1;
            SetBlocks(1);
            for (int32_t i = 0; i < grid.lanes; ++i) {
                Along<STEP>(dst[i * grid.dstAcross * LANES], src[i * grid.srcAcross * LANES], with, one, along);
            }
            return;
        }
        if (groups > 0) {
            SetBlocks(NEO_CELL_GROUP);
            const int32_t dstGroup = NEO_CELL_GROUP * grid.dstAcross;
            const int32_t srcGroup = NEO_CELL_GROUP * grid.srcAcross;
            if (Fits(dstGroup, srcGroup) && (!along || grid.repeats < groups)) {
                for (int32_t i = 0; i < grid.repeats; ++i) {
                    Repeat<STEP>(
                        dst[i * grid.dstAlong * LANES], src[i * grid.srcAlong * LANES],
                        with[i * grid.withAlong * LANES], grid, groups, dstGroup, srcGroup, 0);
                }
            } else {
                for (int32_t i = 0; i < groups; ++i) {
                    Along<STEP>(dst[i * dstGroup * LANES], src[i * srcGroup * LANES], with, grid, along);
                }
            }
        }
        if (rest > 0) {
            SetBlocks(rest);
            const int32_t done = groups * NEO_CELL_GROUP * LANES;
            Along<STEP>(dst[done * grid.dstAcross], src[done * grid.srcAcross], with, grid, along);
        }
    }

    // Do a step with repeats along, one by one where they are too far apart for a stride.
    template <Step STEP>
    __aicore__ inline void Along(
        const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& with, const Grid& grid, bool fits)
    {
        if (fits) {
            Repeat<STEP>(dst, src, with, grid, grid.repeats, grid.dstAlong, grid.srcAlong, grid.withAlong);
            return;
        }
        for (int32_t i = 0; i < grid.repeats; ++i) {
            Repeat<STEP>(
                dst[i * grid.dstAlong * LANES], src[i * grid.srcAlong * LANES], with[i * grid.withAlong * LANES], grid,
                1, 0, 0, 0);
        }
    }

    // Issue a step with any number of repeats; an instruction has at most 255. The mask is set already (`false`).
    // Instructions still get it as an array: on 3002 the overloads that take a number of lanes ignore the mask register
    // and would compute none at all for MASK_PLACEHOLDER, which is 0.
    template <Step STEP>
    __aicore__ inline void Repeat(
        const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& with, const Grid& grid,
        int32_t repeats, int32_t dstStride, int32_t srcStride, int32_t withStride)
    {
        const AscendC::BinaryRepeatParams strides(
            static_cast<uint8_t>(grid.dstAcross), static_cast<uint8_t>(grid.srcAcross), 0,
            static_cast<uint8_t>(dstStride), static_cast<uint8_t>(srcStride), static_cast<uint8_t>(withStride));
        for (int32_t done = 0; done < repeats; done += MAX_REPEATS) {
            const uint8_t count = static_cast<uint8_t>(NeoCellMin(repeats - done, MAX_REPEATS));
            const LocalTensor<T> to = dst[done * dstStride * LANES];
            const LocalTensor<T> from = src[done * srcStride * LANES];
            const LocalTensor<T> factor = with[done * withStride * LANES];
            if constexpr (STEP == Step::MULTIPLY) {
                AscendC::Mul<T, false>(to, from, factor, mask_, count, strides);
            } else if constexpr (STEP == Step::MULTIPLY_ADD) {
                AscendC::MulAddDst<T, T, false>(to, from, factor, mask_, count, strides);
            } else if constexpr (STEP == Step::ADD) {
                AscendC::Add<T, false>(to, from, factor, mask_, count, strides);
            } else {
                AscendC::Duplicate<T, false>(
                    to, static_cast<T>(0), mask_, count, static_cast<uint16_t>(grid.dstAcross),
                    static_cast<uint8_t>(dstStride));
            }
        }
    }

    const NeoCellTiling* tiling_;
    int32_t blocks_;
    Phases* phases_;
    Phases sides_[2];

    uint64_t lanes_;
    int32_t masked_;   // blocks for which the device's mask is set, -1 if unknown
    uint64_t mask_[2]; // that mask, low word first
};

// Rows of one map in memory, `columns` wide, of which the columns [first, last) are copied; in UB it is one of `images`
// side by side.
struct Rows {
    int64_t map;
    int32_t images;
    int32_t rows;
    int32_t columns;
    int32_t c0;
    int32_t first;
    int32_t last;

    __aicore__ inline int64_t At(int32_t row) const
    {
        return ((map * rows + row) * columns + first) * c0;
    }
};

// Return image number `i` of a strip in memory, with `rows` rows and `columns` columns.
__aicore__ inline Rows MapOf(
    const NeoCellTiling& t, const Strip& strip, int32_t i, int32_t rows, int32_t columns, int32_t first, int32_t last)
{
    const int64_t map = static_cast<int64_t>(strip.image + i) * t.planes + strip.plane;
    return {map, strip.images, rows, columns, t.c0, first, last};
}

// The places of one phase that rows [top, bottom) of a line take; rows [line.origin, top) come before them.
struct Places {
    int32_t begin;
    int32_t count;
    int32_t row; // the first of them

    __aicore__ inline Places(const Line& line, int32_t phase, int32_t top, int32_t bottom)
    {
        const int32_t before = Count(top - line.origin, phase, line.period);
        begin = phase * line.each + before;
        count = Count(bottom - line.origin, phase, line.period) - before;
        row = line.origin + phase + before * line.period;
    }

private:
    // Return how many of `rows` rows belong to the phase.
    __aicore__ static inline int32_t Count(int32_t rows, int32_t phase, int32_t period)
    {
        return rows > phase ? NeoCellCeil(rows - phase, period) : 0;
    }
};

// Return the parameters of a copy of one phase: in memory its rows are a period apart, in UB only the rows of the other
// images lie between them.
template <typename S>
__aicore__ inline AscendC::DataCopyParams Bursts(const Rows& rows, const Line& line, int32_t count, bool load)
{
    const int32_t pixel = rows.c0 * static_cast<int32_t>(sizeof(S)) / NEO_CELL_BLOCK;
    const int32_t width = rows.last - rows.first;
    const uint16_t gap = static_cast<uint16_t>((line.period * rows.columns - width) * pixel);
    const uint16_t others = static_cast<uint16_t>((rows.images - 1) * width * pixel);
    return AscendC::DataCopyParams(
        static_cast<uint16_t>(count), static_cast<uint16_t>(width * pixel), load ? gap : others, load ? others : gap);
}

// Copy rows [top, bottom) of a map to their places in UB.
template <typename S>
__aicore__ inline void LoadMap(
    const LocalTensor<S>& dst, const GlobalTensor<S>& src, const Rows& rows, const Line& line, int32_t top,
    int32_t bottom)
{
    const int32_t row = rows.images * (rows.last - rows.first) * rows.c0;
    if (line.period == 1 && rows.images == 1 && rows.last - rows.first == rows.columns) {
        AscendC::DataCopy(
            dst[(top - line.origin) * row], src[rows.At(top)], static_cast<uint32_t>((bottom - top) * row));
        return;
    }
    for (int32_t phase = 0; phase < line.period; ++phase) {
        const Places places(line, phase, top, bottom);
        if (places.count > 0) {
            AscendC::DataCopy(
                dst[places.begin * row], src[rows.At(places.row)], Bursts<S>(rows, line, places.count, true));
        }
    }
}

// The reverse, for all rows of a line before `bottom`.
template <typename S>
__aicore__ inline void StoreMap(
    const GlobalTensor<S>& dst, const LocalTensor<S>& src, const Rows& rows, const Line& line, int32_t bottom)
{
    const int32_t row = rows.images * (rows.last - rows.first) * rows.c0;
    if (line.period == 1 && rows.images == 1 && rows.last - rows.first == rows.columns) {
        AscendC::DataCopy(dst[rows.At(line.origin)], src, static_cast<uint32_t>((bottom - line.origin) * row));
        return;
    }
    for (int32_t phase = 0; phase < line.period; ++phase) {
        const Places places(line, phase, line.origin, bottom);
        if (places.count > 0) {
            AscendC::DataCopy(
                dst[rows.At(places.row)], src[places.begin * row], Bursts<S>(rows, line, places.count, false));
        }
    }
}

} // namespace NeoCell

#endif // NEO_CELL_BASE_H
