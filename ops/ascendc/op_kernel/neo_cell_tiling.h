// Geometry and tiling data of the NeoCell operators: plain C++, the same for op_host, the kernels and the simulator.
// The function that fills the tiling data is in op_host/neo_cell_make_tiling.h.
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
// Limits that keep products of sizes and indices in their types.
constexpr int32_t NEO_CELL_MAX_CHANNELS = 131072;
constexpr int32_t NEO_CELL_MAX_ROWS = 16777216; // of a map
constexpr int64_t NEO_CELL_MAX_POSITIONS = 68719476736; // of all maps

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
    int32_t group;         // images computed at a time, if a strip is a whole map
    int32_t windowRows;    // most rows of UB that the input of a strip takes
    int32_t windowColumns; // most input columns that a strip needs
    int32_t mostA;         // most rows of coefficients of one block of 16 channels
    int32_t mostB;
    int32_t totalA;        // rows of coefficients
    int32_t totalB;
    int32_t cores; // those that work: AI cores first, then vector cores
    // Output row, over (plane, image, row), at which each core starts, and behind the last core the number of rows.
    int32_t first[NEO_CELL_MAX_CORES + 1];
    int32_t runs;
    int32_t runEnd[NEO_CELL_MAX_RUNS]; // end of the run's channels; of the last run, end of the lanes
    uint16_t runA[NEO_CELL_MAX_RUNS];  // NeoCellPack
    uint16_t runB[NEO_CELL_MAX_RUNS];
    int32_t offsetA[NEO_CELL_MAX_CORES]; // first row of coefficients of each core's first block of 16 channels
    int32_t offsetB[NEO_CELL_MAX_CORES];
};

static_assert(sizeof(NeoCellTiling) % 8 == 0, "CANN copies tiling data in steps of 8 bytes");

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

#endif // NEO_CELL_TILING_H
