// The operators' tiling function for Python (neo_cell.py): numbers in, the bytes of NeoCellTiling out. Python treats
// those bytes as opaque, so the struct may change without a change here.
#include "neo_cell_make_tiling.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int32_t neo_cell_tiling_bytes()
{
    return static_cast<int32_t>(sizeof(NeoCellTiling));
}

// `numbers`: cores, UB bytes, vector cores, then the fields of NeoCellProblem in order, with 7 numbers per run. Returns
// nullptr, or the reason why there is no tiling.
EXPORT const char* neo_cell_make_tiling(const int64_t* numbers, NeoCellTiling* tiling)
{
    NeoCellProblem problem{};
    const NeoCellDevice device{static_cast<int32_t>(numbers[0]), static_cast<int32_t>(numbers[1]),
                               static_cast<int32_t>(numbers[2])};
    const int64_t* next = numbers + 3;
    int32_t* const fields[] = {
        &problem.images,       &problem.planes,  &problem.c0,       &problem.hIn,
        &problem.wIn,          &problem.hOut,    &problem.wOut,     &problem.elementBytes,
        &problem.computeBytes, &problem.hasBias, &problem.gradient, &problem.runs};
    for (int32_t* field : fields) {
        *field = static_cast<int32_t>(*next++);
    }
    for (int32_t run = 0; run < problem.runs && run < NEO_CELL_MAX_RUNS; ++run, next += 7) {
        const auto number = [next](int i) { return static_cast<int32_t>(next[i]); };
        problem.channels[run] = next[0];
        problem.a[run] = {number(1), number(2), number(5)};
        problem.b[run] = {number(3), number(4), number(6)};
    }
    return NeoCellMakeTiling(problem, device, *tiling);
}

// The fields that a caller of the kernel needs, in the order of _FACTS in neo_cell.py.
EXPORT void neo_cell_tiling_facts(const NeoCellTiling* tiling, int32_t* facts)
{
    facts[0] = tiling->totalA;
    facts[1] = tiling->totalB;
    facts[2] = tiling->cores;
    facts[3] = tiling->hOut;
    facts[4] = tiling->wOut;
    facts[5] = tiling->strip;
    facts[6] = tiling->columns;
    facts[7] = tiling->group;
}
