// The ONNX node NeoCell, which neonext-export --neocell custom writes, for ATC. The operator has the same attributes in
// ONNX and in CANN, so the plugin only copies them.
#include <cstdio>

#include "graph/operator.h"
#include "register/register.h"

#include "onnx_attributes.h"

namespace domi {
namespace {
const char* const REQUIRED_INTS[] = {"channels", "h_in", "h_out", "w_in", "w_out", "shift_a", "shift_b"};
const char* const OPTIONAL_INTS[] = {"output_size"};
const char* const OPTIONAL_INT[] = {"accumulate_fp32"};

Status Fail(const std::string& what)
{
    std::fprintf(stderr, "[ERROR] ONNX node NeoCell: %s\n", what.c_str());
    return FAILED;
}
} // namespace

static Status ParseNeoCell(const ge::Operator& from, ge::Operator& to)
{
    ge::AscendString text;
    if (from.GetAttr("attribute", text) != ge::GRAPH_SUCCESS || text.GetString() == nullptr) {
        return Fail("it has no attributes; write the model again with this version of neonext_ms");
    }
    const std::string json = text.GetString();
    std::map<std::string, neo_cell_onnx::Attribute> attributes;
    if (!neo_cell_onnx::Reader(json).Read(attributes)) {
        return Fail("its attributes cannot be read: " + json.substr(0, 200));
    }
    for (const char* name : REQUIRED_INTS) {
        const auto found = attributes.find(name);
        if (found == attributes.end() || found->second.type != neo_cell_onnx::TYPE_INTS) {
            return Fail(
                std::string("it needs the attribute ") + name + ", a list of whole numbers; write the model again "
                                                               "with this version of neonext_ms");
        }
        to.SetAttr(name, found->second.ints);
    }
    for (const char* name : OPTIONAL_INTS) {
        const auto found = attributes.find(name);
        to.SetAttr(name, found == attributes.end() ? std::vector<int64_t>() : found->second.ints);
    }
    for (const char* name : OPTIONAL_INT) {
        const auto found = attributes.find(name);
        to.SetAttr(name, found == attributes.end() ? static_cast<int64_t>(0) : found->second.i);
    }
    return SUCCESS;
}

// The opsets that export/onnx/neocell_node.py writes; ATC looks a node up by its opset.
REGISTER_CUSTOM_OP("NeoCell")
    .FrameworkType(ONNX)
    .OriginOpType({
        ge::AscendString("ai.onnx::11::NeoCell"),
        ge::AscendString("ai.onnx::12::NeoCell"),
        ge::AscendString("ai.onnx::13::NeoCell"),
        ge::AscendString("ai.onnx::14::NeoCell"),
        ge::AscendString("ai.onnx::15::NeoCell"),
        ge::AscendString("ai.onnx::16::NeoCell"),
        ge::AscendString("ai.onnx::17::NeoCell"),
        ge::AscendString("ai.onnx::18::NeoCell"),
    })
    .ParseParamsByOperatorFn(ParseNeoCell)
    .ImplyType(ImplyType::TVM);
} // namespace domi
