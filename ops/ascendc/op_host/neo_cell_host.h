// The common host part of NeoCell and NeoCellGrad: attributes, output sizes, tiling. The geometry itself is in
// op_kernel/neo_cell_tiling.h, which the kernels share; here are the framework's types and the checks of what it
// passes.
//
// C++11, because CANN 8.x compiles operator projects with -std=c++11.
#ifndef NEO_CELL_HOST_H
#define NEO_CELL_HOST_H

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"

#include "neo_cell_make_tiling.h"

namespace neo_cell_host {

// The operators' attributes in their order. The first seven hold one number for each run of channels.
static const char* const RUN_ATTRIBUTES[] = {"channels", "h_in", "h_out", "w_in", "w_out", "shift_a", "shift_b"};
static const char* const OUTPUT_SIZE_ATTRIBUTE = "output_size";
static const char* const ACCUMULATE_ATTRIBUTE = "accumulate_fp32";

enum AttributeIndex { CHANNELS, H_IN, H_OUT, W_IN, W_OUT, SHIFT_A, SHIFT_B, OUTPUT_SIZE, ACCUMULATE_FP32 };

// Axes of the 5-D storage (N, C1, H, W, C0).
enum StorageAxis { AXIS_N, AXIS_C1, AXIS_H, AXIS_W, AXIS_C0, STORAGE_AXES };

// Report an error. No logging interface for operators comes with every CANN 8.x, but ATC shows this stream.
inline ge::graphStatus Fail(const char* node, const std::string& reason)
{
    std::fprintf(stderr, "[ERROR] %s: %s\n", node == nullptr ? "NeoCell" : node, reason.c_str());
    return ge::GRAPH_FAILED;
}

inline std::string ShapeText(const gert::Shape& shape)
{
    std::string text = "(";
    for (size_t i = 0; i < shape.GetDimNum(); ++i) {
        text += (i == 0 ? "" : ", ") + std::to_string(shape.GetDim(i));
    }
    return text + ")";
}

inline const gert::TypedContinuousVector<int64_t>* ReadList(const gert::RuntimeAttrs* attributes, size_t index)
{
    return attributes == nullptr ? nullptr : attributes->GetAttrPointer<gert::TypedContinuousVector<int64_t>>(index);
}

// Fill in the runs of `problem`, and its output size if an attribute has it. Return an empty string, or the reason why
// not.
inline std::string ReadAttributes(const gert::RuntimeAttrs* attributes, NeoCellProblem& problem)
{
    const gert::TypedContinuousVector<int64_t>* lists[SHIFT_B + 1];
    for (size_t i = 0; i <= SHIFT_B; ++i) {
        lists[i] = ReadList(attributes, i);
        if (lists[i] == nullptr) {
            return std::string("attribute ") + RUN_ATTRIBUTES[i] + " is missing";
        }
        if (lists[i]->GetSize() != lists[CHANNELS]->GetSize()) {
            return std::string("attribute ") + RUN_ATTRIBUTES[i] + " has " + std::to_string(lists[i]->GetSize()) +
                   " numbers, but channels has " + std::to_string(lists[CHANNELS]->GetSize()) +
                   "; all need one for each run of channels";
        }
        for (size_t run = 0; run < lists[i]->GetSize(); ++run) {
            const int64_t value = lists[i]->GetData()[run];
            if (value < 0 || value > INT32_MAX) {
                return std::string("attribute ") + RUN_ATTRIBUTES[i] + " has the value " + std::to_string(value) +
                       "; expected a whole number of at least 0";
            }
        }
    }
    const size_t runs = lists[CHANNELS]->GetSize();
    if (runs < 1 || runs > static_cast<size_t>(NEO_CELL_MAX_RUNS)) {
        return "there are " + std::to_string(runs) + " runs of channels; expected 1 to " +
               std::to_string(NEO_CELL_MAX_RUNS);
    }
    problem.runs = static_cast<int32_t>(runs);
    for (size_t run = 0; run < runs; ++run) {
        int32_t values[SHIFT_B + 1];
        for (size_t i = 0; i <= SHIFT_B; ++i) {
            values[i] = static_cast<int32_t>(lists[i]->GetData()[run]);
        }
        if (values[CHANNELS] < 1 || values[H_IN] < 1 || values[H_OUT] < 1 || values[W_IN] < 1 || values[W_OUT] < 1) {
            return "run " + std::to_string(run) + " has a size or a number of channels below 1";
        }
        problem.channels[run] = values[CHANNELS];
        problem.a[run] = {values[H_IN], values[H_OUT], values[SHIFT_A]};
        problem.b[run] = {values[W_IN], values[W_OUT], values[SHIFT_B]};
    }
    const gert::TypedContinuousVector<int64_t>* size = ReadList(attributes, OUTPUT_SIZE);
    if (size != nullptr && size->GetSize() != 0) {
        if (size->GetSize() != 2 || size->GetData()[0] < 1 || size->GetData()[1] < 1 ||
            size->GetData()[0] > INT32_MAX || size->GetData()[1] > INT32_MAX) {
            return "attribute output_size must be empty, or the height and the width of the output";
        }
        problem.hOut = static_cast<int32_t>(size->GetData()[0]);
        problem.wOut = static_cast<int32_t>(size->GetData()[1]);
    }
    return "";
}

inline int64_t TotalChannels(const NeoCellProblem& problem)
{
    int64_t total = 0;
    for (int32_t run = 0; run < problem.runs; ++run) {
        total += problem.channels[run];
    }
    return total;
}

// Return the outputs of one side of the map for `size` inputs, -1 if those are not known yet.
inline int64_t OutputSize(const NeoCellMatrix* sides, int32_t runs, int64_t size)
{
    return size < 0 ? -1 : NeoCellOutputs(sides, runs, size);
}

// Infer the forward operator's output from its input: NCHW or NHWC as GE sees a map, or 5-D as aclnn passes it.
inline std::string InferOutput(
    const gert::Shape& x, bool channelsLast, const gert::RuntimeAttrs* attributes, gert::Shape& y)
{
    NeoCellProblem problem{};
    const std::string reason = ReadAttributes(attributes, problem);
    if (!reason.empty()) {
        return reason;
    }
    y = x;
    const size_t axes = x.GetDimNum();
    if (axes == 1 && x.GetDim(0) == -2) { // a shape of unknown rank
        return "";
    }
    if (axes != 4 && axes != STORAGE_AXES) {
        return "x is " + ShapeText(x) + "; expected (N, C, H, W) or (N, C1, H, W, C0)";
    }
    const size_t height = axes == 4 && channelsLast ? 1 : AXIS_H;
    const int64_t channels = TotalChannels(problem);
    // A 5-D shape does not tell its channels: C1 * C0 may have lanes beyond the last one.
    const int64_t actual = axes == 4 ? x.GetDim(channelsLast ? 3 : 1) : channels;
    if (actual >= 0 && actual != channels) {
        return "x is " + ShapeText(x) + ", but the attribute channels adds up to " + std::to_string(channels);
    }
    const int64_t rows =
        problem.hOut != 0 ? problem.hOut : OutputSize(problem.a, problem.runs, x.GetDim(height));
    const int64_t columns =
        problem.wOut != 0 ? problem.wOut : OutputSize(problem.b, problem.runs, x.GetDim(height + 1));
    if (rows == 0 || columns == 0) {
        return "x is " + ShapeText(x) + ", which leaves an empty output";
    }
    y.SetDim(height, rows);
    y.SetDim(height + 1, columns);
    return "";
}

inline ge::graphStatus CheckCoefficients(
    const gert::TilingContext* context, size_t input, const char* name, int32_t rows)
{
    const gert::StorageShape* shape = context->GetInputShape(input);
    if (shape == nullptr) {
        return Fail(context->GetNodeName(), std::string(name) + " is missing");
    }
    const gert::Shape& stored = shape->GetStorageShape();
    if (stored.GetDimNum() != 2 || stored.GetDim(0) != rows || stored.GetDim(1) != NEO_CELL_LANES) {
        return Fail(
            context->GetNodeName(), std::string(name) + " is " + ShapeText(stored) + "; the attributes ask for (" +
                                        std::to_string(rows) + ", " + std::to_string(NEO_CELL_LANES) +
                                        "), packed by the same version of neonext_ms");
    }
    return ge::GRAPH_SUCCESS;
}

// Make the tiling of either operator. `coefficients` is the index of coef_a among the inputs; coef_b is the next one.
inline ge::graphStatus MakeTiling(gert::TilingContext* context, bool gradient, size_t coefficients)
{
    const char* node = context->GetNodeName();
    const gert::StorageShape* xShape = context->GetInputShape(0);
    const gert::CompileTimeTensorDesc* xDesc = context->GetInputDesc(0);
    NeoCellTiling* tiling = context->GetTilingData<NeoCellTiling>();
    size_t* workspaces = context->GetWorkspaceSizes(1);
    if (xShape == nullptr || xDesc == nullptr || tiling == nullptr || workspaces == nullptr) {
        return Fail(node, "the framework passed no input, or no room for tiling data");
    }
    NeoCellProblem problem{};
    const std::string reason = ReadAttributes(context->GetAttrs(), problem);
    if (!reason.empty()) {
        return Fail(node, reason);
    }
    const gert::Shape& x = xShape->GetStorageShape();
    if (x.GetDimNum() != STORAGE_AXES) {
        return Fail(
            node, "x is stored as " + ShapeText(x) + "; expected (N, C1, H, W, C0), that is format NC1HWC0, or a "
                                                     "5-D tensor of that layout");
    }
    for (size_t axis = 0; axis < STORAGE_AXES; ++axis) {
        if (x.GetDim(axis) < 1 || x.GetDim(axis) > INT32_MAX) {
            return Fail(node, "x is stored as " + ShapeText(x) + ", which has a side that is empty or too large");
        }
    }
    problem.images = static_cast<int32_t>(x.GetDim(AXIS_N));
    problem.planes = static_cast<int32_t>(x.GetDim(AXIS_C1));
    problem.hIn = static_cast<int32_t>(x.GetDim(AXIS_H));
    problem.wIn = static_cast<int32_t>(x.GetDim(AXIS_W));
    problem.c0 = static_cast<int32_t>(x.GetDim(AXIS_C0));

    const ge::DataType type = xDesc->GetDataType();
    if (type != ge::DT_FLOAT16 && type != ge::DT_FLOAT && type != ge::DT_BF16) {
        return Fail(node, "x must be float16, float32 or bfloat16");
    }
    const int64_t* accumulate =
        context->GetAttrs() == nullptr ? nullptr : context->GetAttrs()->GetAttrPointer<int64_t>(ACCUMULATE_FP32);
    const bool wide = type == ge::DT_BF16 || (type == ge::DT_FLOAT16 && accumulate != nullptr && *accumulate != 0);
    problem.elementBytes = type == ge::DT_FLOAT ? 4 : 2;
    problem.computeBytes = gradient || wide ? 4 : problem.elementBytes;
    problem.gradient = gradient ? 1 : 0;
    // The forward kernel has one variant that computes in the type of x and one in float32; the gradient has only one.
    const uint64_t key = !gradient && wide ? 1 : 0;

    if (gradient) {
        const gert::StorageShape* dyShape = context->GetInputShape(1);
        if (dyShape == nullptr || dyShape->GetStorageShape().GetDimNum() != STORAGE_AXES) {
            return Fail(node, "dy must be stored as (N, C1, H, W, C0)");
        }
        const gert::Shape& dy = dyShape->GetStorageShape();
        if (dy.GetDim(AXIS_N) != x.GetDim(AXIS_N) || dy.GetDim(AXIS_C1) != x.GetDim(AXIS_C1) ||
            dy.GetDim(AXIS_C0) != x.GetDim(AXIS_C0)) {
            return Fail(node, "dy is stored as " + ShapeText(dy) + ", which does not match x, " + ShapeText(x));
        }
        problem.hOut = static_cast<int32_t>(dy.GetDim(AXIS_H));
        problem.wOut = static_cast<int32_t>(dy.GetDim(AXIS_W));
    } else {
        const gert::StorageShape* bias = context->GetOptionalInputShape(coefficients + 2);
        problem.hasBias = bias != nullptr && bias->GetStorageShape().GetShapeSize() > 0 ? 1 : 0;
        const int64_t lanes = static_cast<int64_t>(problem.planes) * problem.c0;
        if (problem.hasBias != 0 && bias->GetStorageShape().GetShapeSize() != lanes) {
            return Fail(
                node, "bias is " + ShapeText(bias->GetStorageShape()) + "; expected " + std::to_string(lanes) +
                          " values, zero beyond the last channel");
        }
    }

    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    uint64_t ubBytes = 0;
    platform.GetCoreMemSize(platform_ascendc::CoreMemType::UB, ubBytes);
    NeoCellDevice device{};
    device.cores = static_cast<int32_t>(platform.GetCoreNumAiv());
    device.ubBytes = static_cast<int32_t>(ubBytes);
    device.vectorCores = static_cast<int32_t>(platform.GetCoreNumVector()); // 0 on all but the 310P

    const char* why = NeoCellMakeTiling(problem, device, *tiling);
    if (why != nullptr) {
        return Fail(node, std::string(why) + "; x is stored as " + ShapeText(x));
    }
    if (CheckCoefficients(context, coefficients, "coef_a", tiling->totalA) != ge::GRAPH_SUCCESS ||
        CheckCoefficients(context, coefficients + 1, "coef_b", tiling->totalB) != ge::GRAPH_SUCCESS) {
        return ge::GRAPH_FAILED;
    }
    // A kernel for two kinds of cores must ask for a workspace, although it uses none.
    workspaces[0] = device.vectorCores > 0 ? NEO_CELL_BLOCK : 0;
    context->SetTilingKey(key);
    context->SetBlockDim(static_cast<uint32_t>(tiling->cores));
    return ge::GRAPH_SUCCESS;
}

// Return the types of a family of devices: bfloat16 only where the vector unit has it.
inline std::vector<ge::DataType> Types(bool bf16)
{
    std::vector<ge::DataType> types = {ge::DT_FLOAT16, ge::DT_FLOAT};
    if (bf16) {
        types.push_back(ge::DT_BF16);
    }
    return types;
}

// A family of devices, named as in ops/soc.py, for which the kernels are compiled.
struct Family {
    const char* name;
    bool bf16;
};

static const Family FAMILIES[] = {
    {"ascend310p", false}, {"ascend310b", true}, {"ascend910b", true}, {"ascend910_93", true}};

inline void AddAttributes(ops::OpDef& definition)
{
    for (const char* name : RUN_ATTRIBUTES) {
        definition.Attr(name).AttrType(ops::REQUIRED).ListInt();
    }
    definition.Attr(OUTPUT_SIZE_ATTRIBUTE).AttrType(ops::OPTIONAL).ListInt({});
    definition.Attr(ACCUMULATE_ATTRIBUTE).AttrType(ops::OPTIONAL).Int(0);
}

inline void SetFlags(ops::OpAICoreConfig& config)
{
    config.DynamicCompileStaticFlag(true)
        .DynamicFormatFlag(false)
        .DynamicRankSupportFlag(true)
        .DynamicShapeSupportFlag(true)
        .NeedCheckSupportFlag(false)
        .PrecisionReduceFlag(true);
}

} // namespace neo_cell_host

#endif // NEO_CELL_HOST_H
