// Functions of AscendC's library that work on the rows of a matrix: sums, means, broadcasts, softmax, normalization,
// quantization. As in library.h, each is one step and counted as one instruction.
//
// The tiling that host code computes for some of them says how the device divides the work. Only its shapes matter.
// Elements that pad a row to whole blocks are not read, and are unwritten in the results: the documents say that the
// device changes them, but not how. Temporary space is unwritten after the call, whatever its size.
#pragma once

#include "library.h"
#include "reduce.h"

// Tiling structures of the library, with the fields and the order of its headers (asc-devkit, *_tilingdata.h).
namespace AscendC {
namespace tiling {

struct SoftMaxTiling {
    uint32_t srcM = 0, srcK = 0, srcSize = 0, outMaxM = 0, outMaxK = 0, outMaxSize = 0, splitM = 0, splitK = 0;
    uint32_t splitSize = 0, reduceM = 0, reduceK = 0, reduceSize = 0, rangeM = 0, tailM = 0, tailSplitSize = 0;
    uint32_t tailReduceSize = 0;
};

struct LayerNormTiling {
    uint32_t bLength = 0, sLength = 0, hLength = 0, originalHLength = 0, inputXSize = 0, meanVarSize = 0;
    uint32_t numberOfTmpBuf = 0, meanTmpTensorPos = 0, meanTmpTensorSize = 0, varianceTmpTensorPos = 0;
    uint32_t varianceTmpTensorSize = 0, tmpBufSize = 0, oneTmpSize = 0, firstTmpStartPos = 0, secondTmpStartPos = 0;
    uint32_t thirdTmpStartPos = 0, loopRound = 0, inputRoundSize = 0, inputTailSize = 0, inputTailPos = 0;
    uint32_t meanVarRoundSize = 0, meanVarTailSize = 0, meanVarTailPos = 0, bshCurLength = 0, bsCurLength = 0;
    float lastDimValueBack = 0;
};

struct LayerNormSeparateTiling {
    uint32_t aLength = 0, rLength = 0, halfAddRepeatTimes = 0, rHeadLength = 0;
    float k2Rec = 0, k2RRec = 0;
    uint32_t inputXSize = 0, meanVarSize = 0, numberOfTmpBuf = 0, varianceTmpTensorPos = 0, varianceTmpTensorSize = 0;
    uint32_t tmpBufSize = 0, oneTmpSize = 0, firstTmpStartPos = 0, secondTmpStartPos = 0, thirdTmpStartPos = 0;
    uint32_t loopRound = 0, inputRoundSize = 0, inputTailSize = 0, inputTailPos = 0, meanVarRoundSize = 0;
    uint32_t meanVarTailSize = 0, meanVarTailPos = 0, arCurLength = 0, aCurLength = 0;
    float rValueBack = 0;
};

struct RmsNormTiling {
    uint32_t bLength = 0, sLength = 0, hLength = 0, originalHLength = 0;
    float reciprocalOfHLength = 0;
    uint32_t mainBshLength = 0, mainBsLength = 0, mainBsLengthAlign = 0, loopRound = 0, inputTailPos = 0;
    uint32_t tailBshLength = 0, tailBsLength = 0;
};

}  // namespace tiling
}  // namespace AscendC

using AscendC::tiling::LayerNormSeparateTiling;
using AscendC::tiling::LayerNormTiling;
using AscendC::tiling::RmsNormTiling;
using AscendC::tiling::SoftMaxTiling;

namespace AscendC {

struct SumParams {
    uint32_t outter = 1;
    uint32_t inner;
    uint32_t n;
};

struct MeanParams {
    uint32_t outter = 1;
    uint32_t inner;
    uint32_t n;
};

struct SoftMaxShapeInfo {
    uint32_t srcM = 0;
    uint32_t srcK = 0;
    uint32_t oriSrcM = 0;
    uint32_t oriSrcK = 0;
};

enum class SoftmaxMode { SOFTMAX_NORMAL = 0, SOFTMAX_OUTPUT_WITHOUT_BRC = 1 };

struct SoftmaxConfig {
    constexpr SoftmaxConfig(bool isCheckTilingIn, uint32_t oriSrcMIn = 0, uint32_t oriSrcKIn = 0,
                            SoftmaxMode modeIn = SoftmaxMode::SOFTMAX_NORMAL)
        : isCheckTiling(isCheckTilingIn), oriSrcM(oriSrcMIn), oriSrcK(oriSrcKIn), mode(modeIn)
    {}

    bool isCheckTiling;
    uint32_t oriSrcM;
    uint32_t oriSrcK;
    SoftmaxMode mode;
};

inline constexpr SoftmaxConfig SOFTMAX_DEFAULT_CFG = {true, 0, 0, SoftmaxMode::SOFTMAX_NORMAL};

struct LayerNormConfig {
    bool isNoBeta = false;
    bool isNoGamma = false;
    bool isOnlyOutput = false;
    bool isOutputRstd = true;
};

inline constexpr LayerNormConfig LNCFG_NORM = {false, false, false, true};

struct LayerNormPara {
    uint32_t aLength;
    uint32_t rLength;
    uint32_t rLengthWithPadding;
};

enum class CumSumAlgorithm { CUMSUM_ALGORITHM_LINEBYLINE = 0, CUMSUM_ALGORITHM_SKLANSKY = 1 };

struct CumSumConfig {
    bool isLastAxis = true;
    bool isReuseSource = false;
    bool outputLastRow = false;
    CumSumAlgorithm algorithm = CumSumAlgorithm::CUMSUM_ALGORITHM_LINEBYLINE;
};

inline constexpr CumSumConfig defaultCumSumConfig = {true, false, true};

struct CumSumInfo {
    uint32_t outter = 0;
    uint32_t inner = 0;
};

struct AscendQuantConfig {
    uint32_t calcCount = 0;
    uint32_t offsetCount = 0;
    uint32_t scaleCount = 0;
    uint32_t workLocalSize = 0;
};

inline constexpr AscendQuantConfig ASCEND_QUANT_DEFAULT_CFG = {0, 0, 0, 0};

struct DequantParams {
    uint32_t m;
    uint32_t n;
    uint32_t calCount;
};

enum class DeQuantMode { DEQUANT_WITH_SINGLE_ROW, DEQUANT_WITH_MULTI_ROW };

namespace Pattern::Reduce {
struct AR {};
struct RA {};
}  // namespace Pattern::Reduce

}  // namespace AscendC

namespace neonext_twin {

template <typename T>
using Values = std::vector<compute_t<T>>;

/// One call of a function of the library, which reads and writes whole tensors in the vector unit.
class LibraryCall {
public:
    /// Enter `name`, which takes `type` where `types` has its bit.
    LibraryCall(const char* name, const PerArch& types, const Type& type, Where at)
    {
        enter_library(name, at);
        check_support(name, types, type);
        tick_ = machine.issue(pipe_v);
    }

    template <typename T>
    Values<T> read(const AscendC::LocalTensor<T>& tensor, uint64_t first, uint64_t count, const char* operand) const
    {
        tensor.twin_view().check_aligned(operand);
        Values<T> values(count);
        const uint8_t* from = tensor.twin_view().read(pipe_v, tick_, first * sizeof(T), count * sizeof(T), operand);
        widen(reinterpret_cast<const T*>(from), values.data(), static_cast<int>(count));
        return values;
    }

    template <typename T>
    void write(const AscendC::LocalTensor<T>& tensor, uint64_t first, const Values<T>& values,
               const char* operand) const
    {
        tensor.twin_view().check_aligned(operand);
        uint8_t* to = tensor.twin_view().write(pipe_v, tick_, first * sizeof(T), values.size() * sizeof(T), operand);
        narrow(values.data(), reinterpret_cast<T*>(to), static_cast<int>(values.size()));
    }

    /// Write a row, and leave the elements behind it, up to its padded length, with values that nobody may rely on.
    template <typename T>
    void write_row(const AscendC::LocalTensor<T>& tensor, uint64_t row, uint64_t padded, const Values<T>& values,
                   const char* operand) const
    {
        Values<T> all = values;
        all.resize(padded);
        write(tensor, row * padded, all, operand);
        const uint64_t end = row * padded + values.size();
        machine.forget_bytes(tensor.twin_view().address + static_cast<uint32_t>(end * sizeof(T)),
                             static_cast<uint32_t>((padded - values.size()) * sizeof(T)));
    }

    /// Count the call as one instruction on so many elements of `bytes` each.
    static void count(uint64_t elements, size_t bytes)
    {
        count_vector((elements * bytes + repeat_bytes - 1) / repeat_bytes, elements);
    }

private:
    uint32_t tick_ = 0;
};

/// Use temporary space: what lies there is lost, an operand as well.
inline void use_space(const char* name, const AscendC::LocalTensor<uint8_t>& space, Where at)
{
    enter_library(name, at);
    const View& view = space.twin_view();
    view.check_aligned("sharedTmpBuffer");
    view.write(pipe_v, machine.issue(pipe_v), 0, view.size_bytes, "sharedTmpBuffer");
    machine.forget_bytes(view.address, view.size_bytes);
}

/// Reject a length of rows that are no whole blocks of 32 bytes, or shorter than what they hold.
inline void check_row(const char* name, uint64_t padded, uint64_t used, size_t bytes)
{
    if (used == 0 || used > padded || padded * bytes % block_bytes != 0) {
        machine.reject(Rule::argument,
                       "rows of %llu elements in %s %llu; rows hold 1 element or more and are multiples of 32 bytes",
                       static_cast<unsigned long long>(used), name,
                       static_cast<unsigned long long>(padded));
    }
}

inline void check_apart(const View& a, const View& b, uint64_t a_bytes, uint64_t b_bytes)
{
    if (a.address < b.address + b_bytes && b.address < a.address + a_bytes) {
        machine.reject(Rule::overlap, "source and destination overlap, which this function does not support");
    }
}

/// The sum of a row as ReduceSum computes it: a binary tree in each repeat, then the same over the repeats' sums.
template <typename T>
inline compute_t<T> row_sum(Values<T> values)
{
    constexpr size_t lanes = lanes_per_repeat<T>();
    do {
        Values<T> sums;
        for (size_t i = 0; i < values.size(); i += lanes) {
            sums.push_back(tree_sum<T>(&values[i], static_cast<int>(std::min(lanes, values.size() - i))));
        }
        values.swap(sums);
    } while (values.size() > 1);
    return values[0];
}

constexpr PerArch floats_without_3002{floats, floats, 0};

/// Sum, and Mean with a factor. `A` is the type that sums are computed in.
template <typename A, typename T, typename Params>
inline void row_sums(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                     const Params& params, bool mean, Where at)
{
    const LibraryCall call(name, floats_without_3002, type_of<T>(), at);
    check_row("inner", params.inner, params.n, sizeof(T));
    check_apart(dst.twin_view(), src.twin_view(), params.outter * sizeof(T), params.outter * params.inner * sizeof(T));
    Values<T> sums;
    const compute_t<A> factor = rounded<A>(1.0f / static_cast<float>(params.n));
    for (uint32_t row = 0; row < params.outter; ++row) {
        const compute_t<A> sum = row_sum<A>(call.read(src, uint64_t{row} * params.inner, params.n, "src"));
        sums.push_back(mean ? rounded<A>(sum * factor) : sum);
    }
    call.write(dst, 0, sums, "dst");
    LibraryCall::count(uint64_t{params.outter} * params.n, sizeof(T));
}

/// A function that reduces the rows (AR) or the columns (RA) of a matrix: out = finish(fold(...), length).
template <typename Pattern, typename T, typename Fold, typename Finish>
inline void reduce_pattern(const char* name, uint32_t types, const AscendC::LocalTensor<T>& dst,
                           const AscendC::LocalTensor<T>& src, const uint32_t* shape, bool inner_pad, Where at,
                           Fold fold, Finish finish)
{
    constexpr bool rows = std::is_same_v<Pattern, AscendC::Pattern::Reduce::AR>;
    static_assert(rows || std::is_same_v<Pattern, AscendC::Pattern::Reduce::RA>, "the pattern is AR or RA");
    const LibraryCall call(name, PerArch{0, types, 0}, type_of<T>(), at);
    const uint64_t padded = (uint64_t{shape[1]} * sizeof(T) + block_bytes - 1) / block_bytes * block_bytes / sizeof(T);
    const uint64_t kept = rows ? shape[0] : shape[1];
    const uint64_t length = rows ? shape[1] : shape[0];
    if (!inner_pad || shape[0] == 0 || shape[1] == 0) {
        machine.reject(Rule::argument, "srcInnerPad is %d and the shape %u by %u; __NPU_ARCH__ 2201 takes only true, "
                       "and no empty axis", inner_pad, shape[0], shape[1]);
    }
    check_apart(dst.twin_view(), src.twin_view(), kept * sizeof(T), shape[0] * padded * sizeof(T));
    std::vector<Values<T>> matrix;
    for (uint64_t row = 0; row < shape[0]; ++row) {
        matrix.push_back(call.read(src, row * padded, shape[1], "src"));
    }
    Values<T> out(kept);
    for (uint64_t i = 0; i < kept; ++i) {
        Values<T> line(length);
        for (uint64_t j = 0; j < length; ++j) {
            line[j] = rows ? matrix[i][j] : matrix[j][i];
        }
        out[i] = finish(fold(line), length);
    }
    call.write(dst, 0, out, "dst");
    LibraryCall::count(uint64_t{shape[0]} * shape[1], sizeof(T));
}

/// Fold a line from its first element on.
template <typename F>
inline auto folded(F f)
{
    return [f](const auto& line) {
        auto result = line[0];
        for (size_t i = 1; i < line.size(); ++i) {
            result = f(result, line[i]);
        }
        return result;
    };
}

/// The shape of a softmax: rows of `columns` elements, `padded` apart.
struct SoftmaxShape {
    uint64_t rows;
    uint64_t columns;
    uint64_t padded;
};

/// Return the shape that a softmax works on: from its shape argument, its configuration, or the source tensor.
template <typename T>
inline SoftmaxShape softmax_shape(const AscendC::LocalTensor<T>& src, const AscendC::SoftMaxShapeInfo& info,
                                  const AscendC::SoftmaxConfig& config, const AscendC::tiling::SoftMaxTiling& tiling)
{
    AscendC::SoftMaxShapeInfo used = info;
    if (info.srcM == 0 || info.srcK == 0) {
        const AscendC::ShapeInfo shape = src.GetShapeInfo();
        used = {1, 0, 1, 0};
        for (int i = 0; i < shape.shapeDim; ++i) {
            const bool last = i == shape.shapeDim - 1;
            (last ? used.srcK : used.srcM) = last ? shape.shape[i] : used.srcM * shape.shape[i];
            (last ? used.oriSrcK : used.oriSrcM) =
                last ? shape.originalShape[i] : used.oriSrcM * shape.originalShape[i];
        }
        if (shape.shapeDim == 0) {
            machine.reject(Rule::argument, "no shape: pass softmaxShapeInfo, or call SetShapeInfo on the source");
        }
    }
    if (config.oriSrcM != 0 && config.oriSrcK != 0) {
        used.oriSrcM = config.oriSrcM;
        used.oriSrcK = config.oriSrcK;
    }
    check_row("srcK", used.srcK, used.oriSrcK, sizeof(T));
    if (used.oriSrcM == 0 || used.oriSrcM > used.srcM) {
        machine.reject(Rule::argument, "oriSrcM is %u; it is 1 to srcM, %u", used.oriSrcM, used.srcM);
    }
    if (!config.isCheckTiling && (tiling.srcM != used.srcM || tiling.srcK != used.srcK)) {
        machine.reject(Rule::argument, "isCheckTiling is false and the tiling is for %u by %u, the tensor %u by %u",
                       tiling.srcM, tiling.srcK, used.srcM, used.srcK);
    }
    return {used.oriSrcM, used.oriSrcK, used.srcK};
}

/// dst = exp(src - max) / sum for every row. `sum` and `max` hold one block for each row: results, or given.
template <bool given, typename T, typename S>
inline void run_softmax(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<S>* sum,
                        const AscendC::LocalTensor<S>* max, const AscendC::LocalTensor<T>& src,
                        const SoftMaxTiling& tiling, const AscendC::SoftMaxShapeInfo& info,
                        const AscendC::SoftmaxConfig& config, Where at)
{
    static_assert(std::is_same_v<S, T> || (std::is_same_v<T, half> && std::is_same_v<S, float>),
                  "sum and max have the type of the source, or are float where it is half");
    const LibraryCall call(name, PerArch{floats, floats, floats}, type_of<T>(), at);
    const SoftmaxShape shape = softmax_shape(src, info, config, tiling);
    constexpr uint64_t block = block_bytes / sizeof(S);
    for (uint64_t row = 0; row < shape.rows; ++row) {
        const Values<T> line = call.read(src, row * shape.padded, shape.columns, "src");
        double largest = line[0];
        double total = 0;
        if constexpr (given) {
            largest = call.read(*max, row * block, block, "max")[0];
            total = call.read(*sum, row * block, block, "sum")[0];
        } else {
            for (const double x : line) {
                largest = larger(largest, x);
            }
            for (const double x : line) {
                total += std::exp(x - largest);
            }
        }
        Values<T> out(shape.columns);
        for (uint64_t i = 0; i < shape.columns; ++i) {
            out[i] = static_cast<compute_t<T>>(std::exp(line[i] - largest) / total);
        }
        call.write_row(dst, row, shape.padded, out, "dst");
        if (!given && sum != nullptr) {
            call.write(*sum, row * block, Values<S>(block, static_cast<float>(total)), "sum");
            call.write(*max, row * block, Values<S>(block, static_cast<float>(largest)), "max");
        }
    }
    LibraryCall::count(shape.rows * shape.columns, sizeof(T));
}

/// Normalize rows: dst = (x - mean) * rstd * gamma + beta. What is null is left out. Mean and variance are sums over
/// the columns, divided by `length`.
template <typename T, typename S, typename U>
inline void run_layer_norm(const LibraryCall& call, uint64_t rows, uint64_t columns, uint64_t padded, double length,
                           double epsilon, bool rstd, const AscendC::LocalTensor<T>& dst,
                           const AscendC::LocalTensor<S>* mean, const AscendC::LocalTensor<S>* spread,
                           const AscendC::LocalTensor<T>& src, const AscendC::LocalTensor<U>* gamma,
                           const AscendC::LocalTensor<U>* beta)
{
    check_row("padded rows of", padded, columns, sizeof(T));
    const Values<U> factor = gamma != nullptr ? call.read(*gamma, 0, columns, "gamma") : Values<U>(columns, 1);
    const Values<U> offset = beta != nullptr ? call.read(*beta, 0, columns, "beta") : Values<U>(columns, 0);
    Values<S> means, spreads;
    for (uint64_t row = 0; row < rows; ++row) {
        const Values<T> line = call.read(src, row * padded, columns, "src");
        double center = 0;
        double variance = 0;
        for (const double x : line) {
            center += x / length;
        }
        for (const double x : line) {
            variance += (x - center) * (x - center) / length;
        }
        const double scale = 1.0 / std::sqrt(variance + epsilon);
        Values<T> out(columns);
        for (uint64_t i = 0; i < columns; ++i) {
            out[i] = static_cast<compute_t<T>>((line[i] - center) * scale * factor[i] + offset[i]);
        }
        call.write_row(dst, row, padded, out, "output");
        means.push_back(static_cast<compute_t<S>>(center));
        spreads.push_back(static_cast<compute_t<S>>(rstd ? scale : variance));
    }
    if (mean != nullptr) {
        call.write(*mean, 0, means, "outputMean");
        call.write(*spread, 0, spreads, "the variance or its rstd");
    }
    LibraryCall::count(rows * columns, sizeof(T));
}

/// int8 = round(half(half(src) * scale) + offset), in half, as the documents describe AscendQuant.
template <typename T, typename Scale, typename Offset>
inline void run_quant(const AscendC::LocalTensor<int8_t>& dst, const AscendC::LocalTensor<T>& src, uint64_t count,
                      Where at, Scale scale, Offset offset)
{
    const LibraryCall call("AscendQuant", floats_without_3002, type_of<T>(), at);
    const Values<T> values = call.read(src, 0, count, "src");
    const auto factor = scale(call), shift = offset(call);
    Values<int8_t> out(count);
    for (uint64_t i = 0; i < count; ++i) {
        const float product = rounded<half>(rounded<half>(values[i]) * rounded<half>(factor[i % factor.size()]));
        const float sum = rounded<half>(product + rounded<half>(shift[i % shift.size()]));
        out[i] = sum != sum ? 0 : static_cast<int8_t>(std::min(127.0f, std::max(-128.0f, std::nearbyint(sum))));
    }
    call.write(dst, 0, out, "dst");
    LibraryCall::count(count, sizeof(T));
}

/// Return the readers of quantization's parameters: a number, or a tensor with so many elements.
inline auto quant_number(float value)
{
    return [value](const LibraryCall&) { return std::vector<float>{value}; };
}

template <typename T>
inline auto quant_tensor(const AscendC::LocalTensor<T>& tensor, uint64_t count)
{
    return [&tensor, count](const LibraryCall& call) { return call.read(tensor, 0, count, "scale or offset"); };
}

/// dst = src * scale with the first calCount elements of each row; scale(call, count) returns them.
template <typename T, typename Scale>
inline void run_dequant(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<int32_t>& src,
                        AscendC::DequantParams params, bool single_row, Where at, Scale scale)
{
    const PerArch types{floats, floats | type_bf16, 0};
    const LibraryCall call("AscendDequant", types, type_of<T>(), at);
    if (single_row && params.m == 1 && params.calCount != 0 && params.calCount * sizeof(T) % block_bytes == 0 &&
        params.n % params.calCount == 0) {
        params.m = params.n / params.calCount;
        params.n = params.calCount;
    }
    check_row("n", params.n, params.calCount, sizeof(int32_t));
    const uint64_t padded = (uint64_t{params.n} * sizeof(T) + block_bytes - 1) / block_bytes * block_bytes / sizeof(T);
    const std::vector<float> factor = scale(call, params.calCount);
    for (uint64_t row = 0; row < params.m; ++row) {
        const Values<int32_t> line = call.read(src, row * params.n, params.calCount, "src");
        Values<T> out(params.calCount);
        for (uint64_t i = 0; i < params.calCount; ++i) {
            out[i] = static_cast<float>(line[i]) * factor[i % factor.size()];
        }
        call.write_row(dst, row, padded, out, "dst");
    }
    LibraryCall::count(uint64_t{params.m} * params.calCount, sizeof(int32_t));
}

}  // namespace neonext_twin

// A function in its two forms: with temporary space between HEAD and TAIL, and without. Both run BODY.
#define NEONEXT_TWIN_SPACE(NAME, TYPES, TYPE_NAMES, HEAD, HEAD_NAMES, TAIL, TAIL_NAMES, BODY)                       \
    template <NEONEXT_TWIN_BARE TYPES>                                                                              \
    inline void NAME(NEONEXT_TWIN_BARE HEAD, NEONEXT_TWIN_BARE TAIL, Where at = Where::here())                      \
    {                                                                                                               \
        NEONEXT_TWIN_BARE BODY                                                                                      \
    }                                                                                                               \
    template <NEONEXT_TWIN_BARE TYPES>                                                                              \
    inline void NAME(NEONEXT_TWIN_BARE HEAD, const LocalTensor<uint8_t>& space, NEONEXT_TWIN_BARE TAIL,             \
                     Where at = Where::here())                                                                      \
    {                                                                                                               \
        neonext_twin::use_space(#NAME, space, at);                                                                  \
        NAME<NEONEXT_TWIN_BARE TYPE_NAMES>(NEONEXT_TWIN_BARE HEAD_NAMES, NEONEXT_TWIN_BARE TAIL_NAMES, at);         \
    }
#define NEONEXT_TWIN_DST_SRC (const LocalTensor<T>& dst, const LocalTensor<T>& src)

namespace AscendC {

NEONEXT_TWIN_SPACE(Sum, (typename T, int32_t reduceDim = -1, bool isReuseSource = false, bool isBasicBlock = false),
                   (T, reduceDim, isReuseSource, isBasicBlock), NEONEXT_TWIN_DST_SRC, (dst, src),
                   (const SumParams& params), (params),
                   (neonext_twin::row_sums<T>("Sum", dst, src, params, false, at);))

NEONEXT_TWIN_SPACE(Mean, (typename T, typename accType = T, bool isReuseSource = false, bool isBasicBlock = false,
                          int32_t reduceDim = -1),
                   (T, accType, isReuseSource, isBasicBlock, reduceDim), NEONEXT_TWIN_DST_SRC, (dst, src),
                   (const MeanParams& params), (params),
                   (neonext_twin::row_sums<accType>("Mean", dst, src, params, true, at);))

// The reductions of a matrix by a pattern, which have the names of those of a tensor.
#define NEONEXT_TWIN_PATTERN(NAME, SUPPORTED, FOLD, FINISH)                                                         \
    NEONEXT_TWIN_SPACE(NAME, (class T, class pattern, bool isReuseSource = false), (T, pattern, isReuseSource),     \
                       NEONEXT_TWIN_DST_SRC, (dst, src), (const uint32_t* srcShape, bool srcInnerPad),              \
                       (srcShape, srcInnerPad),                                                                     \
                       (neonext_twin::reduce_pattern<pattern>(#NAME, SUPPORTED, dst, src, srcShape, srcInnerPad, at, \
                                                              FOLD, FINISH);))
#define NEONEXT_TWIN_AS_IT_IS [](auto value, uint64_t) { return value; }

NEONEXT_TWIN_PATTERN(ReduceSum, neonext_twin::type_float, neonext_twin::row_sum<T>, NEONEXT_TWIN_AS_IT_IS)
NEONEXT_TWIN_PATTERN(ReduceMean, neonext_twin::type_float, neonext_twin::row_sum<T>,
                     ([](float sum, uint64_t length) { return sum / static_cast<float>(length); }))
NEONEXT_TWIN_PATTERN(ReduceMax, neonext_twin::floats,
                     neonext_twin::folded([](auto a, auto b) { return neonext_twin::larger(a, b); }),
                     NEONEXT_TWIN_AS_IT_IS)
NEONEXT_TWIN_PATTERN(ReduceMin, neonext_twin::floats,
                     neonext_twin::folded([](auto a, auto b) { return neonext_twin::smaller(a, b); }),
                     NEONEXT_TWIN_AS_IT_IS)
NEONEXT_TWIN_PATTERN(ReduceProd, neonext_twin::type_float, neonext_twin::folded([](float a, float b) { return a * b; }),
                     NEONEXT_TWIN_AS_IT_IS)
NEONEXT_TWIN_PATTERN(ReduceAny, (neonext_twin::type_float | neonext_twin::type_u8),
                     neonext_twin::folded([](T a, T b) { return T(a != 0 || b != 0); }),
                     [](T value, uint64_t) { return T(value != 0); })
NEONEXT_TWIN_PATTERN(ReduceAll, (neonext_twin::type_float | neonext_twin::type_u8),
                     neonext_twin::folded([](T a, T b) { return T(a != 0 && b != 0); }),
                     [](T value, uint64_t) { return T(value != 0); })

/// Repeat a vector (dim 1), the one row (axis 0) or the one column (axis 1) of a matrix.
template <typename T, int32_t dim, int32_t axis, bool isReuseSource = false>
inline void Broadcast(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t* dstShape,
                      const uint32_t* srcShape, Where at = Where::here())
{
    using namespace neonext_twin;
    static_assert((dim == 1 || dim == 2) && (axis == 0 || axis == 1), "Broadcast takes 1 or 2 dimensions, axis 0 or 1");
    constexpr uint32_t types = floats | type_i8 | type_u8;
    const LibraryCall call("Broadcast", PerArch{types, types, 0}, type_of<T>(), at);
    const uint64_t rows = dim == 1 ? 1 : dstShape[0], columns = dstShape[dim - 1];
    const uint64_t given_rows = dim == 1 ? 1 : srcShape[0], given = srcShape[dim - 1];
    const bool along_rows = dim == 2 && axis == 0;
    if (along_rows ? given_rows != 1 || given != columns : given != 1 || given_rows != rows) {
        machine.reject(Rule::argument,
                       "a source of %llu by %llu for %llu by %llu: axis %d of the source must be 1, and the other one "
                       "that of the destination",
                       static_cast<unsigned long long>(given_rows),
                       static_cast<unsigned long long>(given), static_cast<unsigned long long>(rows),
                       static_cast<unsigned long long>(columns), axis);
    }
    // The documents name these limits, for which the device has no other way to find its blocks.
    const uint64_t aligned = along_rows ? given : dim == 2 && __NPU_ARCH__ == 2002 ? given_rows : 0;
    if (aligned * sizeof(T) % block_bytes != 0) {
        machine.reject(Rule::argument, "a source of %llu elements, which is not a multiple of 32 bytes",
                       static_cast<unsigned long long>(aligned));
    }
    check_apart(dst.twin_view(), src.twin_view(), rows * columns * sizeof(T), given_rows * given * sizeof(T));
    const Values<T> values = call.read(src, 0, given_rows * given, "src");
    Values<T> out(rows * columns);
    for (uint64_t i = 0; i < out.size(); ++i) {
        out[i] = values[along_rows ? i % columns : dim == 1 ? 0 : i / columns];
    }
    call.write(dst, 0, out, "dst");
    LibraryCall::count(out.size(), sizeof(T));
}

template <typename T, int32_t dim, int32_t axis, bool isReuseSource = false>
inline void Broadcast(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t* dstShape,
                      const uint32_t* srcShape, const LocalTensor<uint8_t>& space, Where at = Where::here())
{
    neonext_twin::use_space("Broadcast", space, at);
    Broadcast<T, dim, axis, isReuseSource>(dst, src, dstShape, srcShape, at);
}

#define NEONEXT_TWIN_SOFTMAX_TYPES                                                                                  \
    typename T, bool isReuseSource = false, bool isBasicBlock = false, bool isDataFormatNZ = false,                 \
        const SoftmaxConfig &config = SOFTMAX_DEFAULT_CFG
#define NEONEXT_TWIN_SOFTMAX_TENSORS                                                                                \
    const LocalTensor<T>&dst, const LocalTensor<S>&sum, const LocalTensor<S>&max, const LocalTensor<T>&src
#define NEONEXT_TWIN_SOFTMAX_TAIL const SoftMaxTiling &tiling, const SoftMaxShapeInfo &softmaxShapeInfo = {}
#define NEONEXT_TWIN_SOFTMAX(NAME, GIVEN)                                                                           \
    NEONEXT_TWIN_SPACE(NAME, (NEONEXT_TWIN_SOFTMAX_TYPES, typename S),                                              \
                       (T, isReuseSource, isBasicBlock, isDataFormatNZ, config), (NEONEXT_TWIN_SOFTMAX_TENSORS),    \
                       (dst, sum, max, src), (NEONEXT_TWIN_SOFTMAX_TAIL), (tiling, softmaxShapeInfo),               \
                       (static_assert(!isDataFormatNZ, #NAME " in the format NZ is not in the simulator");          \
                        neonext_twin::run_softmax<GIVEN>(#NAME, dst, &sum, &max, src, tiling, softmaxShapeInfo,     \
                                                         config, at);))

NEONEXT_TWIN_SOFTMAX(SoftMax, false)
NEONEXT_TWIN_SOFTMAX(SimpleSoftMax, true)
NEONEXT_TWIN_SPACE(SoftMax, (typename T, bool isReuseSource = false, bool isBasicBlock = false,
                             const SoftmaxConfig& config = SOFTMAX_DEFAULT_CFG),
                   (T, isReuseSource, isBasicBlock, config), NEONEXT_TWIN_DST_SRC, (dst, src),
                   (NEONEXT_TWIN_SOFTMAX_TAIL), (tiling, softmaxShapeInfo),
                   (const LocalTensor<T>* none = nullptr;
                    neonext_twin::run_softmax<false>("SoftMax", dst, none, none, src, tiling, softmaxShapeInfo, config,
                                                     at);))

/// Set the rows whose maximum has the bits `from` to one value; return whether there was one.
template <typename T1, typename T2, bool isDataFormatNZ = false, uint8_t stepSizeMode = 0>
inline bool AdjustSoftMaxRes(const LocalTensor<T1>& softMaxRes, const LocalTensor<T2>& maxTensor, const uint32_t from,
                             const T1 to, const SoftMaxShapeInfo& softmaxShapeInfo, Where at = Where::here())
{
    static_assert(!isDataFormatNZ && stepSizeMode == 0, "AdjustSoftMaxRes in NZ or with steps is not in the simulator");
    bool any = false;
    constexpr uint32_t block = neonext_twin::block_bytes / sizeof(T2);
    for (uint32_t row = 0; row < softmaxShapeInfo.srcM; ++row) {
        const T2 largest = maxTensor.GetValue(row * block, at);
        uint32_t bits = 0;
        std::memcpy(&bits, &largest, sizeof(largest));
        if (bits == from) {
            any = true;
            Duplicate(softMaxRes[row * softmaxShapeInfo.srcK], to, softmaxShapeInfo.srcK, at);
        }
    }
    return any;
}

NEONEXT_TWIN_SPACE(LayerNorm, (typename T, bool isReuseSource = false), (T, isReuseSource),
                   (const LocalTensor<T>& output, const LocalTensor<T>& outputMean,
                    const LocalTensor<T>& outputVariance, const LocalTensor<T>& inputX, const LocalTensor<T>& gamma,
                    const LocalTensor<T>& beta),
                   (output, outputMean, outputVariance, inputX, gamma, beta),
                   (const T epsilon, const tiling::LayerNormTiling& tiling), (epsilon, tiling),
                   (using namespace neonext_twin;
                    const LibraryCall call("LayerNorm", floats_without_3002, type_of<T>(), at);
                    check_row("hLength", tiling.hLength, tiling.originalHLength, sizeof(T));
                    // The device takes the whole row, with the zeros that pad it, and divides by the original length:
                    // each of these zeros adds the square of the mean to the variance.
                    run_layer_norm(call, uint64_t{tiling.bLength} * tiling.sLength, tiling.hLength, tiling.hLength,
                                   tiling.originalHLength, static_cast<float>(epsilon), false, output, &outputMean,
                                   &outputVariance, inputX, &gamma, &beta);))

/// The form for rows of R elements, which gives 1 / sqrt(variance + epsilon) in place of the variance.
template <typename U, typename T, bool isReuseSource = false, const LayerNormConfig& config = LNCFG_NORM>
inline void LayerNorm(const LocalTensor<T>& output, const LocalTensor<float>& outputMean,
                      const LocalTensor<float>& outputRstd, const LocalTensor<T>& inputX, const LocalTensor<U>& gamma,
                      const LocalTensor<U>& beta, const float epsilon, const LayerNormPara& para,
                      const tiling::LayerNormSeparateTiling&, Where at = Where::here())
{
    using namespace neonext_twin;
    static_assert(config.isOutputRstd, "LayerNorm gives the variance of rows on the 950 only");
    constexpr PerArch types{floats, floats | type_bf16, 0};
    const LibraryCall call("LayerNorm", types, type_of<T>(), at);
    run_layer_norm(call, para.aLength, para.rLength, para.rLengthWithPadding, para.rLength, epsilon, true, output,
                   config.isOnlyOutput ? nullptr : &outputMean, &outputRstd, inputX,
                   config.isNoGamma ? nullptr : &gamma, config.isNoBeta ? nullptr : &beta);
}

template <typename U, typename T, bool isReuseSource = false, const LayerNormConfig& config = LNCFG_NORM>
inline void LayerNorm(const LocalTensor<T>& output, const LocalTensor<float>& outputMean,
                      const LocalTensor<float>& outputRstd, const LocalTensor<T>& inputX, const LocalTensor<U>& gamma,
                      const LocalTensor<U>& beta, const float epsilon, const LocalTensor<uint8_t>& space,
                      const LayerNormPara& para, const tiling::LayerNormSeparateTiling& tiling,
                      Where at = Where::here())
{
    neonext_twin::use_space("LayerNorm", space, at);
    LayerNorm<U, T, isReuseSource, config>(output, outputMean, outputRstd, inputX, gamma, beta, epsilon, para, tiling,
                                           at);
}

/// dst = src / sqrt(mean(src^2) + epsilon) * gamma
NEONEXT_TWIN_SPACE(RmsNorm, (typename T, bool isBasicBlock = false), (T, isBasicBlock),
                   (const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& gamma),
                   (dst, src, gamma), (const T epsilon, const tiling::RmsNormTiling& tiling), (epsilon, tiling),
                   (using namespace neonext_twin;
                    const LibraryCall call("RmsNorm", floats_without_3002, type_of<T>(), at);
                    const uint64_t columns = tiling.originalHLength;
                    check_row("hLength", tiling.hLength, columns, sizeof(T));
                    const Values<T> factor = call.read(gamma, 0, columns, "gamma");
                    const uint64_t rows = uint64_t{tiling.bLength} * tiling.sLength;
                    for (uint64_t row = 0; row < rows; ++row) {
                        Values<T> line = call.read(src, row * tiling.hLength, columns, "src");
                        double square = 0;
                        for (const double x : line) {
                            square += x * x / static_cast<double>(columns);
                        }
                        const double scale = 1.0 / std::sqrt(square + static_cast<float>(epsilon));
                        for (uint64_t i = 0; i < columns; ++i) {
                            line[i] = static_cast<compute_t<T>>(line[i] * scale * factor[i]);
                        }
                        call.write_row(dst, row, tiling.hLength, line, "dst");
                    }
                    LibraryCall::count(rows * columns, sizeof(T));))

/// Sums along the rows, or from row to row; lastRow receives the last row of them.
template <typename T, const CumSumConfig& config = defaultCumSumConfig>
inline void CumSum(const LocalTensor<T>& dst, const LocalTensor<T>& lastRow, const LocalTensor<T>& src,
                   const CumSumInfo& info, Where at = Where::here())
{
    using namespace neonext_twin;
    const LibraryCall call("CumSum", floats_without_3002, type_of<T>(), at);
    check_row("inner", info.inner, info.inner, sizeof(T));
    std::vector<float> sums(info.inner);
    for (uint64_t row = 0; row < info.outter; ++row) {
        const Values<T> line = call.read(src, row * info.inner, info.inner, "src");
        for (uint64_t i = 0; i < info.inner; ++i) {
            const float before = config.isLastAxis ? (i == 0 ? 0.0f : sums[i - 1]) : row == 0 ? 0.0f : sums[i];
            sums[i] = before + line[i];
        }
        call.write(dst, row * info.inner, sums, "dst");
    }
    if (config.outputLastRow) {
        call.write(lastRow, 0, sums, "lastRow");
    }
    LibraryCall::count(uint64_t{info.outter} * info.inner, sizeof(T));
}

template <typename T, const CumSumConfig& config = defaultCumSumConfig>
inline void CumSum(const LocalTensor<T>& dst, const LocalTensor<T>& lastRow, const LocalTensor<T>& src,
                   const LocalTensor<uint8_t>& space, const CumSumInfo& info, Where at = Where::here())
{
    neonext_twin::use_space("CumSum", space, at);
    CumSum<T, config>(dst, lastRow, src, info, at);
}

/// dst[i] = firstValue + i * diffValue
template <typename T>
inline void Arange(const LocalTensor<T>& dst, const T firstValue, const T diffValue, const int32_t count,
                   Where at = Where::here())
{
    using namespace neonext_twin;
    const LibraryCall call("Arange", PerArch{arithmetic, arithmetic, 0}, type_of<T>(), at);
    if (count < 1) {
        machine.reject(Rule::count, "a count of %d elements", count);
    }
    Values<T> out(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i) {
        out[i] = static_cast<compute_t<T>>(static_cast<double>(static_cast<compute_t<T>>(firstValue)) +
                                           static_cast<double>(static_cast<compute_t<T>>(diffValue)) * i);
    }
    call.write(dst, 0, out, "dst");
    LibraryCall::count(out.size(), sizeof(T));
}

// Quantization of a tensor with two numbers, with factors and one offset, or with factors and offsets.
#define NEONEXT_TWIN_QUANT(TYPES_OF_PARAMETERS, NAMES, COUNTS, COUNT_NAMES, SIZES, SCALE, OFFSET)                   \
    NEONEXT_TWIN_SPACE(AscendQuant, (typename T, bool isReuseSource = false,                                        \
                                     const AscendQuantConfig& config = ASCEND_QUANT_DEFAULT_CFG),                   \
                       (T, isReuseSource, config), (const LocalTensor<int8_t>& dst, const LocalTensor<T>& src),     \
                       (dst, src), (NEONEXT_TWIN_BARE TYPES_OF_PARAMETERS, NEONEXT_TWIN_BARE COUNTS),               \
                       (NEONEXT_TWIN_BARE NAMES, NEONEXT_TWIN_BARE COUNT_NAMES),                                    \
                       (neonext_twin::run_quant(dst, src, calCount, at, SCALE, OFFSET);))                           \
    NEONEXT_TWIN_SPACE(AscendQuant, (typename T, bool isReuseSource = false,                                        \
                                     const AscendQuantConfig& config = ASCEND_QUANT_DEFAULT_CFG),                   \
                       (T, isReuseSource, config), (const LocalTensor<int8_t>& dst, const LocalTensor<T>& src),     \
                       (dst, src), TYPES_OF_PARAMETERS, NAMES,                                                      \
                       (AscendQuant<T, isReuseSource, config>(dst, src, NEONEXT_TWIN_BARE NAMES,                    \
                                                              NEONEXT_TWIN_BARE SIZES, at);))

NEONEXT_TWIN_QUANT((const float scale, const float offset), (scale, offset), (const uint32_t calCount), (calCount),
                   (src.GetSize()), neonext_twin::quant_number(scale), neonext_twin::quant_number(offset))
NEONEXT_TWIN_QUANT((const LocalTensor<T>& scaleTensor, const T offset), (scaleTensor, offset),
                   (const uint32_t scaleCount, const uint32_t calCount), (scaleCount, calCount),
                   (scaleTensor.GetSize(), src.GetSize()), neonext_twin::quant_tensor(scaleTensor, scaleCount),
                   neonext_twin::quant_number(offset))
NEONEXT_TWIN_QUANT((const LocalTensor<T>& scaleTensor, const LocalTensor<T>& offsetTensor), (scaleTensor, offsetTensor),
                   (const uint32_t scaleCount, const uint32_t offsetCount, const uint32_t calCount),
                   (scaleCount, offsetCount, calCount),
                   (scaleTensor.GetSize(), offsetTensor.GetSize(), src.GetSize()),
                   neonext_twin::quant_tensor(scaleTensor, scaleCount),
                   neonext_twin::quant_tensor(offsetTensor, offsetCount))

#define NEONEXT_TWIN_DEQUANT(SCALE_TYPE, SCALE)                                                                     \
    NEONEXT_TWIN_SPACE(AscendDequant, (typename dstT, typename scaleT,                                              \
                                       DeQuantMode mode = DeQuantMode::DEQUANT_WITH_SINGLE_ROW),                    \
                       (dstT, scaleT, mode),                                                                        \
                       (const LocalTensor<dstT>& dst, const LocalTensor<int32_t>& src, SCALE_TYPE deqScale),        \
                       (dst, src, deqScale), (const DequantParams& params), (params),                               \
                       (neonext_twin::run_dequant(dst, src, params, mode == DeQuantMode::DEQUANT_WITH_SINGLE_ROW,   \
                                                  at, NEONEXT_TWIN_BARE SCALE);))

NEONEXT_TWIN_DEQUANT(const scaleT, ([&](const neonext_twin::LibraryCall&, uint64_t) {
                         return std::vector<float>{static_cast<float>(deqScale)};
                     }))
NEONEXT_TWIN_DEQUANT(const LocalTensor<scaleT>&, ([&](const neonext_twin::LibraryCall& call, uint64_t count) {
                         std::vector<float> factors;
                         for (const auto value : call.read(deqScale, 0, count, "deqScale")) {
                             if constexpr (sizeof(scaleT) == 8) {
                                 // The bits of a float, as the cube unit's parameters hold it.
                                 const uint32_t low = static_cast<uint32_t>(value);
                                 float factor;
                                 std::memcpy(&factor, &low, sizeof(factor));
                                 factors.push_back(factor);
                             } else {
                                 factors.push_back(static_cast<float>(value));
                             }
                         }
                         return factors;
                     }))

}  // namespace AscendC
