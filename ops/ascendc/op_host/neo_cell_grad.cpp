// NeoCellGrad: gradients of NeoCell's coefficients, one partial sum for each image, in float32.
#include "neo_cell_host.h"

namespace optiling {
static ge::graphStatus TilingNeoCellGrad(gert::TilingContext* context)
{
    return neo_cell_host::MakeTiling(context, true, 2);
}
} // namespace optiling

namespace ge {
static ge::graphStatus InferShapeNeoCellGrad(gert::InferShapeContext* context)
{
    const gert::Shape* x = context->GetInputShape(0);
    for (size_t side = 0; side < 2; ++side) {
        const gert::Shape* coefficients = context->GetInputShape(2 + side);
        gert::Shape* gradient = context->GetOutputShape(side);
        if (x == nullptr || coefficients == nullptr || gradient == nullptr || coefficients->GetDimNum() != 2) {
            return neo_cell_host::Fail(context->GetNodeName(), "coef_a and coef_b must be (rows, 16)");
        }
        gradient->SetDimNum(3);
        gradient->SetDim(0, x->GetDim(0));
        gradient->SetDim(1, coefficients->GetDim(0));
        gradient->SetDim(2, coefficients->GetDim(1));
    }
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus InferDataTypeNeoCellGrad(gert::InferDataTypeContext* context)
{
    context->SetOutputDataType(0, ge::DT_FLOAT);
    return context->SetOutputDataType(1, ge::DT_FLOAT);
}
} // namespace ge

namespace ops {
class NeoCellGrad : public OpDef {
public:
    explicit NeoCellGrad(const char* name) : OpDef(name)
    {
        Describe(*this, true);
        neo_cell_host::AddAttributes(*this);
        this->SetInferShape(ge::InferShapeNeoCellGrad).SetInferDataType(ge::InferDataTypeNeoCellGrad);
        this->AICore().SetTiling(optiling::TilingNeoCellGrad);
        for (const neo_cell_host::Family& family : neo_cell_host::FAMILIES) {
            OpAICoreConfig config;
            Describe(config, family.bf16);
            neo_cell_host::SetFlags(config);
            this->AICore().AddConfig(family.name, config);
        }
    }

private:
    // Training calls this operator through aclnn only, so its maps are 5-D tensors of format ND.
    template <typename Definition>
    static void Describe(Definition& definition, bool bf16)
    {
        const std::vector<ge::DataType> types = neo_cell_host::Types(bf16);
        const std::vector<ge::DataType> sums(types.size(), ge::DT_FLOAT);
        const std::vector<ge::Format> plain(types.size(), ge::FORMAT_ND);
        definition.Input("x").ParamType(REQUIRED).DataType(types).Format(plain).AutoContiguous();
        definition.Input("dy").ParamType(REQUIRED).DataType(types).Format(plain).AutoContiguous();
        definition.Input("coef_a").ParamType(REQUIRED).DataType(types).Format(plain).AutoContiguous();
        definition.Input("coef_b").ParamType(REQUIRED).DataType(types).Format(plain).AutoContiguous();
        definition.Output("grad_a").ParamType(REQUIRED).DataType(sums).Format(plain);
        definition.Output("grad_b").ParamType(REQUIRED).DataType(sums).Format(plain);
    }
};

OP_ADD(NeoCellGrad);
} // namespace ops
