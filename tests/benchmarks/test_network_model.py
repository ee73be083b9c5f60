from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from simulator import needs_simulator

from neonext_ms.benchmarks import documents, networks
from neonext_ms.benchmarks.latency import blocks_command, calibrate, command, estimate, figures, network_tables
from neonext_ms.benchmarks.latency.cost import Demands, network_demands
from neonext_ms.benchmarks.latency.neonext import build
from neonext_ms.benchmarks.latency.network_model import DTYPES
from neonext_ms.benchmarks.latency.operators import BLOCKED, FRACTAL, neocell_spec, operators, padded_size
from neonext_ms.benchmarks.latency.parameters import BOUNDS, Parameters, fitted, stored
from neonext_ms.benchmarks.latency.reader import OnnxNode, read
from neonext_ms.benchmarks.latency.tasks import tasks
from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.export.onnx.neocell_node import attributes
from neonext_ms.models.registry import model_config
from neonext_ms.ops.soc import soc
from neonext_ms.ops.spec import NeoCellSpec

P3 = soc("Ascend310P3")
PAGE = Path(__file__).parents[2] / command.PAGE


def _model(nodes, shape=(2, 32, 8, 8), weights=(), batch=None):
    """Nodes from x to y; weights are names with shapes, without values."""
    dims = list(shape) if batch is None else [batch, *shape[1:]]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_empty_tensor_value_info("y")],
        [TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims) for name, dims in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def _node(op, inputs, output, **given):
    return helper.make_node(op, inputs, [output], name=f"{op}_{output}", **given)


CONV = _node("Conv", ["x", "w", "b"], "c", kernel_shape=[3, 3], pads=[1] * 4)
W = [("w", (48, 32, 3, 3)), ("b", (48,))]


def _made(model, **given):
    return tasks(read(model), **given)


def _main(capsys, *arguments):
    code = command.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_convolution_takes_its_activation_residual_and_norm():
    nodes = [
        CONV,
        _node("BatchNormalization", ["c", "b", "b", "b", "b"], "n"),
        _node("Relu", ["n"], "r"),
        _node("Conv", ["r", "w2", "b"], "d", kernel_shape=[1, 1]),
        _node("Add", ["d", "r"], "s"),
        _node("Relu", ["s"], "y"),
    ]
    made = _made(_model(nodes, weights=[*W, ("w2", (48, 48, 1, 1))]))
    fused = [task.operator.fused for task in made]
    assert fused[2:4] == [["Conv", "BatchNormalization", "Relu"], ["Conv", "Add", "Relu"]]
    # Cast and TransData of float32 images in front, TransData and Cast behind.
    assert [f[0] for f in fused] == ["Cast", "TransData", "Conv", "Conv", "TransData", "Cast"]
    assert len(made[3].reads) == 2
    split = [task.operator.fused for task in _made(_model(nodes, weights=[*W, ("w2", (48, 48, 1, 1))]), split=True)]
    assert ["Add", "Relu"] in split


def test_sizes_by_hand():
    (operator,) = operators(read(_model([_node("Conv", ["x", "w", "b"], "y", pads=[1] * 4)], weights=W)))
    assert operator.multiply_adds == 2 * 64 * 48 * 32 * 9
    assert (operator.product.rows, operator.product.columns, operator.product.depth) == (2 * 4, 3, 18)
    assert padded_size((2, 3, 5, 5), BLOCKED) == 2 * 16 * 25
    assert padded_size((2, 17, 40), FRACTAL) == 2 * 32 * 48


@pytest.mark.parametrize(
    "groups, number, columns, depth",
    [(32, 2, 1, 9), (4, 2, 1, 9), (2, 2, 1, 9), (1, 1, 2, 18)],
)
def test_groups_are_joined_until_blocks_are_full(groups, number, columns, depth):
    conv = _node("Conv", ["x", "w"], "y", group=groups, pads=[1] * 4)
    (operator,) = operators(read(_model([conv], weights=[("w", (32, 32 // groups, 3, 3))])))
    product = operator.product
    assert (product.number, product.columns, product.depth) == (number, columns, depth)
    assert operator.kind == ("depthwise" if groups == 32 else "conv")


def test_eight_bit_halves_depth_and_weights():
    conv = _node("Conv", ["x", "w", "b"], "y", pads=[1] * 4)
    half = _made(_model([conv], weights=W))[2]
    byte = _made(_model([conv], weights=W), int8=True)[2]
    assert byte.operator.product.depth * 2 == half.operator.product.depth
    assert byte.weights * 2 == half.weights and byte.operator.int8


def test_aipp_reads_bytes_and_small_channels():
    conv = _node("Conv", ["x", "w"], "y", pads=[3] * 4)
    model = _model([conv], (1, 3, 32, 32), [("w", (64, 3, 7, 7))])
    plain, small = _made(model), _made(model, aipp=True)
    assert [t.operator.op for t in small] == ["Conv", "TransData", "Cast"]
    assert plain[2].operator.product.depth == 49 and small[0].operator.product.depth == 13
    assert small[0].reads == [3 * 32 * 32]


def test_layer_norm_and_gelu_chains_become_one_operator():
    made = operators(read(networks.build("vit_s_16", batch=1, form="plain", seed=None)))
    ops = [operator.op for operator in made]
    assert ops.count("LayerNormalization") == 25 and ops.count("Gelu") == 12
    assert not {"Erf", "Pow", "Sqrt"} & set(ops)


@pytest.mark.parametrize("form", ["tanh", "npu"])
def test_the_other_forms_of_gelu_are_found(form):
    from neonext_ms.benchmarks.latency.neonext import _folded
    from neonext_ms.export.lower import lower
    from neonext_ms.export.onnx.emitter import skeleton
    from neonext_ms.export.onnx.format import CANN

    format = CANN.with_(gelu=form)
    model = skeleton(lower(_folded(model_config("neonext_t.released_224").architecture, (224, 224)), format), 1, format)
    ops = [operator.op for operator in operators(read(model))]
    assert ops.count("Gelu") == 18 and "Tanh" not in ops


def test_elementwise_chains_are_one_task_and_relu_is_none():
    from neonext_ms.benchmarks.latency.neonext import build, build_convnext

    made = tasks(read(build("t", 224, 1, "MatMul", "gelu", "fast")))
    joined = [task for task in made if task.operator.op == "FastGelu"]
    assert len(joined) == 18 and joined[0].operator.layout == "" and joined[0].operator.known
    # It reads and writes the hidden activations in the layout of the convolutions: 384 channels at 56x56.
    assert joined[0].reads == [joined[0].written] == [2 * 384 * 56 * 56]
    others = {task.operator.op for task in made} - {"FastGelu"}
    assert others == {"Cast", "TransData", "Conv", "MatMul", "GlobalAveragePool", "LayerNormalization", "Gemm"}
    for model, op in (
        (build("t", 224, 1, "MatMul", "relu"), "Relu"),
        (build_convnext(1, "relu"), "Relu"),
        (build("t", 224, 1, "MatMul", "hardswish"), "AddClipMulDiv"),
    ):
        made = tasks(read(model))
        assert sum(task.operator.fused == ["Conv", op] for task in made) == 18
        assert not any(task.operator.op == op for task in made)
    # Where vector and cube are separate cores only ReLU joins.
    made = tasks(read(build("t", 224, 1, "MatMul", "hardswish")), split=True)
    assert sum(task.operator.op == "AddClipMulDiv" for task in made) == 18


def test_eight_bit_stays_in_integers_through_relu_alone():
    from neonext_ms.benchmarks.latency.neonext import build

    relu = read(build("t", 224, 1, "MatMul", "relu", int8=True))
    requantized = ["Conv", "AscendRequant"]
    assert sum(task.operator.fused == requantized for task in tasks(relu, requant=True)) == 18
    assert not any("AscendRequant" in task.operator.fused for task in tasks(relu))
    for activation in ("gelu", "hardswish"):
        made = tasks(read(build("t", 224, 1, "MatMul", activation, int8=True)), requant=True)
        assert not any(requantized == task.operator.fused for task in made)


def test_a_channel_first_layer_norm_stays_a_chain():
    made = operators(read(networks.build("convnext_t", batch=1, form="plain", seed=None)))
    assert sum(operator.op == "Sqrt" for operator in made) == 4


def test_layouts_change_where_neighbours_disagree():
    nodes = [
        CONV,
        _node("Transpose", ["c"], "t", perm=[0, 2, 3, 1]),
        _node("MatMul", ["t", "m"], "p"),
        _node("Relu", ["p"], "y"),
    ]
    made = _made(_model(nodes, weights=[*W, ("m", (48, 64))]))
    assert [t.operator.op for t in made] == [
        *("Cast", "TransData", "Conv", "TransData", "Transpose", "TransData", "MatMul", "TransData", "Cast")
    ]
    assert made[6].operator.fused == ["MatMul", "Relu"]


def test_a_concat_of_whole_blocks_costs_nothing_behind_convolutions():
    nodes = [
        CONV,
        _node("Conv", ["x", "w"], "d", kernel_shape=[3, 3], pads=[1] * 4),
        _node("Concat", ["c", "d"], "y", axis=1),
    ]
    assert "Concat" not in [t.operator.op for t in _made(_model(nodes, weights=W))]
    odd = [("w", (40, 32, 3, 3)), ("b", (40,))]
    made = _made(_model(nodes, weights=odd))
    assert next(t for t in made if t.operator.op == "Concat").operator.kind == "layout"


def test_ascend_quant_makes_eight_bit():
    nodes = [
        _node("AscendQuant", ["x"], "q", scale=1.0),
        _node("Conv", ["q", "w"], "c", pads=[1] * 4),
        _node("AscendDequant", ["c", "s"], "y"),
    ]
    made = _made(_model(nodes, weights=[("w", (48, 32, 3, 3)), ("s", (48,))]))
    conv = next(t for t in made if t.operator.op == "Conv")
    assert conv.operator.int8 and conv.operator.fused == ["Conv", "AscendDequant"]


def test_an_unknown_operator_is_memory_bound_and_said_so(capsys, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(_model([_node("Sin", ["x"], "y")], (8, 64, 128, 128)), path)
    code, out, err = _main(capsys, str(path), "--json", "--nodes")
    made = json.loads(out)
    assert code == 0 and made["unknown_ops"] == ["Sin"] and "not known" in err and "Sin" in err
    node = next(n for n in made["nodes"] if n["op"] == "Sin")
    assert node["predicted_bound"] == "memory" and not node["known"]


def test_more_work_never_takes_less_time():
    rates = {}
    for batch in (1, 2, 8, 32):
        model = networks.build("resnet18", batch=batch, form="plain", seed=None)
        rates[batch] = estimate(model, "Ascend310P3").predicted_us
    assert sorted(rates.values()) == list(rates.values())
    small = networks.build("resnet18", batch=8, form="plain", seed=None)
    assert estimate(small, "Ascend310P3").predicted_us < estimate(small, "Ascend310B1").predicted_us
    assert estimate(small, "Ascend310P3", dtype="int8").predicted_us < estimate(small, "Ascend310P3").predicted_us


def test_a_task_takes_launch_longest_and_a_part_of_the_rest():
    model = networks.build("resnet18", batch=8, form="plain", seed=None)
    made = estimate(model, "Ascend310P3")
    p = fitted()
    assert made.predicted_us == pytest.approx(p.run_us + sum(task.predicted_us for task in made.tasks))
    for node in made.tasks:
        units = [node.predicted_units_us[name] for name in ("cube", "vector", "memory")]
        longest = max(units)
        assert node.predicted_us == pytest.approx(p.launch_us + longest + p.serial_share * (sum(units) - longest))
    assert made.predicted_bounds_us.keys() == {"cube", "vector", "memory", "launch"}


def test_a_value_that_does_not_fit_the_cache_comes_from_memory():
    def memory(batch):
        model = _model([_node("Relu", ["x"], "y")], (batch, 64, 128, 128))
        _, demands = network_demands(read(model), P3)
        units, _ = Demands(demands, P3).times(Parameters(l2_held=1.0))
        return units[2, 1] / batch

    assert memory(32) > 3 * memory(4)


@needs_simulator
def test_neocell_nodes_are_known():
    spec = model_config("neonext_t.released_224").architecture.stage_spec(0)
    assert neocell_spec(OnnxNode("n", "NeoCell", (), (), attributes(spec))) == spec
    # Fewer channels than shifts.
    few = NeoCellSpec([{"kernel": 4, "channels": 2, "shift": 1}, {"kernel": 7, "channels": 2, "shift": 2}])
    found = neocell_spec(OnnxNode("n", "NeoCell", (), (), attributes(few)))
    assert attributes(found) == attributes(few) and len(found.groups) == 2
    matmul, custom = (estimate(build("t", 224, 1, form), "Ascend310P3") for form in ("MatMul", "AscendC"))
    assert sum(n.kind == "neocell" for n in custom.tasks) == 18
    assert sum(n.kind == "batched matmul" for n in matmul.tasks) == 36
    assert custom.predicted_us < matmul.predicted_us


@needs_simulator
def test_a_neonext_by_name_is_what_the_tables_have(capsys):
    arguments = ["neonext_t.relu", "--neocell", "custom", "--quantize", "int8", "--batch", "8", "--json"]
    assert command.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["predicted_us"] == estimate(build("t", 224, 8, "AscendC", "relu", int8=True), "Ascend310P3").predicted_us
    )
    for wrong, problem in (
        (["neonext_t.relu", "--gelu", "fast"], "is relu. Leave out --gelu"),
        (["resnet50", "--neocell", "custom"], "for a NeoNeXt by name"),
        (["neonext_t", "--quantize", "int8", "--dtype", "int8"], "wholly in 8 bit"),
        (["neonext_t", "--image-size", "63"], "multiples of 4"),
    ):
        assert command.main(wrong) == 2
        assert problem in capsys.readouterr().err


def test_runs_that_no_neocell_has_are_rejected():
    given = attributes(NeoCellSpec({"kernel": 4, "channels": 16, "shift": 1}))
    with pytest.raises(InputError, match="n: no NeoCell has these runs"):
        neocell_spec(OnnxNode("n", "NeoCell", (), (), {**given, "shift_a": [3, 2, 1, 0]}))
    with pytest.raises(InputError, match="n: attribute shift_b is missing"):
        neocell_spec(OnnxNode("n", "NeoCell", (), (), {k: v for k, v in given.items() if k != "shift_b"}))


def test_a_dynamic_batch_is_set():
    model = networks.build("vit_s_16", batch=None, form="plain", seed=None)
    assert read(model, 3).shapes["logits"] == (3, 1000)
    with pytest.raises(InputError, match=r"'input' has the dynamic axis 0 \(batch\). Give its batch"):
        read(model)
    with pytest.raises(InputError, match="fixed to batch 1, not 8"):
        read(networks.build("resnet18", batch=1, form="plain", seed=None), 8)


def test_a_shape_that_is_not_known_names_the_node():
    model = _model([_node("NonZero", ["x"], "z"), _node("Relu", ["z"], "y")])
    with pytest.raises(InputError, match="node 'NonZero_z' \\(NonZero\\) is not known"):
        read(model)
    with pytest.raises(InputError, match=r"dynamic axis 2 \(h\). Export it with a fixed size"):
        read(_model([_node("Relu", ["x"], "y")], (1, 3, "h", 8)), 1)


def test_a_branch_depends_on_values_that_it_does_not_list():
    branch = helper.make_graph([_node("Relu", ["x"], "r")], "b", [], [helper.make_empty_tensor_value_info("r")])
    chosen = helper.make_node("If", ["c"], ["z"], name="If_z", then_branch=branch, else_branch=branch)
    model = _model([chosen, _node("Relu", ["z"], "y")])
    model.graph.initializer.append(numpy_helper.from_array(np.bool_(True), "c"))
    assert [node.op for node in read(model).nodes] == ["If", "Relu"]


def test_an_input_can_be_an_output():
    model = _model([_node("Relu", ["x"], "y")], batch="n")
    model.graph.output.append(model.graph.input[0])
    assert read(model, 3).shapes["y"] == (3, 32, 8, 8)


@pytest.mark.parametrize(
    "arguments, expected, message",
    [
        (["{file}"], 1, "not a valid ONNX file"),
        (["missing.onnx"], 1, "no such file"),
        (["resnet18", "--soc", "Ascend310P4"], 2, "did you mean Ascend310P"),
        (["--table", "rowz"], 2, "did you mean rows"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, arguments, expected, message):
    file = tmp_path / "text.onnx"
    file.write_text("not a model at all")
    code, out, err = _main(capsys, *(a.format(file=file) for a in arguments))
    assert code == expected and not out and message in err and err.count("\n") == 1


def test_without_a_model_it_is_a_usage_error(capsys):
    assert _main(capsys)[0] == 2


def test_the_command_offers_every_dtype(capsys):
    assert all(dtype in command.build_parser().format_help() for dtype in DTYPES)


@needs_simulator
def test_blocks_is_a_command_of_its_own(capsys):
    code, out, _ = _main(capsys, "blocks", "buffers", "--models", "t", "--image-size", "224", "--json")
    assert code == 0 and len(json.loads(out)) == 8


@pytest.mark.parametrize("arguments", [["resnet18", "--batch", "0"], ["resnet18", "--image-size", "-1"]])
def test_a_wrong_count_is_a_usage_error(arguments):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)


def test_the_command_says_predicted_and_its_range(capsys):
    code, out, _ = _main(capsys, "resnet18", "--batch", "8", "--nodes")
    assert code == 0 and "predicted (device model, not measured)" in out and "leave-one-network-out" in out
    low, high = network_tables.band()
    assert 0.5 <= low < 1 < high <= 2


def test_figures_are_read(tmp_path):
    made = figures.read()
    assert any(f.model == "ConvNeXt-T" and f.batch == 8 and f.images_per_second == 511 for f in made)
    assert (
        sum(f.int8 for f in made) == 13
        and sum(f.int8 and not f.uncertain for f in made) == 7
        and {f.soc for f in made} == {"Ascend310P3", "Ascend310B1"}
    )
    path = tmp_path / "rows.csv"
    head = ",".join(figures.COLUMNS)
    for row, message in (
        ("ResNet-18,224,fp16,310P3,6,8-100,s", "line 2: '8-100': expected batch:images"),
        ("Nothing,224,fp16,310P3,6,8:100,s", "line 2: no network is known for 'Nothing'"),
        ("ResNet-18,224,fp8,310P3,6,8:100,s", "precision 'fp8'"),
        ("ResNet-18,224", "line 2: expected 7 fields"),
    ):
        path.write_text(f"{head}\n{row}\n")
        with pytest.raises(InputError, match=message):
            figures.read(path)


@pytest.fixture(scope="module")
def rows():
    return calibrate.measured_rows(figure for figure in figures.read() if not figure.uncertain)


def test_fitting_again_gives_the_stored_parameters(rows):
    again = calibrate.fit(rows)
    for name in BOUNDS:
        # What the rows hardly determine may move further.
        assert np.log(getattr(again, name) / getattr(fitted(), name)) == pytest.approx(0, abs=0.25), name


def test_errors_hold(rows):
    made = stored()["errors"]
    ratios = [row.ratio(fitted()) for row in rows]
    now = calibrate.error_factors(ratios)
    assert now == pytest.approx(made["fitted"], rel=0.1)
    assert now["median"] <= 1.2 and now["worst"] <= 2.0 and made["one network left out"]["worst"] <= 2.1
    assert [round(ratio, 3) for ratio in sorted(ratios)] == pytest.approx(
        sorted(row["fitted_ratio"] for row in stored()["rows"]), abs=0.2
    )
    # Rows that the parameters were not fitted to.
    given, others = calibrate.fixed_split(rows)
    assert len(others) > 90 and not {r.figure.model for r in given} & {r.figure.model for r in others}
    parameters = calibrate.fit(given)
    away = calibrate.error_factors([row.ratio(parameters) for row in others])
    assert away["median"] <= 1.3 and away["worst"] <= 2.0
    assert made["one network left out"]["median"] <= 1.3


TABLES = documents.tables_of(PAGE.read_text(encoding="utf-8"), command.COMMAND)


def test_the_page_has_every_table():
    assert {f"--table {name}" for name in network_tables.TABLES} < {arguments for arguments, _ in TABLES}
    assert {f"blocks {name}" for name in blocks_command.TABLES} == {
        " ".join(arguments.split()[:2]) for arguments, _ in TABLES if arguments.startswith("blocks")
    }


QUICK = [(arguments, printed) for arguments, printed in TABLES if arguments != "--table neonext"]


@pytest.mark.parametrize(("arguments", "printed"), QUICK, ids=[arguments for arguments, _ in QUICK])
def test_a_table_of_the_page_is_what_the_command_prints(arguments, printed):
    try:
        assert command.printed_table(arguments.split()) == printed, "run: neonext-bench estimate --update"
    except ToolchainError as error:
        pytest.skip(f"no simulator here: {error}")


@needs_simulator
def test_the_predictions_of_the_page_are_those_of_the_model():
    """Only those of T at 224 on one device: all of them take minutes."""

    def rows(text):
        return [[cell.strip() for cell in line.split("|")[1:6]] for line in text.splitlines() if line.startswith("| T")]

    small = rows(network_tables.neonext_table(("t",), (224,), ("Ascend310P3",)))
    assert small == rows(dict(TABLES)["--table neonext"])[:2]


def test_a_page_is_updated_in_place(tmp_path):
    line = "    neonext-bench estimate blocks buffers --models t --image-size 224 --soc Ascend310P3"
    page = tmp_path / "page.md"
    page.write_text(f"# One\n\n{line}\n\nold\n\n<!-- end of the table -->\n\nold\n", encoding="utf-8")
    assert documents.updated(page, command.COMMAND, command.printed_table).endswith("1 of 1 tables changed")
    assert documents.updated(page, command.COMMAND, command.printed_table).endswith("0 of 1 tables changed")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# One\n\n{line}\n\nAscend310P3") and text.endswith("<!-- end of the table -->\n\nold\n")
    # A file without tables is not touched, and no picture drawn beside it.
    (tmp_path / "other.json").write_text("{}")
    assert command.main(["--update", str(tmp_path / "other.json")]) == 1 and len(os.listdir(tmp_path)) == 2
    for wrong in (["--table", ""], ["resnet18", "--roofline", "model.onnx"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(wrong)
    with pytest.raises(InputError, match=r"none\.md"):
        documents.updated(tmp_path / "none.md", command.COMMAND, command.printed_table)
    page.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not a UTF-8 text file"):
        documents.updated(page, command.COMMAND, command.printed_table)
    with pytest.raises(InputError, match="not a table"):
        command.printed_table(["resnet18"])


def test_the_roofline_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from neonext_ms.benchmarks.latency.roofline import draw

    model = networks.build("mobilenet_v1", batch=1, form="plain", seed=None)
    draw({"MobileNet-v1": estimate(model, "Ascend310P3")}, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_graph_is_an_input_error(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[1, 4] x) => (float[1, 4] y) <float[4] w = {1, 2, 3, 4}> '
        "{ y = Add(x, w) }"
    )
    model.graph.initializer[0].ClearField("float_data")
    model.graph.initializer[0].raw_data = b"123"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"'w' of shape \[4\] has 3 entries"):
        read(tmp_path / "m.onnx")
