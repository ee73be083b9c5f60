// The tiling function of the NeoCell operators, for op_host and the simulator: which core does which rows, and how
// large the strips are. C++11, because CANN 8.x compiles operator projects with -std=c++11.
#ifndef NEO_CELL_MAKE_TILING_H
#define NEO_CELL_MAKE_TILING_H

#include "../op_kernel/neo_cell_tiling.h"

// Whether the 310P's vector cores, which have no cube unit, work beside its AI cores; and their rates, of 256, against
// those of an AI core: 1000 of 1060 MHz, and 9 bytes a cycle from memory of 17 (ops/soc.py).
constexpr bool NEO_CELL_VECTOR_CORES = true;
constexpr int32_t NEO_CELL_VECTOR_CORE_COMPUTE = 242;
constexpr int32_t NEO_CELL_VECTOR_CORE_MEMORY = 128;

// Strips that a core of the forward operator has at least if several images share one: the copies of the first and the
// last one are not hidden. Those of the gradient are short beside its arithmetic.
constexpr int32_t NEO_CELL_LEAST_STRIPS = 3;

// The problem as op_host and the simulator describe it. Storage is (images, planes, height, width, c0).
struct NeoCellProblem {
    int32_t images;
    int32_t planes;
    int32_t c0;
    int32_t hIn;
    int32_t wIn;
    int32_t hOut; // 0: from hIn and the runs
    int32_t wOut; // 0: likewise
    int32_t elementBytes;
    int32_t computeBytes;
    int32_t hasBias;
    int32_t gradient;
    int32_t runs;
    int64_t channels[NEO_CELL_MAX_RUNS];
    NeoCellMatrix a[NEO_CELL_MAX_RUNS];
    NeoCellMatrix b[NEO_CELL_MAX_RUNS];
};

struct NeoCellDevice {
    int32_t cores; // AI cores, or vector cores where those are cores of their own
    int32_t ubBytes;
    int32_t vectorCores; // of a 310P, beside the AI cores; blocks beyond the AI cores run there
};

// Return the outputs of one side of the map for `size` inputs: the most that any run has.
inline int64_t NeoCellOutputs(const NeoCellMatrix* sides, int32_t runs, int64_t size)
{
    int64_t most = 0;
    for (int32_t run = 0; run < runs; ++run) {
        const int64_t outputs = sides[run].kIn == sides[run].kOut ? size : size * sides[run].kOut / sides[run].kIn;
        most = outputs > most ? outputs : most;
    }
    return most;
}

// Return the most inputs that `outputs` neighbours out of `total` outputs of the runs [first, next) read.
inline int32_t NeoCellMostInputs(
    const uint16_t* sides, int32_t first, int32_t next, int32_t outputs, int32_t total, int32_t size)
{
    int32_t most = 0;
    for (int32_t begin = 0; begin + outputs <= total; ++begin) {
        int32_t low;
        int32_t high;
        NeoCellWindow(sides, first, next - 1, begin, begin + outputs, size, low, high);
        most = NeoCellMax(most, high - low);
    }
    return most;
}

// Return the bytes of unified buffer for strips of `strip` rows and `columns` columns, as the kernels' Init takes them,
// and fill in the window of the tiling.
inline int64_t NeoCellBuffers(const NeoCellProblem& problem, NeoCellTiling& tiling, int32_t strip, int32_t columns)
{
    tiling.strip = strip;
    tiling.columns = columns;
    tiling.windowRows = NeoCellMostInputs(tiling.runA, 0, problem.runs, strip, problem.hOut, problem.hIn);
    // Rows in the order of their phases leave places empty where the number of phases does not divide theirs.
    for (int32_t run = 0; run < problem.runs && problem.gradient == 0; ++run) {
        const NeoCellMatrix& a = problem.a[run];
        int32_t next = run + 1;
        while (next < problem.runs && NeoCellSameSize(tiling.runA[run], tiling.runA[next])) {
            ++next;
        }
        const int32_t outputs = NeoCellOrderedStrip(strip, a.kOut);
        if (outputs > 0) {
            const int32_t rows =
                NeoCellMostInputs(tiling.runA, run, next, NeoCellMin(outputs, problem.hOut), problem.hOut, problem.hIn);
            tiling.windowRows = NeoCellMax(tiling.windowRows, NeoCellCeil(rows, a.kIn) * a.kIn);
        }
        run = next - 1;
    }
    tiling.windowColumns =
        NeoCellMostInputs(tiling.runB, 0, problem.runs, columns, problem.wOut, problem.wIn);
    const int64_t stored = static_cast<int64_t>(problem.c0) * problem.elementBytes;
    const int64_t computed = static_cast<int64_t>(problem.c0) * problem.computeBytes;
    const bool cast = problem.elementBytes != problem.computeBytes;
    const int64_t group = tiling.group;
    const int64_t window = group * tiling.windowRows * tiling.windowColumns;
    const int64_t output = group * strip * columns;
    const int64_t rows = tiling.mostA + tiling.mostB;
    const int64_t coefficient = NEO_CELL_LANES * (2 * problem.elementBytes + (cast ? problem.computeBytes : 0));
    int64_t bytes = 2 * (window + output) * stored + (rows + 1) * coefficient;
    bytes += cast ? ((problem.gradient != 0 ? 1 : 2) * window + output) * computed : 0;
    int64_t product = static_cast<int64_t>(strip) * tiling.windowColumns; // A x
    if (problem.gradient != 0) {
        const int64_t other = static_cast<int64_t>(tiling.windowRows) * columns; // or x B
        product = product > other ? product : other;
        bytes += group * rows * NEO_CELL_LANES * problem.computeBytes;
        bytes += NEO_CELL_SCRATCH * NEO_CELL_GROUP * NEO_CELL_BLOCK;
    }
    return bytes + group * product * computed;
}

// Return the repeats for each output row and 8 positions, over the segments of a block of 16 channels, times 64 (to
// stay in integers).
inline int64_t NeoCellBlockWork(const NeoCellTiling& tiling, const uint16_t* sides, int32_t run, int32_t channel)
{
    const int32_t stop = NeoCellMin(channel + NEO_CELL_LANES, tiling.runEnd[tiling.runs - 1]);
    int64_t work = 0;
    while (channel < stop) {
        const NeoCellSegment segment = NeoCellNextSegment(tiling, sides, run, channel, stop);
        work += 64 * NeoCellSegmentRows(sides, segment) / segment.kOut;
        channel = segment.end;
        run = NeoCellRunAfter(tiling, segment);
    }
    return work;
}

// The estimated cycles for an output row of a plane, times 256, on a core of either kind.
struct NeoCellRowCost {
    int64_t aiCore;
    int64_t vectorCore;
};

// A plane's rows of coefficients, and what one of its output rows costs.
struct NeoCellPlane {
    int32_t rowsA;
    int32_t rowsB;
    bool last; // the last plane of its block of 16 channels; with c0 = 8 two planes share the block's coefficients
    NeoCellRowCost cost;
};

// Describe a plane; `run` is a run at or before its first one and moves on. A row costs 2 cycles for each repeat, or 2
// for each block of 32 bytes from or to memory, whichever is more, because the two overlap.
inline NeoCellPlane NeoCellDescribe(
    const NeoCellProblem& problem, const NeoCellTiling& tiling, int32_t plane, int32_t& run)
{
    const int32_t channel = plane * problem.c0 / NEO_CELL_LANES * NEO_CELL_LANES;
    while (tiling.runEnd[run] <= channel) {
        ++run;
    }
    NeoCellPlane found{};
    found.rowsA = NeoCellBlockRows(tiling, tiling.runA, run, channel);
    found.rowsB = NeoCellBlockRows(tiling, tiling.runB, run, channel);
    found.last = (plane + 1) * problem.c0 % NEO_CELL_LANES == 0 || plane + 1 == problem.planes;
    const int64_t work = NeoCellBlockWork(tiling, tiling.runA, run, channel) * problem.wIn +
                         NeoCellBlockWork(tiling, tiling.runB, run, channel) * problem.wOut;
    const int64_t pixel = problem.c0 * problem.elementBytes / NEO_CELL_BLOCK;
    const int64_t rows = (found.rowsA + found.rowsB) / (static_cast<int64_t>(problem.hOut) * problem.images);
    const int64_t memory = 512 * pixel * (problem.wIn + problem.wOut + rows);
    const int64_t slowWork = 256 * work / NEO_CELL_VECTOR_CORE_COMPUTE;
    const int64_t slowMemory = 256 * memory / NEO_CELL_VECTOR_CORE_MEMORY;
    found.cost = {(work > memory ? work : memory) + 256, (slowWork > slowMemory ? slowWork : slowMemory) + 256};
    return found;
}

// A place in the output, over (plane, image, row), where a core starts.
struct NeoCellStart {
    int32_t row;
    int32_t totalA; // rows of coefficients before its block of 16 channels
    int32_t totalB;
};

// Divides the output among AI cores, which come first, and vector cores, so that by the estimated costs all take
// equally long. For the gradient a core does whole maps, so that no two cores add to one sum.
class NeoCellDivision {
public:
    NeoCellDivision(const NeoCellProblem& problem, const NeoCellTiling& tiling) : problem_(problem), tiling_(tiling)
    {
        NeoCellRowCost all{0, 0};
        Walk([&](const NeoCellPlane& plane, const NeoCellStart& start, const NeoCellRowCost& before) {
            (void)start;
            all = {before.aiCore + plane.cost.aiCore * Rows(), before.vectorCore + plane.cost.vectorCore * Rows()};
        });
        all_ = all;
    }

    // Find where so many cores of either kind start.
    void Divide(int32_t aiCores, int32_t vectorCores, NeoCellStart* starts) const
    {
        // Where the two kinds meet, both take equally long: a / aiCores = (all - v) / vectorCores, with a and v the
        // costs of what comes before for the one and the other. Left of it a * vectorCores + v * aiCores is smaller.
        int64_t aiCost = all_.aiCore;
        int64_t vectorBefore = all_.vectorCore;
        if (vectorCores > 0) {
            const int64_t meeting = all_.vectorCore * aiCores;
            Walk([&](const NeoCellPlane& plane, const NeoCellStart& start, const NeoCellRowCost& before) {
                (void)start;
                const int64_t sum = before.aiCore * vectorCores + before.vectorCore * aiCores;
                const int64_t step = plane.cost.aiCore * vectorCores + plane.cost.vectorCore * aiCores;
                if (sum <= meeting && meeting < sum + step * Rows()) {
                    const int64_t rows = (meeting - sum) / step;
                    aiCost = before.aiCore + plane.cost.aiCore * rows;
                    vectorBefore = before.vectorCore + plane.cost.vectorCore * rows;
                }
            });
        }
        int32_t core = 0;
        const int32_t cores = aiCores + vectorCores;
        const int64_t vectorCost = all_.vectorCore - vectorBefore;
        Walk([&](const NeoCellPlane& plane, const NeoCellStart& start, const NeoCellRowCost& before) {
            for (; core < cores; ++core) {
                const bool ai = core < aiCores;
                const int64_t cost = ai ? plane.cost.aiCore : plane.cost.vectorCore;
                const int64_t done = ai ? before.aiCore : before.vectorCore;
                const int64_t target =
                    ai ? aiCost * core / aiCores : vectorBefore + vectorCost * (core - aiCores) / vectorCores;
                if (target >= done + cost * Rows()) {
                    return;
                }
                int32_t row = static_cast<int32_t>((target - done) / cost);
                row -= problem_.gradient != 0 ? row % problem_.hOut : 0;
                starts[core] = {start.row + row, start.totalA, start.totalB};
            }
        });
    }

    // Return the cost of the slowest of the cores that start at `starts`.
    int64_t Slowest(int32_t aiCores, int32_t vectorCores, const NeoCellStart* starts) const
    {
        const int32_t cores = aiCores + vectorCores;
        int64_t slowest = 0;
        int64_t cost = 0;
        int32_t core = -1;
        Walk([&](const NeoCellPlane& plane, const NeoCellStart& start, const NeoCellRowCost& before) {
            (void)before;
            int32_t row = start.row;
            const int32_t end = start.row + Rows();
            while (row < end) {
                while (core + 1 < cores && starts[core + 1].row <= row) {
                    ++core;
                    cost = 0;
                }
                const int32_t stop = core + 1 < cores ? NeoCellMin(starts[core + 1].row, end) : end;
                cost += (core < aiCores ? plane.cost.aiCore : plane.cost.vectorCore) * (stop - row);
                slowest = cost > slowest ? cost : slowest;
                row = stop;
            }
        });
        return slowest;
    }

private:
    int32_t Rows() const
    {
        return problem_.images * problem_.hOut;
    }

    // Call `visit` with each plane, its start, and the costs of all planes before it.
    template <typename Visit>
    void Walk(Visit visit) const
    {
        int32_t run = 0;
        NeoCellStart start{0, 0, 0};
        NeoCellRowCost before{0, 0};
        for (int32_t plane = 0; plane < problem_.planes; ++plane) {
            const NeoCellPlane found = NeoCellDescribe(problem_, tiling_, plane, run);
            visit(found, start, before);
            start.row += Rows();
            start.totalA += found.last ? found.rowsA : 0;
            start.totalB += found.last ? found.rowsB : 0;
            before.aiCore += found.cost.aiCore * Rows();
            before.vectorCore += found.cost.vectorCore * Rows();
        }
    }

    const NeoCellProblem& problem_;
    const NeoCellTiling& tiling_;
    NeoCellRowCost all_;
};

// Divide the output among the cores, and fill in the rows of coefficients. Vector cores work too unless the AI cores
// alone are faster, which happens where whole maps are few.
inline void NeoCellDivide(
    const NeoCellProblem& problem, const NeoCellDevice& device, int32_t units, NeoCellTiling& tiling)
{
    const NeoCellDivision division(problem, tiling);
    const int32_t aiCores = NeoCellMin(NeoCellMin(device.cores, NEO_CELL_MAX_CORES), units);
    const int32_t vectorCores = NeoCellMin(
        NeoCellMin(NEO_CELL_VECTOR_CORES ? device.vectorCores : 0, NEO_CELL_MAX_CORES - aiCores), units - aiCores);
    NeoCellStart starts[NEO_CELL_MAX_CORES];
    tiling.cores = aiCores + vectorCores;
    division.Divide(aiCores, vectorCores, starts);
    if (vectorCores > 0) {
        NeoCellStart alone[NEO_CELL_MAX_CORES];
        division.Divide(aiCores, 0, alone);
        if (division.Slowest(aiCores, 0, alone) <= division.Slowest(aiCores, vectorCores, starts)) {
            tiling.cores = aiCores;
            for (int32_t core = 0; core < aiCores; ++core) {
                starts[core] = alone[core];
            }
        }
    }
    for (int32_t core = 0; core < tiling.cores; ++core) {
        tiling.first[core] = starts[core].row;
        tiling.offsetA[core] = starts[core].totalA;
        tiling.offsetB[core] = starts[core].totalB;
    }
    tiling.first[tiling.cores] = problem.planes * problem.images * problem.hOut;
    int32_t run = 0;
    for (int32_t plane = 0; plane < problem.planes; ++plane) {
        const NeoCellPlane found = NeoCellDescribe(problem, tiling, plane, run);
        tiling.mostA = NeoCellMax(tiling.mostA, found.rowsA);
        tiling.mostB = NeoCellMax(tiling.mostB, found.rowsB);
        tiling.totalA += found.last ? found.rowsA : 0;
        tiling.totalB += found.last ? found.rowsB : 0;
    }
}

// Estimate the cycles that strips of `strip` rows and `columns` columns take on a core with `rows` rows of a plane: 22
// for an instruction, 2 for a repeat, 2 for a block of 32 bytes from or to memory. In the product with B 8 rows, or 8
// columns of a phase, lie across a repeat. Columns that are computed apart read their margins twice.
inline int64_t NeoCellCost(
    const NeoCellProblem& problem, NeoCellTiling& tiling, int32_t rows, int32_t strip, int32_t columns)
{
    NeoCellBuffers(problem, tiling, strip, columns);
    int64_t k = 1;
    for (int32_t run = 0; run < problem.runs; ++run) {
        k = NeoCellMax(static_cast<int32_t>(k), NeoCellMax(problem.a[run].kIn, problem.b[run].kIn));
    }
    const int32_t period = static_cast<int32_t>(k);
    const int64_t tiles = NeoCellCeil(problem.wOut, columns);
    const int64_t strips = NeoCellCeil(rows, strip);
    const int64_t across = NeoCellCeil(tiling.windowColumns, NEO_CELL_GROUP);
    // Rows that are too far apart for one instruction are done one by one.
    const int32_t apart = NeoCellMax(tiling.windowColumns, columns) * problem.c0 * problem.computeBytes;
    const int32_t group = apart <= NEO_CELL_MAX_STRIDE * NEO_CELL_BLOCK ? NEO_CELL_GROUP : 1;
    const int64_t byRows = NeoCellCeil(strip, group);
    const int64_t byColumns = NeoCellCeil(NeoCellCeil(columns, period), NEO_CELL_GROUP);
    const int64_t straight = k * k * byRows * (22 + 2 * NeoCellCeil(columns, period));
    const int64_t turned = k * k * byColumns * (22 + 2 * strip);
    const int64_t left = k * (22 * k + 2 * strip * across);
    const int64_t kept = tiling.windowRows > strip ? (tiling.windowRows - strip) * across : 0;
    const int64_t pixel = problem.c0 * problem.elementBytes / NEO_CELL_BLOCK;
    return tiles * (strips * (left + (straight < turned ? straight : turned)) + (strips - 1) * kept) +
           2 * rows * pixel * (tiles * tiling.windowColumns + problem.wOut);
}

inline const char* NeoCellCheckSide(const NeoCellMatrix& matrix)
{
    if (matrix.kIn < 1 || matrix.kOut < 1 || matrix.shift < 0) {
        return "matrix sizes must be at least 1 and shifts at least 0";
    }
    if (matrix.kIn > NEO_CELL_MAX_KERNEL || matrix.kOut > NEO_CELL_MAX_KERNEL) {
        return "matrices larger than 32 are not supported";
    }
    if (matrix.shift != 0 && (matrix.kIn != matrix.kOut || matrix.shift >= matrix.kOut)) {
        return "only square matrices can be shifted, by less than their size";
    }
    return nullptr;
}

// Check maps of hIn x wIn and hOut x wOut against what 32 bits and the parameters of a copy hold.
inline const char* NeoCellCheckSizes(const NeoCellProblem& problem, int64_t hOut, int64_t wOut)
{
    const int64_t height = hOut > problem.hIn ? hOut : problem.hIn;
    const int64_t width = wOut > problem.wIn ? wOut : problem.wIn;
    // Where a strip does not have all columns, a copy skips the others from row to row.
    if ((width - 1) * problem.c0 * problem.elementBytes / NEO_CELL_BLOCK > NEO_CELL_MAX_GAP) {
        return "the rows of x or of the output are longer than 65536 blocks of 32 bytes";
    }
    if (height > NEO_CELL_MAX_ROWS) {
        return "the maps of x or of the output are higher than 16777216 rows";
    }
    const int64_t maps = static_cast<int64_t>(problem.planes) * problem.images;
    if (maps > INT32_MAX / height || maps * height > NEO_CELL_MAX_POSITIONS / width) {
        return "x or the output has more than 2147483647 rows, or more than 68719476736 blocks of 16 channels";
    }
    return nullptr;
}

// Return the most images that may share a strip by the strides and, for the gradient, the scratch buffer. An image's
// sum then has the same order in any strip: `NeoCellGradient::Sum`.
inline int32_t NeoCellMostImages(const NeoCellProblem& problem)
{
    if (problem.gradient == 0) {
        return problem.images;
    }
    int32_t periods = 1;
    int32_t side = 1;
    for (int32_t run = 0; run < problem.runs; ++run) {
        const NeoCellMatrix& a = problem.a[run];
        periods = NeoCellMax(periods, NeoCellCeil(problem.hOut, a.kOut));
        periods = NeoCellMax(periods, NeoCellCeil(problem.wOut, problem.b[run].kOut));
        side = NeoCellMax(side, NeoCellMax(a.kIn, a.kOut));
    }
    const int32_t blocks = problem.c0 * problem.computeBytes / NEO_CELL_BLOCK;
    if (side * problem.wOut * blocks > NEO_CELL_MAX_STRIDE) {
        return 1;
    }
    const int32_t width = NeoCellMax(problem.wIn, problem.wOut) * blocks;
    return NeoCellMin(problem.images, NeoCellMin(NEO_CELL_SCRATCH / periods, NEO_CELL_MAX_STRIDE / width));
}

// Let a strip that is a whole map have several images, as many as fit: each instruction then does more repeats, and
// fewer of their lanes stay empty.
inline void NeoCellGroupImages(const NeoCellProblem& problem, const NeoCellDevice& device, NeoCellTiling& tiling)
{
    int32_t maps = 0;
    for (int32_t core = 0; core < tiling.cores; ++core) {
        maps = NeoCellMax(maps, (tiling.first[core + 1] - tiling.first[core]) / problem.hOut);
    }
    const int32_t most =
        NeoCellMin(NeoCellMostImages(problem), problem.gradient != 0 ? maps : maps / NEO_CELL_LEAST_STRIPS);
    for (int32_t group = most; group > 1; --group) {
        // Groups of equal size.
        tiling.group = NeoCellCeil(problem.images, NeoCellCeil(problem.images, group));
        if (NeoCellBuffers(problem, tiling, tiling.strip, tiling.columns) <= device.ubBytes) {
            return;
        }
    }
    tiling.group = 1;
}

// Fill `tiling` for at most the cores of a device. Return nullptr, or the reason why there is none.
inline const char* NeoCellMakeTiling(NeoCellProblem problem, const NeoCellDevice& device, NeoCellTiling& tiling)
{
    tiling = NeoCellTiling{};
    if (problem.images < 1 || problem.planes < 1 || problem.hIn < 1 || problem.wIn < 1) {
        return "x must be (N, C1, H, W, C0) and not empty";
    }
    if (problem.c0 != 8 && problem.c0 != NEO_CELL_LANES) {
        return "C0 must be 8 or 16";
    }
    if (problem.c0 * problem.elementBytes % NEO_CELL_BLOCK != 0) {
        return "C0 elements must fill whole blocks of 32 bytes";
    }
    if (problem.runs < 1 || problem.runs > NEO_CELL_MAX_RUNS) {
        return "there must be 1 to 64 runs of channels";
    }
    if (device.cores < 1 || device.ubBytes < 1 || device.vectorCores < 0) {
        return "the device must have a core and a unified buffer";
    }
    int64_t channels = 0;
    for (int32_t run = 0; run < problem.runs; ++run) {
        const NeoCellMatrix& a = problem.a[run];
        const NeoCellMatrix& b = problem.b[run];
        const char* reason = NeoCellCheckSide(a);
        reason = reason != nullptr ? reason : NeoCellCheckSide(b);
        if (reason != nullptr) {
            return reason;
        }
        if (problem.channels[run] < 1) {
            return "every run needs at least one channel";
        }
        channels += problem.channels[run];
        tiling.runEnd[run] = static_cast<int32_t>(channels);
        tiling.runA[run] = NeoCellPack(a);
        tiling.runB[run] = NeoCellPack(b);
    }
    const int64_t lanes = static_cast<int64_t>(problem.planes) * problem.c0;
    if (lanes > NEO_CELL_MAX_CHANNELS) {
        return "more than 131072 channels are not supported";
    }
    if (channels > lanes || channels <= lanes - problem.c0) {
        return "the channels of the runs do not add up to those of x";
    }
    // Lanes beyond the last channel belong to its run and have coefficients of zero: they need no mask of their own.
    tiling.runEnd[problem.runs - 1] = static_cast<int32_t>(lanes);
    tiling.runs = problem.runs;
    const int64_t hOut = problem.hOut != 0 ? problem.hOut : NeoCellOutputs(problem.a, problem.runs, problem.hIn);
    const int64_t wOut = problem.wOut != 0 ? problem.wOut : NeoCellOutputs(problem.b, problem.runs, problem.wIn);
    if (hOut < 1 || wOut < 1) {
        return "the output would be empty";
    }
    if (const char* reason = NeoCellCheckSizes(problem, hOut, wOut)) {
        return reason;
    }
    problem.hOut = static_cast<int32_t>(hOut);
    problem.wOut = static_cast<int32_t>(wOut);
    tiling.images = problem.images;
    tiling.planes = problem.planes;
    tiling.c0 = problem.c0;
    tiling.hIn = problem.hIn;
    tiling.wIn = problem.wIn;
    tiling.hOut = problem.hOut;
    tiling.wOut = problem.wOut;
    tiling.hasBias = problem.hasBias;
    tiling.group = 1;

    const int32_t maps = problem.planes * problem.images;
    NeoCellDivide(problem, device, problem.gradient != 0 ? maps : maps * problem.hOut, tiling);

    // Try ever more tiles across, and for each the largest strips that fit: fewer columns leave room for more rows.
    int32_t rows = 0;
    for (int32_t core = 0; core < tiling.cores; ++core) {
        rows = NeoCellMax(rows, NeoCellMin(problem.hOut, tiling.first[core + 1] - tiling.first[core]));
    }
    int64_t best = -1;
    int32_t strip = 0;
    int32_t columns = 0;
    for (int32_t tiles = 1; tiles <= problem.wOut; ++tiles) {
        const int32_t width = NeoCellCeil(problem.wOut, tiles);
        int32_t most = 0;
        for (int32_t low = 1, high = rows; low <= high;) {
            const int32_t middle = low + (high - low) / 2;
            const bool fits = NeoCellBuffers(problem, tiling, middle, width) <= device.ubBytes;
            most = fits ? middle : most;
            low = fits ? middle + 1 : low;
            high = fits ? high : middle - 1;
        }
        if (most == 0) {
            continue;
        }
        // The largest strip is not always the cheapest: whole periods and full repeats matter as well.
        for (int32_t candidate = most; candidate > 0 && candidate > most - 2 * NEO_CELL_MAX_KERNEL; --candidate) {
            const int64_t cost = NeoCellCost(problem, tiling, rows, candidate, width);
            if (best < 0 || cost < best) {
                best = cost;
                strip = candidate;
                columns = width;
            }
        }
        // Margins grow with every cut, so that more tiles than these do not pay any more.
        if (best >= 0 && tiles >= 8) {
            break;
        }
    }
    if (best < 0) {
        return "the matrices are too large for the unified buffer";
    }
    NeoCellBuffers(problem, tiling, strip, columns);
    if (strip >= problem.hOut && columns == problem.wOut) {
        NeoCellGroupImages(problem, device, tiling);
    }
    return nullptr;
}

#endif // NEO_CELL_MAKE_TILING_H
