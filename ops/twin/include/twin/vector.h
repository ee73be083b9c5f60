// Execution of vector instructions: repeats of 256 bytes, each of 8 blocks of 32 bytes, with strides and a mask.
//
// The shadow of the unified buffer is kept for blocks, so every check is made for blocks, and only for those in which
// the mask has lanes. A block without an active lane may lie anywhere, even beyond the buffer.
//
// Two building blocks serve all functions: a Form is one of the two ways to call a function (with a mask and strides,
// or with a count), and run_lanes is an instruction that computes lane by lane. Functions whose results are not lanes
// (bits, reductions, gathers) do their own loops on the same checks.
#pragma once

#include <initializer_list>

#include "support.h"
#include "tensor.h"

namespace neonext_twin {

/// The mask of a public function: the number of lanes that take part, or their bits as an array or a pointer.
struct Mask {
    template <typename M>
    Mask(const M& given)
    {
        if constexpr (std::is_convertible_v<M, uint64_t>) {
            is_length = true;
            low = static_cast<uint64_t>(given);
        } else {
            low = given[0];
            // A C array of one word says nothing about the high word.
            if constexpr (!std::is_array_v<M> || std::extent_v<M> > 1) {
                high = given[1];
            }
        }
    }

    bool is_length = false;
    uint64_t low = 0;
    uint64_t high = 0;
};

/// The lanes and repeats that an instruction works on.
struct Lanes {
    int per_repeat = 0;
    int repeats = 0;
    uint64_t low = 0;
    uint64_t high = 0;
    uint64_t tail_low = 0;
    uint64_t tail_high = 0;
    uint64_t active = 0;

    /// Return the mask of a repeat from `lane` on, up to the end of its word. The last repeat has a mask of its own.
    uint64_t bits(int repeat, int lane) const
    {
        const bool tail = repeat == repeats - 1;
        return lane < 64 ? (tail ? tail_low : low) >> lane : (tail ? tail_high : high) >> (lane - 64);
    }
};

inline uint64_t ones(int count)
{
    return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

/// On 2201 a count, mask or repeat of zero does nothing; the documents promise that for no other architecture.
constexpr bool zero_does_nothing()
{
    return __NPU_ARCH__ == 2201;
}

/// On 3002 a function that takes a number of lanes makes its own mask of it: it neither sets nor reads the mask
/// register (asc-devkit, impl/basic_api/dav_m300: `plt_b16(mask)` for a number, `movp_b16()` for an array).
constexpr bool masks_in_calls()
{
    return __NPU_ARCH__ == 3002;
}

/// Set the mask register as a function does that is called with a mask.
inline void set_mask(const Mask& mask, int per_repeat)
{
    const auto low = static_cast<unsigned long long>(mask.low);
    if (!mask.is_length) {
        if (!machine.mask_counter) {
            if (per_repeat <= 64 && mask.high != 0) {
                machine.reject(Rule::mask, "the mask's high word is %#llx; %d lanes have only the low one",
                               static_cast<unsigned long long>(mask.high), per_repeat);
            }
            if (per_repeat < 64 && (mask.low & ~ones(per_repeat)) != 0) {
                machine.reject(Rule::mask, "the mask has bits above lane %d", per_repeat - 1);
            }
            if (mask.low == 0 && mask.high == 0 && !zero_does_nothing()) {
                machine.reject(Rule::mask, "the mask is empty");
            }
        }
        machine.mask_low = mask.low;
        machine.mask_high = mask.high;
        return;
    }
    if (machine.mask_counter) {
        machine.reject(Rule::mask,
                       "in counter mode a mask of %llu lanes becomes a bit pattern, which the device reads as a count; "
                       "pass {count, 0}",
                       low);
    }
    if (mask.low > static_cast<uint64_t>(per_repeat) || (mask.low == 0 && !zero_does_nothing())) {
        machine.reject(Rule::mask, "a mask of %llu lanes; a repeat of this type has 1 to %d", low, per_repeat);
    }
    if (mask.low == static_cast<uint64_t>(per_repeat)) {
        machine.reset_mask();
    } else {
        machine.mask_low = ones(static_cast<int>(mask.low));
        machine.mask_high = ones(static_cast<int>(mask.low) - 64);
    }
}

/// Return the lanes of the first `count` elements, in as many repeats as they take.
inline Lanes lanes_of_elements(int per_repeat, uint64_t count)
{
    Lanes lanes;
    lanes.per_repeat = per_repeat;
    lanes.repeats = static_cast<int>((count + per_repeat - 1) / per_repeat);
    lanes.low = ones(per_repeat);
    lanes.high = ones(per_repeat - 64);
    const int tail = static_cast<int>(count - static_cast<uint64_t>(std::max(lanes.repeats - 1, 0)) * per_repeat);
    lanes.tail_low = ones(tail);
    lanes.tail_high = ones(tail - 64);
    lanes.active = count;
    return lanes;
}

/// Return `repeats` repeats of the lanes whose bits are set.
inline Lanes lanes_of_bits(int per_repeat, uint64_t low, uint64_t high, const Field<uint8_t>& repeats)
{
    if (!repeats.fits() || (repeats.given() == 0 && !zero_does_nothing())) {
        machine.reject(Rule::repeat, "%lld repeats; an instruction has 1 to 255",
                       static_cast<long long>(repeats.given()));
    }
    Lanes lanes;
    lanes.per_repeat = per_repeat;
    lanes.repeats = static_cast<int>(repeats.given());
    lanes.low = lanes.tail_low = low & ones(per_repeat);
    lanes.high = lanes.tail_high = high & ones(per_repeat - 64);
    lanes.active = static_cast<uint64_t>(lanes.repeats) *
                   static_cast<uint64_t>(__builtin_popcountll(lanes.low) + __builtin_popcountll(lanes.high));
    return lanes;
}

/// Return the lanes that the mask register and the repeat count select.
inline Lanes lanes_of_register(int per_repeat, const Field<uint8_t>& repeats)
{
    if (!machine.mask_counter) {
        return lanes_of_bits(per_repeat, machine.mask_low, machine.mask_high, repeats);
    }
    const uint64_t count = machine.mask_low;
    if (masks_in_calls()) {
        machine.reject(Rule::mask, "counter mode on __NPU_ARCH__ %d, whose functions read the count as a bit pattern",
                       __NPU_ARCH__);
    }
    if (count == 0 && !zero_does_nothing()) {
        machine.reject(Rule::count, "a count of 0");
    }
    if (count > repeat_bytes * 4096u) {
        machine.reject(Rule::count, "the count in the mask register is %llu; was SetVectorMask called?",
                       static_cast<unsigned long long>(count));
    }
    return lanes_of_elements(per_repeat, count);
}

/// Return the lanes of a call with a count. It leaves the mask register reset and in normal mode, except on 3002, whose
/// functions do not touch it.
[[gnu::noinline]] inline Lanes lanes_of_count(int per_repeat, int64_t count)
{
    if (count < 0 || (count == 0 && !zero_does_nothing())) {
        machine.reject(Rule::count, "a count of %lld elements", static_cast<long long>(count));
    }
    if (!masks_in_calls()) {
        machine.mask_counter = false;
        machine.reset_mask();
    }
    return lanes_of_elements(per_repeat, static_cast<uint64_t>(count));
}

/// Return the lanes of a call with a mask and repeats. Without `sets`, the caller has set the mask register; a function
/// of 3002 that takes a number of lanes uses that number all the same.
[[gnu::noinline]] inline Lanes lanes_of_mask(int per_repeat, const Mask& mask, const Field<uint8_t>& repeats,
                                             bool sets = true)
{
    if (mask.is_length && masks_in_calls()) {
        if (mask.low == 0) {
            machine.reject(Rule::mask,
                           "a mask of 0 lanes: on __NPU_ARCH__ %d a number of lanes counts whatever isSetMask says, so "
                           "nothing is computed; pass the mask as an array of two words",
                           __NPU_ARCH__);
        }
        const int lanes = static_cast<int>(std::min<uint64_t>(mask.low, static_cast<uint64_t>(per_repeat)));
        return lanes_of_bits(per_repeat, ones(lanes), ones(lanes - 64), repeats);
    }
    if (sets) {
        set_mask(mask, per_repeat);
    }
    return lanes_of_register(per_repeat, repeats);
}

/// One of the two forms in which most functions can be called: with a mask, repeats and strides, or with a count of
/// elements that lie without gaps. `Strides` is BinaryRepeatParams or the like.
template <typename Strides>
struct Form {
    Mask mask;
    Field<uint8_t> repeats;
    const Strides* strides; // none: the form with a count
    int64_t count;
    bool sets_mask; // if not, the caller has set the mask register

    static Form masked(const Mask& mask, const Field<uint8_t>& repeats, const Strides& strides, bool sets_mask)
    {
        return {mask, repeats, &strides, 0, sets_mask};
    }

    static Form counted(int64_t count, bool sets_mask = true) { return {0, 1, nullptr, count, sets_mask}; }

    Lanes lanes(int per_repeat) const
    {
        return strides == nullptr && (sets_mask || masks_in_calls())
                   ? lanes_of_count(per_repeat, count)
                   : lanes_of_mask(per_repeat, mask, repeats, sets_mask);
    }
};

/// One operand: its start and its strides, in blocks of 32 bytes.
struct Operand {
    const View* view;
    const char* name;
    uint32_t element;
    int64_t block_stride;
    int64_t repeat_stride;

    uint32_t first_block() const { return view->address / block_bytes; }
};

/// The active bytes of each block of one repeat.
struct Pattern {
    uint32_t bytes[8];
    int blocks;

    Pattern(const Lanes& lanes, int repeat, uint32_t element)
    {
        blocks = static_cast<int>(lanes.per_repeat * element / block_bytes);
        const int per_block = static_cast<int>(block_bytes / element);
        for (int block = 0; block < blocks; ++block) {
            const uint64_t bits = lanes.bits(repeat, block * per_block) & ones(per_block);
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
        machine.reject(Rule::ub_bounds, "%s: repeat %d reaches byte %llu of a tensor of %u bytes", operand.name, repeat,
                       static_cast<unsigned long long>(end), view.end > view.address ? view.end - view.address : 0);
    }
}

enum class Access { read, write };

/// Check one operand of an instruction: state, alignment, bounds, and the shadow of every active block.
template <Access access>
[[gnu::noinline]] inline void check_operand(uint32_t tick, const Lanes& lanes, const Operand& operand)
{
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

/// The extent of an operand in blocks: [first, last].
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

/// The repeat of the current instruction that last wrote each block, for the rules on overlap. A new round forgets all
/// stamps at no cost.
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

/// Reject a destination that puts two lanes of a repeat into one place.
[[gnu::noinline]] inline void check_destination(const Lanes& lanes, const Operand& destination)
{
    if (destination.block_stride == 0 && lanes.repeats > 0 && lanes.active > 0 &&
        Pattern(lanes, 0, destination.element).last_block() > 0) {
        machine.reject(Rule::overlap, "%s: a block stride of 0 writes all blocks of a repeat to one place",
                       destination.name);
    }
}

/// Within a repeat a source must be the destination or apart from it; and no repeat may read what an earlier one of
/// the same instruction wrote, because the device may have read it before. `accumulates` lifts the second rule, as the
/// documents do for some operands.
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
    const Pattern written_body(lanes, 0, destination.element);
    const Pattern read_body(lanes, 0, source.element);
    // The last repeat may be shorter, and then ends before a buffer that begins right behind.
    const Pattern written_tail(lanes, lanes.repeats - 1, destination.element);
    const Pattern read_tail(lanes, lanes.repeats - 1, source.element);
    for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
        const Pattern& written = repeat == lanes.repeats - 1 ? written_tail : written_body;
        const Pattern& read = repeat == lanes.repeats - 1 ? read_tail : read_body;
        const int64_t write_start = to + repeat * destination.repeat_stride;
        const int64_t read_start = from + repeat * source.repeat_stride;
        for (int i = 0; i < read.blocks; ++i) {
            if (read.bytes[i] == 0) {
                continue;
            }
            const int64_t block = read_start + i * source.block_stride;
            const int earlier = stamps.get(static_cast<uint32_t>(block));
            if (earlier >= 0 && !accumulates) {
                machine.reject(Rule::overlap,
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
                    machine.reject(Rule::overlap,
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

/// Return one repeat of a source as contiguous lanes: in place if it lies so, else gathered into `scratch`.
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

[[gnu::noinline]] inline void count_vector(uint64_t repeats, uint64_t elements, uint64_t macs = 0)
{
    machine.count(pipe_v, {1, repeats, elements, macs});
}

inline void count_vector(const Lanes& lanes, bool macs = false)
{
    count_vector(static_cast<uint64_t>(lanes.repeats), lanes.active, macs ? lanes.active : 0);
}

constexpr int most_lanes = 256;

template <typename T>
constexpr int lanes_per_repeat()
{
    return repeat_bytes / sizeof(T);
}

/// Lanes of an instruction whose operands have two types: the wider one decides.
template <typename T, typename U>
constexpr int lanes_per_repeat()
{
    return repeat_bytes / std::max(sizeof(T), sizeof(U));
}

/// The unsigned integer of a size, for instructions that move lanes whatever they mean.
template <size_t bytes>
using word_t = std::conditional_t<bytes == 1, uint8_t,
                                  std::conditional_t<bytes == 2, uint16_t,
                                                     std::conditional_t<bytes == 4, uint32_t, uint64_t>>>;

/// A source operand, and room for one repeat of its lanes in the type they are computed in.
template <typename T>
struct Source {
    Operand operand;
    bool accumulates = false; // its repeats may read what earlier ones wrote
    alignas(64) T gathered[most_lanes];
    alignas(64) compute_t<T> wide[most_lanes];

    explicit Source(const Operand& operand, bool accumulates = false) : operand(operand), accumulates(accumulates) {}

    const compute_t<T>* load(int repeat, int lanes)
    {
        widen(gather_repeat<T>(operand, repeat, lanes, gathered), wide, lanes);
        return wide;
    }
};

struct SourceOperand {
    const Operand* operand;
    bool accumulates;
};

/// Check and count a vector instruction on whole lanes: first the overlap of its operands, then its sources as it finds
/// them, then its destination. No template, so that a kernel compiles these checks once.
[[gnu::noinline]] inline void start_lanes(const Lanes& lanes, const Operand& dst, bool accumulate,
                                          std::initializer_list<SourceOperand> sources)
{
    const uint32_t tick = machine.issue(pipe_v);
    check_destination(lanes, dst);
    for (const SourceOperand& source : sources) {
        check_overlap(lanes, dst, *source.operand, source.accumulates);
    }
    for (const SourceOperand& source : sources) {
        check_operand<Access::read>(tick, lanes, *source.operand);
    }
    if (accumulate) {
        check_overlap(lanes, dst, dst);
        check_operand<Access::read>(tick, lanes, dst);
    }
    check_operand<Access::write>(tick, lanes, dst);
    count_vector(lanes, accumulate);
}

/// Run one instruction lane by lane: out = f(old, source...), with `old` the destination's lane if `accumulate`.
template <bool accumulate, typename D, typename F, typename... S>
inline void run_lanes(const Lanes& lanes, const Operand& dst, F f, Source<S>&... sources)
{
    start_lanes(lanes, dst, accumulate, {SourceOperand{&sources.operand, sources.accumulates}...});
    if (lanes.active == 0) {
        return;
    }
    const int n = lanes.per_repeat;
    alignas(64) D stored[most_lanes];
    alignas(64) compute_t<D> out[most_lanes] = {};
    const auto each_lane = [&](const auto*... values) {
        for (int i = 0; i < n; ++i) {
            out[i] = static_cast<compute_t<D>>(f(out[i], values[i]...));
        }
    };
    const Pattern body(lanes, 0, sizeof(D));
    const Pattern tail(lanes, lanes.repeats - 1, sizeof(D));
    for (int repeat = 0; repeat < lanes.repeats; ++repeat) {
        if constexpr (accumulate) {
            widen(gather_repeat<D>(dst, repeat, n, stored), out, n);
        }
        each_lane(sources.load(repeat, n)...);
        narrow(out, stored, n);
        scatter_repeat<D>(dst, repeat, repeat == lanes.repeats - 1 ? tail : body, stored);
    }
}

template <typename T>
inline Operand operand_of(const AscendC::LocalTensor<T>& tensor, const char* name, int64_t block_stride,
                          int64_t repeat_stride)
{
    return Operand{&tensor.twin_view(), name, sizeof(T), block_stride, repeat_stride};
}

/// Return an operand without gaps: a repeat of `lanes` lanes advances it by its own size.
template <typename T>
inline Operand dense_operand(const AscendC::LocalTensor<T>& tensor, const char* name, int lanes)
{
    return operand_of(tensor, name, 1, lanes * static_cast<int64_t>(sizeof(T)) / block_bytes);
}

struct BinaryOperands {
    Operand dst;
    Operand a;
    Operand b;
};

template <typename D, typename A, typename B>
inline BinaryOperands binary_operands(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& a,
                                      const AscendC::LocalTensor<B>& b, const AscendC::BinaryRepeatParams* strides,
                                      int lanes)
{
    if (strides == nullptr) {
        return {dense_operand(dst, "dst", lanes), dense_operand(a, "src0", lanes), dense_operand(b, "src1", lanes)};
    }
    return {operand_of(dst, "dst", strides->dstBlkStride.checked("dstBlkStride"),
                       strides->dstRepStride.checked("dstRepStride")),
            operand_of(a, "src0", strides->src0BlkStride.checked("src0BlkStride"),
                       strides->src0RepStride.checked("src0RepStride")),
            operand_of(b, "src1", strides->src1BlkStride.checked("src1BlkStride"),
                       strides->src1RepStride.checked("src1RepStride"))};
}

struct UnaryOperands {
    Operand dst;
    Operand a;
};

template <typename D, typename A>
inline UnaryOperands unary_operands(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& a,
                                    const AscendC::UnaryRepeatParams* strides, int lanes)
{
    if (strides == nullptr) {
        return {dense_operand(dst, "dst", lanes), dense_operand(a, "src", lanes)};
    }
    return {operand_of(dst, "dst", strides->dstBlkStride.checked("dstBlkStride"),
                       strides->dstRepStride.checked("dstRepStride")),
            operand_of(a, "src", strides->srcBlkStride.checked("srcBlkStride"),
                       strides->srcRepStride.checked("srcRepStride"))};
}

/// Run dst = f(old, a, b) in either form. `may_reuse`: where dst or b stays in place from repeat to repeat, b may read
/// what earlier repeats wrote.
template <bool accumulate, typename D, typename A, typename F>
[[gnu::noinline]] inline void run_binary(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& a,
                       const AscendC::LocalTensor<A>& b, const Form<AscendC::BinaryRepeatParams>& form, F f,
                       bool may_reuse = false)
{
    constexpr int per_repeat = lanes_per_repeat<D, A>();
    const BinaryOperands operands = binary_operands(dst, a, b, form.strides, per_repeat);
    Source<A> first(operands.a);
    Source<A> second(operands.b, may_reuse && (operands.dst.repeat_stride == 0 || operands.b.repeat_stride == 0));
    run_lanes<accumulate, D>(form.lanes(per_repeat), operands.dst, f, first, second);
}

/// Run dst = f(old, a) in either form.
template <bool accumulate, typename D, typename A, typename F>
[[gnu::noinline]] inline void run_unary(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<A>& a,
                      const Form<AscendC::UnaryRepeatParams>& form, F f)
{
    constexpr int per_repeat = lanes_per_repeat<D, A>();
    const UnaryOperands operands = unary_operands(dst, a, form.strides, per_repeat);
    Source<A> source(operands.a);
    run_lanes<accumulate, D>(form.lanes(per_repeat), operands.dst, f, source);
}

}  // namespace neonext_twin

// The public function NAME in its two forms. Both pass their arguments and the form on to neonext_twin::run_NAME.
//   STRIDES     type of the strides, BinaryRepeatParams or UnaryRepeatParams
//   TYPES       (template parameters), in the order in which kernels may give them
//   PARAMETERS  (parameters before the mask or the count)
//   ARGUMENTS   (their names)
// They have to be functions with these very parameters, because kernels write strides as {1, 1, 1, 8, 8, 8} and choose
// overloads by explicit template arguments; no function template can take both forms at once.
#define NEONEXT_TWIN_BARE(...) __VA_ARGS__
#define NEONEXT_TWIN_MASK_FORM(NAME, STRIDES, TYPES, PARAMETERS, ARGUMENTS)                                         \
    template <NEONEXT_TWIN_BARE TYPES, bool isSetMask = true>                                                       \
    inline void NAME(NEONEXT_TWIN_BARE PARAMETERS, const Mask& mask, Field<uint8_t> repeatTime,                     \
                     const STRIDES& repeatParams, Where at = Where::here())                                         \
    {                                                                                                               \
        neonext_twin::run_##NAME(NEONEXT_TWIN_BARE ARGUMENTS,                                                       \
                                 Form<STRIDES>::masked(mask, repeatTime, repeatParams, isSetMask), at);             \
    }
#define NEONEXT_TWIN_FORMS(NAME, STRIDES, TYPES, PARAMETERS, ARGUMENTS)                                             \
    NEONEXT_TWIN_MASK_FORM(NAME, STRIDES, TYPES, PARAMETERS, ARGUMENTS)                                             \
    template <NEONEXT_TWIN_BARE TYPES>                                                                              \
    inline void NAME(NEONEXT_TWIN_BARE PARAMETERS, const int64_t count, Where at = Where::here())                   \
    {                                                                                                               \
        neonext_twin::run_##NAME(NEONEXT_TWIN_BARE ARGUMENTS, Form<STRIDES>::counted(count), at);                   \
    }
// The count form of a function with a scalar, which can leave the mask to the caller.
#define NEONEXT_TWIN_SCALAR_COUNT_FORM(NAME, TYPES, PARAMETERS, ARGUMENTS)                                          \
    template <NEONEXT_TWIN_BARE TYPES, bool isSetMask = true>                                                       \
    inline void NAME(NEONEXT_TWIN_BARE PARAMETERS, const int64_t count, Where at = Where::here())                   \
    {                                                                                                               \
        neonext_twin::run_##NAME(NEONEXT_TWIN_BARE ARGUMENTS, Form<UnaryRepeatParams>::counted(count, isSetMask),   \
                                 at);                                                                               \
    }

namespace AscendC {

using neonext_twin::Form;
using neonext_twin::Mask;

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
    machine.reset_mask();
}

template <typename T, MaskMode mode = MaskMode::NORMAL>
inline void SetVectorMask(const uint64_t maskHigh, const uint64_t maskLow, Where at = Where::here())
{
    machine.enter("SetVectorMask", at);
    if (mode == MaskMode::NORMAL && sizeof(T) >= 4 && maskHigh != 0 && maskHigh != ~uint64_t{0}) {
        machine.reject(Rule::mask, "the mask's high word is %#llx; %s has lanes only in the low one",
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
        neonext_twin::set_mask(len, neonext_twin::lanes_per_repeat<T>());
        machine.mask_counter = counter;
    }
}

}  // namespace AscendC
