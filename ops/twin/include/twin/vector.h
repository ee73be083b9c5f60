// How a vector instruction runs: repeats of 256 bytes, in blocks of 32, with strides and a mask.
#pragma once

#include "support.h"
#include "tensor.h"

namespace neonext_twin {

/// The mask array of a public function. A C array of one word says nothing about the high word.
class MaskBits {
public:
    template <size_t N>
    MaskBits(const uint64_t (&words)[N]) : low(words[0])
    {
        if constexpr (N > 1) {
            high = words[1];
        }
    }
    template <typename P, typename = std::enable_if_t<std::is_pointer_v<P>>>
    MaskBits(const P& words) : low(words[0]), high(words[1])
    {}

    uint64_t low = 0;
    uint64_t high = 0;
};

/// Which lanes of which repeats an instruction works on.
struct Lanes {
    int per_repeat = 0;
    int repeats = 0;
    uint64_t low = 0;
    uint64_t high = 0;
    uint64_t tail_low = 0;
    uint64_t tail_high = 0;
    uint64_t active = 0;

    uint64_t low_of(int repeat) const { return repeat == repeats - 1 ? tail_low : low; }
    uint64_t high_of(int repeat) const { return repeat == repeats - 1 ? tail_high : high; }
};

inline uint64_t ones(int count)
{
    return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

/// On 2201 a count, mask or repeat of zero does nothing; the documents promise that for no other architecture.
inline bool zero_does_nothing()
{
    return __NPU_ARCH__ == 2201;
}

inline void set_mask_bits(const MaskBits& mask, int per_repeat)
{
    if (!machine.mask_counter) {
        if (per_repeat <= 64 && mask.high != 0) {
            machine.refuse(Rule::mask, "the mask's high word is %#llx; %d lanes have only the low one",
                           static_cast<unsigned long long>(mask.high), per_repeat);
        }
        if (per_repeat < 64 && (mask.low & ~ones(per_repeat)) != 0) {
            machine.refuse(Rule::mask, "the mask has bits above lane %d", per_repeat - 1);
        }
        if (mask.low == 0 && mask.high == 0 && !zero_does_nothing()) {
            machine.refuse(Rule::mask, "the mask is empty");
        }
    }
    machine.mask_low = mask.low;
    machine.mask_high = mask.high;
}

inline void set_mask_length(uint64_t length, int per_repeat)
{
    if (machine.mask_counter) {
        machine.refuse(Rule::mask,
                       "a mask of %llu lanes in counter mode becomes a bit pattern and is then taken for a count; "
                       "give {count, 0}",
                       static_cast<unsigned long long>(length));
    }
    if (length > static_cast<uint64_t>(per_repeat) || (length == 0 && !zero_does_nothing())) {
        machine.refuse(Rule::mask, "a mask of %llu lanes; a repeat of this type has 1 to %d",
                       static_cast<unsigned long long>(length), per_repeat);
    }
    machine.mask_low = ones(static_cast<int>(length));
    machine.mask_high = ones(static_cast<int>(length) - 64);
    if (length == static_cast<uint64_t>(per_repeat)) {
        machine.mask_low = machine.mask_high = ~uint64_t{0};
    }
}

/// The lanes that the mask register and the repeat count select.
inline Lanes lanes_of_register(int per_repeat, const Field<uint8_t>& repeats)
{
    Lanes lanes;
    lanes.per_repeat = per_repeat;
    if (machine.mask_counter) {
        const uint64_t count = machine.mask_low;
        if (count == 0 && !zero_does_nothing()) {
            machine.refuse(Rule::count, "a count of 0");
        }
        if (count > repeat_bytes * 4096u) {
            machine.refuse(Rule::count, "the count in the mask register is %llu; was SetVectorMask called?",
                           static_cast<unsigned long long>(count));
        }
        lanes.repeats = static_cast<int>((count + per_repeat - 1) / per_repeat);
        lanes.low = ones(per_repeat);
        lanes.high = ones(per_repeat - 64);
        const int tail = static_cast<int>(count - static_cast<uint64_t>(std::max(lanes.repeats - 1, 0)) * per_repeat);
        lanes.tail_low = ones(tail);
        lanes.tail_high = ones(tail - 64);
        lanes.active = count;
        return lanes;
    }
    if (!repeats.fits() || (repeats.given() == 0 && !zero_does_nothing())) {
        machine.refuse(Rule::repeat, "%lld repeats; an instruction has 1 to 255",
                       static_cast<long long>(repeats.given()));
    }
    lanes.repeats = static_cast<int>(repeats.given());
    lanes.low = lanes.tail_low = machine.mask_low & ones(per_repeat);
    lanes.high = lanes.tail_high = machine.mask_high & ones(per_repeat - 64);
    lanes.active = static_cast<uint64_t>(lanes.repeats) *
                   static_cast<uint64_t>(__builtin_popcountll(lanes.low) + __builtin_popcountll(lanes.high));
    return lanes;
}

/// The lanes of the form with a count, which leaves the mask register reset and in normal mode.
inline Lanes lanes_of_count(int per_repeat, int64_t count)
{
    if (count < 0 || (count == 0 && !zero_does_nothing())) {
        machine.refuse(Rule::count, "a count of %lld elements", static_cast<long long>(count));
    }
    machine.mask_counter = true;
    machine.mask_low = static_cast<uint64_t>(count);
    const Lanes lanes = lanes_of_register(per_repeat, 1);
    machine.mask_counter = false;
    machine.mask_low = machine.mask_high = ~uint64_t{0};
    return lanes;
}

/// One operand: where it starts and how it moves, in blocks of 32 bytes.
struct Operand {
    const View* view;
    const char* name;
    uint32_t element;
    int64_t block_stride;
    int64_t repeat_stride;

    uint32_t first_block() const { return view->address / block_bytes; }
};

/// Active bytes of each block of one repeat.
struct Pattern {
    uint32_t bytes[8];
    int blocks;

    Pattern(const Lanes& lanes, int repeat, uint32_t element)
    {
        blocks = static_cast<int>(lanes.per_repeat * element / block_bytes);
        const int per_block = static_cast<int>(block_bytes / element);
        const uint64_t low = lanes.low_of(repeat);
        const uint64_t high = lanes.high_of(repeat);
        for (int block = 0; block < blocks; ++block) {
            const int lane = block * per_block;
            const uint64_t word = lane < 64 ? low >> lane : high >> (lane - 64);
            const uint64_t bits = word & ones(per_block);
            bytes[block] = bits == ones(per_block) ? ~0u : spread(bits, per_block, element);
        }
    }

    int last_block() const
    {
        int block = blocks - 1;
        while (block >= 0 && bytes[block] == 0) {
            --block;
        }
        return block;
    }

    bool full() const
    {
        for (int block = 0; block < blocks; ++block) {
            if (bytes[block] != ~0u) {
                return false;
            }
        }
        return true;
    }

private:
    static uint32_t spread(uint64_t bits, int per_block, uint32_t element)
    {
        uint32_t mask = 0;
        for (int lane = 0; lane < per_block; ++lane) {
            if ((bits >> lane & 1) != 0) {
                mask |= byte_mask(lane * element, (lane + 1) * element);
            }
        }
        return mask;
    }
};

inline void check_extent(const Operand& operand, const Pattern& pattern, int repeat)
{
    uint64_t end = 0;
    for (int block = 0; block < pattern.blocks; ++block) {
        if (pattern.bytes[block] != 0) {
            const uint64_t start = (repeat * operand.repeat_stride + block * operand.block_stride) * block_bytes;
            end = std::max<uint64_t>(end, start + 32 - __builtin_clz(pattern.bytes[block]));
        }
    }
    if (operand.view->address + end > operand.view->end) {
        const View& view = *operand.view;
        machine.refuse(Rule::ub_bounds, "%s: repeat %d reaches byte %llu of a tensor of %u bytes", operand.name, repeat,
                       static_cast<unsigned long long>(end), view.end > view.address ? view.end - view.address : 0);
    }
}

enum class Access { read, write };

/// Checks one operand of an instruction: state, alignment, bounds, and the shadow of every active block.
template <Access access>
inline void check_operand(uint32_t tick, const Lanes& lanes, const Operand& operand)
{
    operand.view->check(operand.name);
    operand.view->check_aligned(operand.name);
    if (lanes.repeats == 0 || lanes.active == 0) {
        return;
    }
    const Pattern body(lanes, 0, operand.element);
    const Pattern tail(lanes, lanes.repeats - 1, operand.element);
    if (lanes.repeats > 1) {
        check_extent(operand, body, lanes.repeats - 2);
    }
    check_extent(operand, tail, lanes.repeats - 1);
    const uint32_t first = operand.first_block();
    for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
        const Pattern& pattern = repeat == lanes.repeats - 1 ? tail : body;
        uint32_t block = first + static_cast<uint32_t>(repeat * operand.repeat_stride);
        for (int i = 0; i < pattern.blocks; ++i, block += static_cast<uint32_t>(operand.block_stride)) {
            if (pattern.bytes[i] == 0) {
                continue;
            }
            if constexpr (access == Access::read) {
                machine.read_block(pipe_v, tick, block, pattern.bytes[i], operand.name);
            } else {
                machine.write_block(pipe_v, tick, block, pattern.bytes[i], operand.name);
            }
        }
    }
}

/// How far an operand reaches, in blocks: [first, last].
struct Reach {
    uint32_t first;
    uint32_t last;

    Reach(const Lanes& lanes, const Operand& operand)
    {
        const int64_t blocks = static_cast<int64_t>(lanes.per_repeat) * operand.element / block_bytes;
        first = operand.first_block();
        last = first + static_cast<uint32_t>((lanes.repeats - 1) * operand.repeat_stride +
                                             (blocks - 1) * operand.block_stride);
    }

    bool meets(const Reach& other) const { return first <= other.last && other.first <= last; }
};

/// Numbers the repeat that last wrote each block, for the rules on overlap.
class Stamps {
public:
    void clear() { ++round_; }
    void set(uint32_t block, int repeat)
    {
        if (block >= stamps_.size()) {
            stamps_.resize(block + 1024);
        }
        stamps_[block] = {round_, repeat};
    }
    int get(uint32_t block) const
    {
        return block < stamps_.size() && stamps_[block].round == round_ ? stamps_[block].repeat : -1;
    }

private:
    struct Stamp {
        uint32_t round = 0;
        int repeat = -1;
    };
    std::vector<Stamp> stamps_;
    uint32_t round_ = 0;
};

inline Stamps stamps;

/// The destination of one repeat may not put two lanes into one place.
inline void check_destination(const Lanes& lanes, const Operand& destination)
{
    if (destination.block_stride == 0 && lanes.repeats > 0 && lanes.active > 0 &&
        Pattern(lanes, 0, destination.element).last_block() > 0) {
        machine.refuse(Rule::overlap, "%s: a block stride of 0 writes all blocks of a repeat to one place",
                       destination.name);
    }
}

/// Within a repeat a source must be the destination or apart from it; and no repeat may read what an earlier one of
/// the same instruction wrote. `accumulates` lifts the second rule, as the documents do for some operands.
inline void check_overlap(const Lanes& lanes, const Operand& destination, const Operand& source,
                          bool accumulates = false)
{
    if (lanes.repeats == 0 || lanes.active == 0 || !Reach(lanes, destination).meets(Reach(lanes, source))) {
        return;
    }
    const uint32_t to = destination.first_block();
    const uint32_t from = source.first_block();
    const bool same_lanes = destination.element == source.element;
    const bool same_strides = same_lanes && to == from && destination.block_stride == source.block_stride &&
                              destination.repeat_stride == source.repeat_stride;
    if (same_strides && destination.block_stride > 0 &&
        (lanes.repeats == 1 || destination.repeat_stride >= 8 * destination.block_stride)) {
        return;
    }
    stamps.clear();
    const Pattern written(lanes, 0, destination.element);
    const Pattern read(lanes, 0, source.element);
    for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
        const int64_t write_start = to + repeat * destination.repeat_stride;
        const int64_t read_start = from + repeat * source.repeat_stride;
        for (int i = 0; i < read.blocks; ++i) {
            if (read.bytes[i] == 0) {
                continue;
            }
            const int64_t block = read_start + i * source.block_stride;
            const int earlier = stamps.get(static_cast<uint32_t>(block));
            if (earlier >= 0 && !accumulates) {
                machine.refuse(Rule::overlap,
                               "%s: repeat %d reads bytes [%u, %u) of the unified buffer, which repeat %d of the same "
                               "instruction writes",
                               source.name, repeat, static_cast<uint32_t>(block) * block_bytes,
                               static_cast<uint32_t>(block + 1) * block_bytes, earlier);
            }
            if (!same_lanes) {
                continue;
            }
            for (int j = 0; j < written.blocks; ++j) {
                if (j != i && written.bytes[j] != 0 && write_start + j * destination.block_stride == block) {
                    machine.refuse(Rule::overlap,
                                   "%s: block %d of a repeat is block %d of the destination; they must be the same "
                                   "or apart",
                                   source.name, i, j);
                }
            }
        }
        for (int j = 0; j < written.blocks; ++j) {
            if (written.bytes[j] != 0) {
                stamps.set(static_cast<uint32_t>(write_start + j * destination.block_stride), repeat);
            }
        }
    }
}

/// One repeat of a source as contiguous lanes: in place when it lies so, else gathered into `scratch`.
template <typename T>
inline const T* gather_repeat(const Operand& operand, int repeat, int lanes, T* scratch)
{
    const uint8_t* start =
        machine.ub + (operand.first_block() + static_cast<uint64_t>(repeat * operand.repeat_stride)) * block_bytes;
    if (operand.block_stride == 1) {
        return reinterpret_cast<const T*>(start);
    }
    const int blocks = static_cast<int>(lanes * sizeof(T) / block_bytes);
    uint8_t* to = reinterpret_cast<uint8_t*>(scratch);
    for (int block = 0; block < blocks; ++block) {
        // A block with no active lane may lie beyond the buffer.
        const uint8_t* from = start + block * operand.block_stride * block_bytes;
        if (from + block_bytes <= machine.ub + machine.ub_bytes) {
            std::memcpy(to + block * block_bytes, from, block_bytes);
        }
    }
    return scratch;
}

template <typename T>
inline void scatter_repeat(const Operand& operand, int repeat, const Pattern& pattern, const T* lanes)
{
    uint8_t* start =
        machine.ub + (operand.first_block() + static_cast<uint64_t>(repeat * operand.repeat_stride)) * block_bytes;
    const uint8_t* from = reinterpret_cast<const uint8_t*>(lanes);
    for (int block = 0; block < pattern.blocks; ++block) {
        uint8_t* to = start + block * operand.block_stride * block_bytes;
        const uint32_t mask = pattern.bytes[block];
        if (mask == ~0u) {
            std::memcpy(to, from + block * block_bytes, block_bytes);
        } else if (mask != 0) {
            for (uint32_t byte = 0; byte < block_bytes; ++byte) {
                if ((mask >> byte & 1u) != 0) {
                    to[byte] = from[block * block_bytes + byte];
                }
            }
        }
    }
}

inline void count_vector(const Lanes& lanes, bool macs = false)
{
    PipeCounts counts;
    counts.instructions = 1;
    counts.repeats = static_cast<uint64_t>(lanes.repeats);
    counts.elements = lanes.active;
    counts.macs = macs ? lanes.active : 0;
    machine.count(pipe_v, counts);
}

constexpr int most_lanes = 256;

/// Runs f(out, a, b, lanes) on every repeat, lanes widened to the type they are computed in. With `accumulate`, `out`
/// holds the destination's lanes before.
template <bool accumulate, typename D, typename A, typename B, typename F>
inline void run_binary(const Lanes& lanes, const Operand& dst, const Operand& a, const Operand& b, F f,
                       bool second_accumulates = false)
{
    const uint32_t tick = machine.issue(pipe_v);
    check_destination(lanes, dst);
    check_overlap(lanes, dst, a);
    check_overlap(lanes, dst, b, second_accumulates);
    check_operand<Access::read>(tick, lanes, a);
    check_operand<Access::read>(tick, lanes, b);
    if constexpr (accumulate) {
        check_overlap(lanes, dst, dst);
        check_operand<Access::read>(tick, lanes, dst);
    }
    check_operand<Access::write>(tick, lanes, dst);
    count_vector(lanes, accumulate);
    if (lanes.active == 0) {
        return;
    }
    const int n = lanes.per_repeat;
    alignas(64) A gathered_a[most_lanes];
    alignas(64) B gathered_b[most_lanes];
    alignas(64) D stored[most_lanes];
    alignas(64) compute_t<A> wide_a[most_lanes];
    alignas(64) compute_t<B> wide_b[most_lanes];
    alignas(64) compute_t<D> out[most_lanes];
    const Pattern body(lanes, 0, sizeof(D));
    const Pattern tail(lanes, lanes.repeats - 1, sizeof(D));
    for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
        widen(gather_repeat<A>(a, repeat, n, gathered_a), wide_a, n);
        widen(gather_repeat<B>(b, repeat, n, gathered_b), wide_b, n);
        if constexpr (accumulate) {
            widen(gather_repeat<D>(dst, repeat, n, stored), out, n);
        }
        f(out, wide_a, wide_b, n);
        narrow(out, stored, n);
        scatter_repeat<D>(dst, repeat, repeat == lanes.repeats - 1 ? tail : body, stored);
    }
}

template <bool accumulate, typename D, typename A, typename F>
inline void run_unary(const Lanes& lanes, const Operand& dst, const Operand& a, F f, bool macs = accumulate)
{
    const uint32_t tick = machine.issue(pipe_v);
    check_destination(lanes, dst);
    check_overlap(lanes, dst, a);
    check_operand<Access::read>(tick, lanes, a);
    if constexpr (accumulate) {
        check_overlap(lanes, dst, dst);
        check_operand<Access::read>(tick, lanes, dst);
    }
    check_operand<Access::write>(tick, lanes, dst);
    count_vector(lanes, macs);
    if (lanes.active == 0) {
        return;
    }
    const int n = lanes.per_repeat;
    alignas(64) A gathered[most_lanes];
    alignas(64) D stored[most_lanes];
    alignas(64) compute_t<A> wide[most_lanes];
    alignas(64) compute_t<D> out[most_lanes];
    const Pattern body(lanes, 0, sizeof(D));
    const Pattern tail(lanes, lanes.repeats - 1, sizeof(D));
    for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
        widen(gather_repeat<A>(a, repeat, n, gathered), wide, n);
        if constexpr (accumulate) {
            widen(gather_repeat<D>(dst, repeat, n, stored), out, n);
        }
        f(out, wide, n);
        narrow(out, stored, n);
        scatter_repeat<D>(dst, repeat, repeat == lanes.repeats - 1 ? tail : body, stored);
    }
}

template <typename D>
inline void run_fill(const Lanes& lanes, const Operand& dst, D value)
{
    const uint32_t tick = machine.issue(pipe_v);
    check_destination(lanes, dst);
    check_operand<Access::write>(tick, lanes, dst);
    count_vector(lanes);
    if (lanes.active == 0) {
        return;
    }
    alignas(64) D stored[most_lanes];
    for (int i = 0; i < lanes.per_repeat; ++i) {
        stored[i] = value;
    }
    const Pattern body(lanes, 0, sizeof(D));
    const Pattern tail(lanes, lanes.repeats - 1, sizeof(D));
    for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
        scatter_repeat<D>(dst, repeat, repeat == lanes.repeats - 1 ? tail : body, stored);
    }
}

template <typename T>
constexpr int lanes_per_repeat()
{
    return repeat_bytes / sizeof(T);
}

template <typename T>
inline Operand operand_of(const AscendC::LocalTensor<T>& tensor, const char* name, int64_t block_stride,
                          int64_t repeat_stride)
{
    return Operand{&tensor.twin_view(), name, sizeof(T), block_stride, repeat_stride};
}

struct BinaryOperands {
    Operand dst;
    Operand a;
    Operand b;
};

template <typename D, typename A, typename B>
inline BinaryOperands binary_operands(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& a,
                                      const AscendC::LocalTensor<B>& b, const AscendC::BinaryRepeatParams& params)
{
    return {operand_of(dst, "dst", params.dstBlkStride.checked("dstBlkStride"),
                       params.dstRepStride.checked("dstRepStride")),
            operand_of(a, "src0", params.src0BlkStride.checked("src0BlkStride"),
                       params.src0RepStride.checked("src0RepStride")),
            operand_of(b, "src1", params.src1BlkStride.checked("src1BlkStride"),
                       params.src1RepStride.checked("src1RepStride"))};
}

/// Operands without gaps: a repeat of `lanes` lanes advances each by its own size.
template <typename D, typename A, typename B>
inline BinaryOperands binary_operands(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& a,
                                      const AscendC::LocalTensor<B>& b, int lanes)
{
    return {operand_of(dst, "dst", 1, lanes * static_cast<int64_t>(sizeof(D)) / block_bytes),
            operand_of(a, "src0", 1, lanes * static_cast<int64_t>(sizeof(A)) / block_bytes),
            operand_of(b, "src1", 1, lanes * static_cast<int64_t>(sizeof(B)) / block_bytes)};
}

struct UnaryOperands {
    Operand dst;
    Operand a;
};

template <typename D, typename A>
inline UnaryOperands unary_operands(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& a,
                                    const AscendC::UnaryRepeatParams& params)
{
    return {operand_of(dst, "dst", params.dstBlkStride.checked("dstBlkStride"),
                       params.dstRepStride.checked("dstRepStride")),
            operand_of(a, "src", params.srcBlkStride.checked("srcBlkStride"),
                       params.srcRepStride.checked("srcRepStride"))};
}

template <typename D, typename A>
inline UnaryOperands unary_operands(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& a, int lanes)
{
    return {operand_of(dst, "dst", 1, lanes * static_cast<int64_t>(sizeof(D)) / block_bytes),
            operand_of(a, "src", 1, lanes * static_cast<int64_t>(sizeof(A)) / block_bytes)};
}

template <bool set>
inline Lanes lanes_of(int per_repeat, const MaskBits& mask, const Field<uint8_t>& repeats)
{
    if constexpr (set) {
        set_mask_bits(mask, per_repeat);
    }
    return lanes_of_register(per_repeat, repeats);
}

template <bool set>
inline Lanes lanes_of(int per_repeat, uint64_t mask, const Field<uint8_t>& repeats)
{
    if constexpr (set) {
        set_mask_length(mask, per_repeat);
    }
    return lanes_of_register(per_repeat, repeats);
}

}  // namespace neonext_twin

namespace AscendC {

using neonext_twin::MaskBits;

inline void SetMaskCount()
{
    machine.mask_counter = true;
}

inline void SetMaskNorm()
{
    machine.mask_counter = false;
}

inline void ResetMask()
{
    machine.mask_low = machine.mask_high = ~uint64_t{0};
}

template <typename T, MaskMode mode = MaskMode::NORMAL>
inline void SetVectorMask(const uint64_t maskHigh, const uint64_t maskLow, Where at = Where::here())
{
    machine.enter("SetVectorMask", at);
    if (mode == MaskMode::NORMAL && sizeof(T) >= 4 && maskHigh != 0 && maskHigh != ~uint64_t{0}) {
        machine.refuse(Rule::mask, "the mask's high word is %#llx; %s has lanes only in the low one",
                       static_cast<unsigned long long>(maskHigh), neonext_twin::type_name<T>());
    }
    machine.mask_high = maskHigh;
    machine.mask_low = maskLow;
}

template <typename T, MaskMode mode = MaskMode::NORMAL>
inline void SetVectorMask(int32_t len, Where at = Where::here())
{
    machine.enter("SetVectorMask", at);
    if constexpr (mode == MaskMode::COUNTER) {
        machine.mask_high = 0;
        machine.mask_low = static_cast<uint64_t>(len);
    } else {
        const bool counter = machine.mask_counter;
        machine.mask_counter = false;
        neonext_twin::set_mask_length(static_cast<uint64_t>(len), neonext_twin::lanes_per_repeat<T>());
        machine.mask_counter = counter;
    }
}

}  // namespace AscendC
