"""A table of what MindSpore Lite makes of each form of an ONNX file.

`python -m neonext_ms.benchmarks.lite_forms` prints the tables of docs/lite.md. Without MindSpore Lite it ends with exit
code 3.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.checkpoint.options import add_weights_options
from neonext_ms.common.cli import Parser, parse_shifts, parse_size, run
from neonext_ms.common.errors import InputError
from neonext_ms.common.files import private_folder
from neonext_ms.export import verify
from neonext_ms.export.compare import parity
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import DeployGraph, original_graph
from neonext_ms.export.lite import check_installed
from neonext_ms.export.lower import lower
from neonext_ms.export.onnx import emitter
from neonext_ms.export.onnx.format import CANN, LITE, MAX_OPSET, MIN_OPSET, Format
from neonext_ms.export.source import Source
from neonext_ms.lite.session import Session
from neonext_ms.runtime.base import Settings
from neonext_ms.runtime.lite import Lite

DESCRIPTION = "Convert and run each form of an ONNX file in MindSpore Lite, and compare it with the original network."
_SAMPLES = 4
# Forms by name, and whether the converter stores the weights in float16.
FORMS: Sequence[tuple[str, Format, bool]] = (
    *((f"opset {opset}", Format(opset), False) for opset in range(MIN_OPSET, MAX_OPSET + 1)),
    ("opset 20, GELU and LayerNormalization as chains", Format(20, chains=True), False),
    ("opset 13, as `--target om` (the chain of GELU)", CANN, False),
    ("opset 13, `--gelu tanh`", Format(13, gelu="tanh"), False),
    ("opset 13, `--neocell padded`", Format(13, neocell="padded"), False),
    ("opset 13, `--neocell custom`", Format(13, neocell="custom"), False),
    ("ONNX file in float16, opset 13", Format(13, dtype="float16"), False),
    ("ONNX file in float16, opset 20", Format(20, dtype="float16"), False),
    ("ONNX file in float16, opset 13, `--half-io`", Format(13, dtype="float16", float32_io=False), False),
    ("ONNX file in float16, opset 20, `--half-io`", Format(20, dtype="float16", float32_io=False), False),
    ("`--target lite`", LITE, False),
    ("`--target lite --dtype float16`", LITE, True),
)


class Network:
    """A network to write in all forms, with the outputs of its original graph.

    Args:
        source: the network.
        image_size: height and width of the input.
        features_only: end at the four stages.
        folder: folder for temporary files.
    """

    def __init__(self, source: Source, image_size: tuple[int, int], features_only: bool, folder: Path):
        original = original_graph(source.architecture, source.arrays, image_size, features_only)
        self._folded: DeployGraph = fold(original)[0]
        self._samples, self._folder = parity.noise(_SAMPLES, image_size, 0), folder
        self._expected = verify.original_outputs(original, self._samples, folder)

    def deviation(self, format: Format, batch: int | None, half_weights: bool) -> str:
        """Return the relative L2 of a form in MindSpore Lite, or what went wrong."""
        source, output = self._folder / "form.onnx", self._folder / "form.ms"
        emitter.save(lower(self._folded, format), source, batch, format)
        try:
            _convert(source, output, half_weights)
            outputs = verify.file_outputs(output, format, self._samples, batch)
        except InputError as error:
            return _gist(error)
        # Whether it agrees is for the reader to see.
        return f"{parity.compare(self._expected, outputs, 1.0).relative_l2:.1e}"


def _convert(source: Path, output: Path, half_weights: bool = False) -> None:
    session = Session(output.name)
    try:
        session.convert(source, output, half_weights)
    finally:
        session.close()


def _gist(error: InputError) -> str:
    """Return the reason of an error of a `Session`."""
    text = str(error)
    if end := re.search(r"ended (by signal \w+|with exit code \d+) when it tried to (\w+)", text):
        return f"{end[2]}: ends {end[1]}"
    reason = re.search(r"cannot (\w+) .*?\((.*)\)", text)
    return f"{reason[1]}: {reason[2]}" if reason else text


def form_rows(source: Source, image_size: tuple[int, int], folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield a row for each form: its name, and the deviations with a dynamic batch, a fixed one, and stage outputs."""
    logits, stages = (Network(source, image_size, features, folder) for features in (False, True))
    for name, format, half in FORMS:
        cells = [
            network.deviation(format, batch, half) for network, batch in ((logits, None), (logits, 2), (stages, 2))
        ]
        yield name, *cells


_EPSILON, _CHANNELS = 1e-6, 768


# Forms of LayerNormalization: one node, a chain that the converter fuses, and that of `--target lite`.
_LAYER_NORMS = ("node", "Pow", "Mul")


def _layer_norm(form: str) -> list[onnx.NodeProto]:
    """Return the nodes of a LayerNormalization of `input` / 2 to `output`."""
    # The converter fuses a chain of a computed value only.
    first = helper.make_node("Mul", ["input", "half"], ["x"])
    if form == "node":
        names = ["x", "scale", "shift"]
        return [first, helper.make_node("LayerNormalization", names, ["output"], axis=-1, epsilon=_EPSILON)]
    steps: tuple[tuple[str, list[str], str, dict], ...] = (
        ("ReduceMean", ["x"], "mean", {"axes": [-1]}),
        ("Sub", ["x", "mean"], "centred", {}),
        (form, ["centred", "two" if form == "Pow" else "centred"], "square", {}),
        ("ReduceMean", ["square"], "variance", {"axes": [-1]}),
        ("Add", ["variance", "epsilon"], "stable", {}),
        ("Sqrt", ["stable"], "deviation", {}),
        ("Div", ["centred", "deviation"], "quotient", {}),
        ("Mul", ["quotient", "scale"], "scaled", {}),
        ("Add", ["scaled", "shift"], "output", {}),
    )
    return [first, *(helper.make_node(kind, inputs, [name], **values) for kind, inputs, name, values in steps)]


def _normalized(rows: np.ndarray, constants: dict[str, np.ndarray], form: str, folder: Path) -> np.ndarray:
    """Return what MindSpore Lite computes for float32 rows."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, rows.shape) for name in ("input", "output")]
    nodes = _layer_norm(form)
    used = {name for node in nodes for name in node.input}
    values = [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used]
    graph = helper.make_graph(nodes, "layer_norm", info[:1], info[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "node.onnx")
    _convert(folder / "node.onnx", folder / "node.ms")
    with Lite() as runtime:
        runtime.load(str(folder / "node.ms"), Settings())
        return runtime.run([rows])[0]


def layer_norm_rows(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield a row for each kind of input: the relative L2 of the forms of LayerNormalization."""
    generator = np.random.default_rng(0)
    constants = {name: generator.standard_normal(_CHANNELS).astype(np.float32) for name in ("scale", "shift")}
    scalars = {"half": 0.5, "two": 2, "epsilon": _EPSILON}
    constants |= {name: np.array(value, np.float32) for name, value in scalars.items()}
    for mean, deviation in ((0, 1.0), (0, 1e-3), (10, 1.0), (100, 1.0), (1, 1e-3)):
        rows = (mean + deviation * generator.standard_normal((2, _CHANNELS))).astype(np.float32)
        centred = rows.astype(np.float64) - rows.mean(axis=1, keepdims=True, dtype=np.float64)
        quotient = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + _EPSILON)
        expected = quotient * constants["scale"] + constants["shift"]
        outputs = [_normalized(2 * rows, constants, form, folder) for form in _LAYER_NORMS]
        deviations = [np.linalg.norm(output - expected) / np.linalg.norm(expected) for output in outputs]
        yield f"{mean}", f"{deviation:g}", *(f"{value:.1e}" for value in deviations)


def _print_table(head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.lite_forms", description=DESCRIPTION)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="network to write in all forms")
    parser.add_argument("--shifts", type=parse_shifts, metavar="A,B,C,D", help="NeoCell shifts of the four stages")
    add_weights_options(parser.add_argument)
    parser.add_argument("--image-size", type=parse_size, required=True, metavar="SIZE", help="such as 64 or 256x320")
    args = parser.parse_args(argv)
    check_installed()
    source = Source.from_checkpoint(args.checkpoint, args.shifts, args.ema, args.key, args.activation)
    folder = private_folder()
    _print_table(
        ("ONNX file", "logits, dynamic batch", "logits, batch 2", "stage outputs, batch 2"),
        form_rows(source, args.image_size, folder),
    )
    print()
    _print_table(("mean", "deviation", "one node", "chain with Pow", "chain with Mul"), layer_norm_rows(folder))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and return the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
