// Geometry and tiling of the NeoCell operators: plain C++, the same for op_host, the kernels and the simulator.
//
// A side (A over rows, B over columns) is a periodic filter. Output o = m * kOut + p of a channel reads the inputs
// m * kIn + t, with taps t that depend on the phase p and on the channel's shift alone; ops/packing.py has the
// equation and packs one row of 16 coefficients for each tap of each phase of each segment (neighbouring channels of a
// block of 16 whose matrices have the same size).
#ifndef NEO_CELL_TILING_H
#define NEO_CELL_TILING_H

#include <cstdint>

#ifdef __aicore__
#define NEO_CELL_FN __aicore__ inline
#else
#define NEO_CELL_FN inline
#endif

constexpr int32_t NEO_CELL_LANES = 16;       // channels of a row of coefficients
constexpr int32_t NEO_CELL_MAX_RUNS = 64;    // runs of channels with the same sizes and shifts
constexpr int32_t NEO_CELL_MAX_CORES = 48;
constexpr int32_t NEO_CELL_MAX_KERNEL = 32;  // side of a small matrix
constexpr int32_t NEO_CELL_MAX_STRIDE = 255; // blocks of 32 bytes between neighbours in one vector instruction
constexpr int32_t NEO_CELL_BLOCK = 32;       // bytes
constexpr int32_t NEO_CELL_GROUP = 8;        // blocks in one repeat of a vector instruction
constexpr int32_t NEO_CELL_SCRATCH = 32;     // repeats that the gradient sums side by side
constexpr int32_t NEO_CELL_MAX_GAP = 65535;  // blocks of 32 bytes between the bursts of a copy

// One side of a run of channels.
struct NeoCellMatrix {
    int32_t kIn;
    int32_t kOut;
    int32_t shift;
};

// The tiling data that the kernels get. Sizes are in elements unless said otherwise.
struct NeoCellTiling {
    int32_t images;
    int32_t planes;        // blocks of c0 channels
    int32_t c0;
    int32_t hIn;
    int32_t wIn;
    int32_t hOut;
    int32_t wOut;
    int32_t hasBias;
    int32_t strip;         // output rows computed at a time
    int32_t columns;       // output columns computed at a time
    int32_t windowRows;    // most rows of UB that the input of a strip takes
    int32_t windowColumns; // most input columns that a strip needs
    int32_t mostA;         // most rows of coefficients of one block of 16 channels
    int32_t mostB;
    int32_t totalA;        // rows of coefficients
    int32_t totalB;
    int32_t cores;
    // Output row, over (plane, image, row), at which each core starts, and behind the last core the number of rows. Two
    // more than the cores, so that the size is a multiple of 8.
    int32_t first[NEO_CELL_MAX_CORES + 2];
    int32_t runs;
    int32_t runEnd[NEO_CELL_MAX_RUNS]; // end of the run's channels; of the last run, end of the lanes
    uint16_t runA[NEO_CELL_MAX_RUNS];  // NeoCellPack
    uint16_t runB[NEO_CELL_MAX_RUNS];
    int32_t offsetA[NEO_CELL_MAX_CORES]; // first row of coefficients of each core's first block of 16 channels
    int32_t offsetB[NEO_CELL_MAX_CORES];
};

static_assert(sizeof(NeoCellTiling) % 8 == 0, "CANN copies tiling data in steps of 8 bytes");

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
    int32_t cores;
    int32_t ubBytes;
};

NEO_CELL_FN int32_t NeoCellMin(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

NEO_CELL_FN int32_t NeoCellMax(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

NEO_CELL_FN int32_t NeoCellCeil(int32_t a, int32_t b)
{
    return (a + b - 1) / b;
}

// Pack one side of a run into 15 bits: kIn - 1, kOut - 1 and shift, five bits each.
NEO_CELL_FN uint16_t NeoCellPack(const NeoCellMatrix& matrix)
{
    return static_cast<uint16_t>((matrix.kIn - 1) | (matrix.kOut - 1) << 5 | matrix.shift << 10);
}

NEO_CELL_FN NeoCellMatrix NeoCellUnpack(uint16_t run)
{
    return {(run & 31) + 1, ((run >> 5) & 31) + 1, run >> 10};
}

// Return whether two runs have matrices of the same size.
NEO_CELL_FN bool NeoCellSameSize(uint16_t run, uint16_t other)
{
    return ((run ^ other) & 1023) == 0;
}

// Return the first input of the block that an output lies in; it is negative before the map. `output` >= 0 and
// 0 <= shift < kOut.
NEO_CELL_FN int32_t NeoCellFirstInput(const NeoCellMatrix& matrix, int32_t output)
{
    const int32_t block = output < matrix.shift ? -1 : (output - matrix.shift) / matrix.kOut;
    return block * matrix.kIn + matrix.shift;
}

// Neighbouring channels, of one block of 16, whose matrices have the same size: `first` to `last` are their runs.
struct NeoCellSegment {
    int32_t first;
    int32_t last;
    int32_t begin; // channels
    int32_t end;
    int32_t kIn;
    int32_t kOut;
};

// Return the segment that starts at channel `begin`, in run `run`, and ends at `stop` at the latest.
NEO_CELL_FN NeoCellSegment NeoCellNextSegment(
    const NeoCellTiling& tiling, const uint16_t* sides, int32_t run, int32_t begin, int32_t stop)
{
    const NeoCellMatrix matrix = NeoCellUnpack(sides[run]);
    NeoCellSegment segment{run, run, begin, NeoCellMin(tiling.runEnd[run], stop), matrix.kIn, matrix.kOut};
    while (segment.end < stop && NeoCellSameSize(sides[segment.last + 1], sides[run])) {
        ++segment.last;
        segment.end = NeoCellMin(tiling.runEnd[segment.last], stop);
    }
    return segment;
}

// Return the run in which the channel behind `segment` lies.
NEO_CELL_FN int32_t NeoCellRunAfter(const NeoCellTiling& tiling, const NeoCellSegment& segment)
{
    return tiling.runEnd[segment.last] == segment.end ? segment.last + 1 : segment.last;
}

// Find the taps [start, stop) of a phase over the runs of a segment.
NEO_CELL_FN void NeoCellTaps(
    const uint16_t* sides, int32_t first, int32_t last, int32_t phase, int32_t& start, int32_t& stop)
{
    const NeoCellMatrix one = NeoCellUnpack(sides[first]);
    int32_t low = NeoCellFirstInput(one, phase);
    int32_t high = low;
    for (int32_t run = first + 1; run <= last; ++run) {
        const int32_t tap = NeoCellFirstInput(NeoCellUnpack(sides[run]), phase);
        low = NeoCellMin(low, tap);
        high = NeoCellMax(high, tap);
    }
    start = low;
    stop = high + one.kIn;
}

// Return the rows of coefficients of a segment of a whole block of 16 channels.
NEO_CELL_FN int32_t NeoCellSegmentRows(const uint16_t* sides, const NeoCellSegment& segment)
{
    int32_t rows = 0;
    for (int32_t phase = 0; phase < segment.kOut; ++phase) {
        int32_t start;
        int32_t stop;
        NeoCellTaps(sides, segment.first, segment.last, phase, start, stop);
        rows += stop - start;
    }
    return rows;
}

// Return the rows of coefficients of the block of 16 channels that starts at `channel`, in run `run`.
NEO_CELL_FN int32_t NeoCellBlockRows(const NeoCellTiling& tiling, const uint16_t* sides, int32_t run, int32_t channel)
{
    const int32_t stop = NeoCellMin(channel + NEO_CELL_LANES, tiling.runEnd[tiling.runs - 1]);
    int32_t rows = 0;
    while (channel < stop) {
        const NeoCellSegment segment = NeoCellNextSegment(tiling, sides, run, channel, stop);
        rows += NeoCellSegmentRows(sides, segment);
        channel = segment.end;
        run = NeoCellRunAfter(tiling, segment);
    }
    return rows;
}

// Return the rows of a strip that lies in UB in the order of `phases` phases: whole periods, 0 if not even one fits.
NEO_CELL_FN int32_t NeoCellOrderedStrip(int32_t strip, int32_t phases)
{
    return strip / phases * phases;
}

// Find the inputs [low, high) of the map that outputs [begin, end) of the runs `first` to `last` read.
NEO_CELL_FN void NeoCellWindow(
    const uint16_t* sides, int32_t first, int32_t last, int32_t begin, int32_t end, int32_t size, int32_t& low,
    int32_t& high)
{
    low = size;
    high = 0;
    for (int32_t run = first; run <= last; ++run) {
        const NeoCellMatrix matrix = NeoCellUnpack(sides[run]);
        low = NeoCellMin(low, NeoCellFirstInput(matrix, begin));
        high = NeoCellMax(high, NeoCellFirstInput(matrix, end - 1) + matrix.kIn);
    }
    low = NeoCellMax(low, 0);
    high = NeoCellMin(high, size);
}

// Only the host needs the rest, so the device's compiler does not see it.
#if (!defined(__CCE_AICORE__) && !defined(__NPU_ARCH__)) || defined(NEO_CELL_HOST_TILING)

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
    const int64_t window = static_cast<int64_t>(tiling.windowRows) * tiling.windowColumns;
    const int64_t output = static_cast<int64_t>(strip) * columns;
    const int64_t rows = tiling.mostA + tiling.mostB;
    const int64_t coefficient = NEO_CELL_LANES * (2 * problem.elementBytes + (cast ? problem.computeBytes : 0));
    int64_t bytes = 2 * (window + output) * stored + (rows + 1) * coefficient;
    bytes += static_cast<int64_t>(strip) * tiling.windowColumns * computed; // A x
    bytes += cast ? ((problem.gradient != 0 ? 1 : 2) * window + output) * computed : 0;
    if (problem.gradient != 0) {
        bytes += static_cast<int64_t>(tiling.windowRows) * columns * computed; // x B
        bytes += rows * NEO_CELL_LANES * problem.computeBytes;
        bytes += NEO_CELL_SCRATCH * NEO_CELL_GROUP * NEO_CELL_BLOCK;
    }
    return bytes;
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

// Estimate the cycles for an output row of a plane: 2 for each repeat, or 2 for each block of 32 bytes from or to
// memory, whichever is more, because the two overlap.
inline int64_t NeoCellRowCost(const NeoCellProblem& problem, int64_t workA, int64_t workB, int32_t rows)
{
    const int64_t vector = (workA * problem.wIn + workB * problem.wOut) / 256;
    const int64_t pixel = problem.c0 * problem.elementBytes / NEO_CELL_BLOCK;
    const int64_t memory = 2 * pixel * (problem.wIn + problem.wOut + rows / (problem.hOut * problem.images));
    return (vector > memory ? vector : memory) + 1;
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

// Fill `tiling` for at most `device.cores` cores. Return nullptr, or the reason why there is none.
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
    if (device.cores < 1 || device.ubBytes < 1) {
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
    if (channels > lanes || channels <= lanes - problem.c0) {
        return "the channels of the runs do not add up to those of x";
    }
    // Lanes beyond the last channel belong to its run and have coefficients of zero: they need no mask of their own.
    tiling.runEnd[problem.runs - 1] = static_cast<int32_t>(lanes);
    tiling.runs = problem.runs;
    if (problem.hOut == 0) {
        problem.hOut = static_cast<int32_t>(NeoCellOutputs(problem.a, problem.runs, problem.hIn));
    }
    if (problem.wOut == 0) {
        problem.wOut = static_cast<int32_t>(NeoCellOutputs(problem.b, problem.runs, problem.wIn));
    }
    if (problem.hOut < 1 || problem.wOut < 1) {
        return "the output would be empty";
    }
    tiling.images = problem.images;
    tiling.planes = problem.planes;
    tiling.c0 = problem.c0;
    tiling.hIn = problem.hIn;
    tiling.wIn = problem.wIn;
    tiling.hOut = problem.hOut;
    tiling.wOut = problem.wOut;
    tiling.hasBias = problem.hasBias;

    const int64_t units =
        static_cast<int64_t>(problem.planes) * problem.images * (problem.gradient != 0 ? 1 : problem.hOut);
    if (units > INT32_MAX || lanes > INT32_MAX) {
        return "x is too large";
    }
    tiling.cores = NeoCellMin(NeoCellMin(device.cores, NEO_CELL_MAX_CORES), static_cast<int32_t>(units));
    const int32_t rowsOfPlane = problem.images * problem.hOut;
    // The first pass adds up the cost of all planes, the second one cuts it into equal parts.
    int64_t total = 0;
    for (int32_t pass = 0; pass < 2; ++pass) {
        int64_t done = 0;
        int32_t core = 0;
        int32_t run = 0;
        tiling.totalA = 0;
        tiling.totalB = 0;
        for (int32_t plane = 0; plane < problem.planes; ++plane) {
            const int32_t channel = plane * problem.c0 / NEO_CELL_LANES * NEO_CELL_LANES;
            while (tiling.runEnd[run] <= channel) {
                ++run;
            }
            const int32_t rowsA = NeoCellBlockRows(tiling, tiling.runA, run, channel);
            const int32_t rowsB = NeoCellBlockRows(tiling, tiling.runB, run, channel);
            const int64_t cost = NeoCellRowCost(
                problem, NeoCellBlockWork(tiling, tiling.runA, run, channel),
                NeoCellBlockWork(tiling, tiling.runB, run, channel), rowsA + rowsB);
            // Cores that start within this plane. The gradient keeps a map whole, so that no two cores add to one sum.
            for (; pass == 1 && core < tiling.cores && total * core / tiling.cores < done + cost * rowsOfPlane;
                 ++core) {
                int32_t row = static_cast<int32_t>((total * core / tiling.cores - done) / cost);
                row -= problem.gradient ? row % problem.hOut : 0;
                tiling.first[core] = plane * rowsOfPlane + row;
                tiling.offsetA[core] = tiling.totalA;
                tiling.offsetB[core] = tiling.totalB;
            }
            done += cost * rowsOfPlane;
            // With c0 = 8 two planes share a block of 16 channels and its coefficients.
            const bool last = (plane + 1) * problem.c0 % NEO_CELL_LANES == 0 || plane + 1 == problem.planes;
            tiling.mostA = NeoCellMax(tiling.mostA, rowsA);
            tiling.mostB = NeoCellMax(tiling.mostB, rowsB);
            tiling.totalA += last ? rowsA : 0;
            tiling.totalB += last ? rowsB : 0;
        }
        total = done;
    }
    tiling.first[tiling.cores] = problem.planes * rowsOfPlane;

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
    if (best >= 0) {
        NeoCellBuffers(problem, tiling, strip, columns);
        return nullptr;
    }
    return "the matrices are too large for the unified buffer";
}

#endif // host

#endif // NEO_CELL_TILING_H
