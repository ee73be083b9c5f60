"""The C++ sources of the operator project agree with the tables and calls of the Python side."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from neonext_ms.export.onnx import neocell_node
from neonext_ms.ops import package
from neonext_ms.ops.packing import LANES, RUN_ATTRIBUTES
from neonext_ms.ops.soc import SOCS, VECTOR_CORE

PROJECT = package.PROJECT
KINDS = {"INTS": "ListInt", "INT": "Int"}


def _source(name: str) -> str:
    """Return a source without its comments."""
    return re.sub(r"//[^\n]*", "", (PROJECT / name).read_text(encoding="utf-8"))


def _strings(source: str, name: str) -> list[str]:
    """Return the strings of `const char* const NAME[] = {...}`."""
    return re.findall(r'"([^"]*)"', re.search(rf"\b{name}\[\] = \{{([^}}]*)\}}", source)[1])


HOST = _source("op_host/neo_cell_host.h")
PLUGIN = _source("framework/onnx_plugin/neo_cell_plugin.cc")


def test_attributes_of_the_operators_are_those_of_the_node():
    names = _strings(HOST, "RUN_ATTRIBUTES")
    assert tuple(names) == tuple(RUN_ATTRIBUTES)
    for constant in ("OUTPUT_SIZE_ATTRIBUTE", "ACCUMULATE_ATTRIBUTE"):
        names += re.findall(rf'\b{constant} = "(\w+)"', HOST)
    assert names == list(neocell_node.ATTRIBUTES)
    # In the order of the enumeration that tiling reads them by.
    order = re.search(r"enum AttributeIndex \{([^}]*)\}", HOST)[1].replace(" ", "").lower().split(",")
    assert order == names
    kinds = dict.fromkeys(RUN_ATTRIBUTES, "ListInt")
    for constant, name in (("OUTPUT_SIZE_ATTRIBUTE", "output_size"), ("ACCUMULATE_ATTRIBUTE", "accumulate_fp32")):
        kinds[name] = re.search(rf"Attr\({constant}\)\.AttrType\(ops::OPTIONAL\)\.(\w+)\(", HOST)[1]
    assert re.search(r"Attr\(name\)\.AttrType\(ops::REQUIRED\)\.ListInt\(\)", HOST)
    assert kinds == {name: KINDS[kind] for name, kind in neocell_node.ATTRIBUTES.items()}


def test_mindspore_passes_the_same_attributes():
    from neonext_ms.ops import ascend

    kinds = {"INTS": "listInt", "INT": "int"}
    assert list(ascend.OPERATOR_ATTRIBUTES.items()) == [
        (name, kinds[kind]) for name, kind in neocell_node.ATTRIBUTES.items()
    ]


def test_plugin_reads_every_attribute_by_its_type():
    ints = _strings(PLUGIN, "REQUIRED_INTS") + _strings(PLUGIN, "OPTIONAL_INTS")
    read = dict.fromkeys(ints, "INTS") | dict.fromkeys(_strings(PLUGIN, "OPTIONAL_INT"), "INT")
    assert read == neocell_node.ATTRIBUTES
    assert _strings(PLUGIN, "REQUIRED_INTS") == list(RUN_ATTRIBUTES)


def test_plugin_is_registered_for_every_opset_that_the_exporter_writes():
    assert re.search(r'REGISTER_CUSTOM_OP\("(\w+)"\)', PLUGIN)[1] == neocell_node.OP_TYPE
    found = re.findall(r'"ai\.onnx::(\d+)::(\w+)"', PLUGIN)
    assert found == [(str(opset), neocell_node.OP_TYPE) for opset in neocell_node.OPSETS]
    assert neocell_node.DOMAIN == ""


@pytest.mark.parametrize("kernel", package.OPERATORS)
def test_definition_and_kernel_have_the_same_parameters(kernel):
    host, device = _source(f"op_host/{kernel}.cpp"), _source(f"op_kernel/{kernel}.cpp")
    operator = package.OPERATORS[kernel]
    assert re.search(r"OP_ADD\((\w+)\)", host)[1] == operator
    assert f"class {operator} : public OpDef" in host
    parameters = re.findall(r'definition\.(?:Input|Output)\("(\w+)"\)', host)
    entry = re.search(rf'extern "C" __global__ __aicore__ void {kernel}\(([^)]*)\)', device)[1]
    assert re.findall(r"GM_ADDR (\w+)", entry) == [*parameters, "workspace", "tiling"]
    # CANN greps these, so they have to be one line each.
    assert re.search(r"^\s*REGISTER_TILING_DEFAULT\(NeoCellTiling\);", device, re.M)
    assert re.search(r"^\s*GET_TILING_DATA_WITH_STRUCT\(NeoCellTiling, \w+, tiling\);", device, re.M)


def test_inputs_and_outputs_are_those_of_the_node():
    host = _source("op_host/neo_cell.cpp")
    assert re.findall(r'definition\.Input\("(\w+)"\)', host) == list(neocell_node.INPUTS)
    assert re.findall(r'definition\.Output\("(\w+)"\)', host) == list(neocell_node.OUTPUTS)
    (optional,) = re.findall(r'Input\("(\w+)"\)\.ParamType\(OPTIONAL\)', host)
    assert "optional" in neocell_node.INPUTS[optional]


def test_families_and_their_bfloat16_are_those_of_the_device_table():
    families = dict(re.findall(r'\{"(\w+)", (true|false)\}', HOST))
    assert tuple(families) == package.FAMILIES
    for soc in SOCS.values():
        if soc.family in families:
            assert families[soc.family] == str(soc.bf16).lower(), soc.name
    # The older 910 is the one family that the kernels do not support.
    assert {soc.family for soc in SOCS.values()} - set(families) == {"ascend910"}


def test_limits_are_those_that_python_checks():
    from neonext_ms.ops import ascend

    tiling = _source("op_kernel/neo_cell_tiling.h")
    constants = dict(re.findall(r"constexpr int32_t (\w+) = (\d+);", tiling))
    assert int(constants["NEO_CELL_LANES"]) == LANES
    assert int(constants["NEO_CELL_MAX_RUNS"]) == ascend.MOST_RUNS
    assert int(constants["NEO_CELL_MAX_KERNEL"]) == ascend.LARGEST_MATRIX
    cores = max(soc.vector_units + soc.vector_cores_beside for soc in SOCS.values() if soc.family in package.FAMILIES)
    assert int(constants["NEO_CELL_MAX_CORES"]) >= cores
    device = SOCS["Ascend310P3"]
    rates = dict(
        re.findall(r"constexpr int32_t NEO_CELL_VECTOR_CORE_(\w+) = (\d+);", _source("op_host/neo_cell_make_tiling.h"))
    )
    assert int(rates["COMPUTE"]) == round(256 * VECTOR_CORE.mhz / device.cube_mhz)
    memory = VECTOR_CORE.mhz * VECTOR_CORE.memory_bytes_per_cycle / device.ai_core.mhz
    assert int(rates["MEMORY"]) == round(256 * memory / device.memory_bytes_per_cycle)


def test_presets_ask_for_sources_and_name_the_vendor():
    presets = json.loads((PROJECT / "CMakePresets.json").read_text())
    variables = presets["configurePresets"][0]["cacheVariables"]
    # ATC compiles kernels for fixed shapes from their sources.
    assert variables["ENABLE_SOURCE_PACKAGE"]["value"] == variables["ENABLE_BINARY_PACKAGE"]["value"] == "True"
    assert variables["vendor_name"]["value"] == package.VENDOR
    assert tuple(variables["ASCEND_COMPUTE_UNIT"]["value"].split(";")) == package.FAMILIES


def test_folders_are_flat():
    """MindSpore's compiler copies the *.cpp and *.h of op_host and op_kernel, and nothing below them."""
    for folder in ("op_host", "op_kernel"):
        assert not [path for path in (PROJECT / folder).iterdir() if path.is_dir() and path.name != "__pycache__"]


compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


def _build(tmp_path, text: str, *options: str) -> str:
    (tmp_path / "main.cpp").write_text(text)
    include = [f"-I{PROJECT / folder}" for folder in ("op_host", "framework/onnx_plugin")]
    command = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", *include, *options, str(tmp_path / "main.cpp")]
    subprocess.run([*command, "-o", str(tmp_path / "main")], check=True)
    return str(tmp_path / "main")


def _compile(tmp_path, text: str, *arguments: str) -> list[str]:
    binary = _build(tmp_path, text)
    done = subprocess.run([binary, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@compiler
def test_tiling_header_is_cxx11(tmp_path):
    """CANN 8.x compiles op_host with -std=c++11."""
    code = """
    #include "neo_cell_make_tiling.h"
    #include <cstdio>
    #include <type_traits>
    static_assert(std::is_trivial<NeoCellTiling>::value && std::is_standard_layout<NeoCellTiling>::value, "copied");
    int main() { NeoCellProblem problem{}; NeoCellDevice device{8, 1 << 18, 7}; NeoCellTiling tiling;
                 std::puts(NeoCellMakeTiling(problem, device, tiling)); return sizeof(NeoCellTiling) > 2048; }
    """
    (reason,) = _compile(tmp_path, code)
    assert "x must be" in reason


READ = """
#include "onnx_attributes.h"
#include <cstdio>
int main(int, char** argv)
{
    std::map<std::string, neo_cell_onnx::Attribute> attributes;
    const std::string text = argv[1];
    if (!neo_cell_onnx::Reader(text).Read(attributes)) { std::puts("refused"); return 0; }
    for (const auto& entry : attributes) {
        std::printf("%s %lld %lld", entry.first.c_str(), (long long)entry.second.type, (long long)entry.second.i);
        for (const int64_t value : entry.second.ints) { std::printf(" %lld", (long long)value); }
        std::puts("");
    }
}
"""


@compiler
def test_plugin_reads_attributes_as_the_parser_writes_them(tmp_path):
    """CANN's parser passes the attributes of a node as JSON, indented by two, with keys in alphabetical order."""
    attributes = [
        {"ints": [24, 24, 48], "name": "channels", "type": 7},
        {"doc_string": 'a "quoted" {[,]} note', "i": 1, "name": "accumulate_fp32", "type": 2},
        {"f": "0.5", "floats": [1.5, -2.0], "name": "unused", "t": {"dims": [1, [2]], "raw_data": "]}"}, "type": 6},
        {"ints": [-1], "name": "output_size", "type": 7},
        # As the real parser writes them: a float as text, bytes escaped as in C, and no key for what is empty.
        {"f": "1.5", "name": "float", "type": 1},
        {"floats": [1.5, -2.0000000063421537e-30], "name": "floats", "type": 6},
        {"name": "text", "s": 'a \\" brace } and \\\\ back, \\303\\274 [1]', "type": 3},
        {"name": "texts", "strings": ["a", 'b "c" \u001b'], "type": 8},
        {"name": "tensor", "t": {"data_type": 1, "dims": [3], "raw_data": "\\000\\200?"}, "type": 4},
        {"name": "none", "type": 7},
    ]
    expected = ["accumulate_fp32 2 1", "channels 7 0 24 24 48", "float 1 0", "floats 6 0", "none 7 0"]
    expected += ["output_size 7 0 -1", "tensor 4 0", "text 3 0", "texts 8 0", "unused 6 0"]
    whole = json.dumps({"attribute": attributes}, indent=2)
    assert _compile(tmp_path, READ, whole) == expected
    run = str(tmp_path / "main")

    def read(text):
        done = subprocess.run([run, text], check=True, capture_output=True, text=True, timeout=10)
        return done.stdout.splitlines()

    assert read(json.dumps({"attribute": attributes})) == expected
    assert read('{"attribute": []}') == []
    # Cut off anywhere, it is rejected, and never read beyond its end.
    assert all(read(whole[:length]) == ["refused"] for length in range(0, len(whole) - 1, 7))
    assert read('{"other": []}') == read("") == read("[]") == ["refused"]


CASES = os.environ.get("NEONEXT_CASES")
# As much of CANN's two headers as the plugin needs; `Register` keeps the function that reads a node.
CANN_HEADERS = """
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>
namespace ge {
typedef uint32_t graphStatus;
const graphStatus GRAPH_SUCCESS = 0;
struct AscendString {
    AscendString(const char* text = nullptr) : text_(text) {}
    const char* GetString() const { return text_; }
    const char* text_;
};
struct Operator {
    const char* json = nullptr;
    graphStatus GetAttr(const char*, AscendString& text) const
    {
        text = AscendString(json);
        return json == nullptr ? 1 : GRAPH_SUCCESS;
    }
    void SetAttr(const char* name, const std::vector<int64_t>& values)
    {
        std::printf("%s [", name);
        for (size_t i = 0; i < values.size(); ++i) { std::printf(i ? ", %lld" : "%lld", (long long)values[i]); }
        std::puts("]");
    }
    void SetAttr(const char* name, int64_t value) { std::printf("%s %lld\\n", name, (long long)value); }
};
} // namespace ge
namespace domi {
typedef uint32_t Status;
const Status SUCCESS = 0, FAILED = 1;
enum FrameworkType { ONNX };
enum class ImplyType { TVM };
typedef Status (*Parse)(const ge::Operator&, ge::Operator&);
static Parse parse = nullptr;
struct Register {
    explicit Register(const char*) {}
    Register& FrameworkType(domi::FrameworkType) { return *this; }
    Register& OriginOpType(std::initializer_list<ge::AscendString>) { return *this; }
    Register& ParseParamsByOperatorFn(Parse function) { parse = function; return *this; }
    Register& ImplyType(domi::ImplyType) { return *this; }
};
} // namespace domi
#define REGISTER_CUSTOM_OP(name) static const Register registered = Register(name)
"""
CALL = """
#include "%s"
int main(int count, char** argv)
{
    ge::Operator from, to;
    from.json = count > 1 ? argv[1] : nullptr;
    return domi::parse(from, to) == domi::SUCCESS ? 0 : 9;
}
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The plugin, as a program that reads the attributes of one node and prints those that it sets."""
    folder = tmp_path_factory.mktemp("plugin")
    for name in ("graph/operator.h", "register/register.h"):
        (folder / name).parent.mkdir()
        (folder / name).write_text(CANN_HEADERS if name.startswith("graph") else '#include "graph/operator.h"\n')
    binary = _build(folder, CALL % (PROJECT / "framework/onnx_plugin/neo_cell_plugin.cc"), f"-I{folder}")
    return lambda *text: subprocess.run([binary, *text], capture_output=True, text=True, timeout=10)


def _set_by_plugin(attributes: dict) -> list[str]:
    given = {"output_size": [], "accumulate_fp32": 0, **attributes}
    return [f"{name} {given[name]}" for name in (*RUN_ATTRIBUTES, "output_size", "accumulate_fp32")]


@compiler
def test_plugin_copies_the_attributes_of_a_node(plugin):
    attributes = {name: [i, i + 1] for i, name in enumerate(RUN_ATTRIBUTES)}
    rows = [{"ints": values, "name": name, "type": 7} for name, values in attributes.items()]
    done = plugin(json.dumps({"attribute": rows}, indent=2))
    assert (done.returncode, done.stdout.splitlines()) == (0, _set_by_plugin(attributes))
    done = plugin(json.dumps({"attribute": rows[1:]}))
    assert done.returncode == 9 and done.stderr.startswith("[ERROR] ONNX node NeoCell: it needs the attribute channels")
    assert "it has no attributes" in plugin().stderr and "cannot be read: []" in plugin("[]").stderr


@compiler
@pytest.mark.skipif(not CASES, reason="needs NEONEXT_CASES")
def test_plugin_reads_what_the_real_parser_passed_to_it(plugin):
    """Texts that the graph engine's own parser made of NeoCell nodes, and of nodes with texts and tensors besides."""
    fixtures = sorted(Path(CASES, "ge").glob("fixture_*.json"))
    assert fixtures
    for fixture in fixtures:
        text = fixture.read_text().strip().removeprefix("JSON>>").removesuffix("<<")
        attributes = {row["name"]: row.get("ints", row.get("i")) for row in json.loads(text)["attribute"]}
        done = plugin(text)
        assert (done.returncode, done.stdout.splitlines()) == (0, _set_by_plugin(attributes)), fixture.name


def test_plugin_reads_the_node_that_the_exporter_writes():
    """The plugin reads every attribute of a node, by the type numbers of ONNX."""
    import onnx
    from onnx import helper

    reader = _source("framework/onnx_plugin/onnx_attributes.h")
    numbers = dict(re.findall(r"TYPE_(\w+) = (\d+)", reader))
    assert {name: int(value) for name, value in numbers.items()} == {
        kind: getattr(onnx.AttributeProto, kind) for kind in set(neocell_node.ATTRIBUTES.values())
    }
    from neonext_ms.ops import NeoCellSpec

    spec = NeoCellSpec([{"kernel": 4, "channels": 20, "shift": 1}])
    node = helper.make_node(neocell_node.OP_TYPE, ["x"], ["y"], **neocell_node.attributes(spec))
    assert set(RUN_ATTRIBUTES) <= {attribute.name for attribute in node.attribute} <= set(neocell_node.ATTRIBUTES)
