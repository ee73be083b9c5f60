// NeoCell: y = A x B + bias for every channel, with A and B as packed coefficients.
#include "neo_cell_host.h"

namespace optiling {
static ge::graphStatus TilingNeoCell(gert::TilingContext* context)
{
    return neo_cell_host::MakeTiling(context, false, 1);
}
} // namespace optiling

namespace ge {
static ge::graphStatus InferShapeNeoCell(gert::InferShapeContext* context)
{
    const gert::Shape* x = context->GetInputShape(0);
    gert::Shape* y = context->GetOutputShape(0);
    const gert::CompileTimeTensorDesc* desc = context->GetInputDesc(0);
    if (x == nullptr || y == nullptr) {
        return neo_cell_host::Fail(context->GetNodeName(), "the framework passed no shape");
    }
    const bool channelsLast = desc != nullptr && desc->GetOriginFormat() == ge::FORMAT_NHWC;
    const std::string reason = neo_cell_host::InferOutput(*x, channelsLast, context->GetAttrs(), *y);
    return reason.empty() ? ge::GRAPH_SUCCESS : neo_cell_host::Fail(context->GetNodeName(), reason);
}

static ge::graphStatus InferDataTypeNeoCell(gert::InferDataTypeContext* context)
{
    return context->SetOutputDataType(0, context->GetInputDataType(0));
}
} // namespace ge

namespace ops {
class NeoCell : public OpDef {
public:
    explicit NeoCell(const char* name) : OpDef(name)
    {
        Describe(*this, true);
        neo_cell_host::AddAttributes(*this);
        this->SetInferShape(ge::InferShapeNeoCell).SetInferDataType(ge::InferDataTypeNeoCell);
        this->AICore().SetTiling(optiling::TilingNeoCell);
        for (const neo_cell_host::Family& family : neo_cell_host::FAMILIES) {
            OpAICoreConfig config;
            Describe(config, family.bf16);
            neo_cell_host::SetFlags(config);
            // Of the two formats GE would prefer ND where the graph is NCHW, and pass x as it is, with four axes. For
            // a "heavy" operator it prefers NC1HWC0, and asks the neighbouring operators for it too.
            config.ExtendCfgInfo("heavyOp.flag", "true");
            this->AICore().AddConfig(family.name, config);
        }
    }

private:
    // Describe inputs and outputs, for the operator (OpDef) or for one family of devices (OpAICoreConfig). Each type
    // occurs once as NC1HWC0, to which GE converts, and once as ND, which aclnn passes through as it is.
    template <typename Definition>
    static void Describe(Definition& definition, bool bf16)
    {
        std::vector<ge::DataType> types;
        std::vector<ge::Format> maps;
        for (const ge::Format format : {ge::FORMAT_NC1HWC0, ge::FORMAT_ND}) {
            for (const ge::DataType type : neo_cell_host::Types(bf16)) {
                types.push_back(type);
                maps.push_back(format);
            }
        }
        const std::vector<ge::Format> plain(types.size(), ge::FORMAT_ND);
        definition.Input("x").ParamType(REQUIRED).DataType(types).Format(maps).AutoContiguous();
        definition.Input("coef_a").ParamType(REQUIRED).DataType(types).Format(plain).AutoContiguous();
        definition.Input("coef_b").ParamType(REQUIRED).DataType(types).Format(plain).AutoContiguous();
        definition.Input("bias").ParamType(OPTIONAL).DataType(types).Format(plain).AutoContiguous();
        definition.Output("y").ParamType(REQUIRED).DataType(types).Format(maps);
    }
};

OP_ADD(NeoCell);
} // namespace ops
