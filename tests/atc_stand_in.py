"""A stand-in for ATC whose OM files compute: the ONNX model is inside, for `acl_stand_in` to run in onnxruntime.

fp16 is emulated as `neonext-compare` evaluates it: weights and the result of every operator are rounded to float16.

Faults, in the JSON of STAND_IN_FAULTS: `{"atc": {OUTPUT: FAULT}}`, where OUTPUT is a part of the name that ATC was
asked to write, and FAULT is `no-kernels`, `hang`, `crash`, `broken-file`, or `wrong:NODE`: the file computes wrongly
from the operator NODE on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
import om_stand_in

FAULTS = json.loads(os.environ.get("STAND_IN_FAULTS") or "{}")


def fail(code: str, text: str) -> None:
    print("ATC run failed, Please check the detail log, Try 'atc --help' for more information")
    print(f"[PID: 7] 2026-01-02-03:04:05.678.901 Failure({code}): {text}")
    sys.exit(1)


def halves(model):
    """Return a float32 model whose weights and results are rounded to float16."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    from neonext_ms.export.onnx.runnable import in_float32

    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            with np.errstate(over="ignore"):
                array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return in_float32(model)


def spoil(model, name: str):
    """Return the model with the result of an operator changed by half."""
    from onnx import TensorProto, helper

    node = next(node for node in model.graph.node if name in (node.name, node.output[0]))
    right, factor = f"{node.output[0]}.right", helper.make_tensor("fault", TensorProto.FLOAT, [], [1.5])
    place = list(model.graph.node).index(node) + 1
    wrong = helper.make_node("Mul", [right, "fault"], [node.output[0]], name="fault")
    model.graph.node[place - 1].output[0] = right
    model.graph.initializer.append(factor)
    model.graph.node.insert(place, wrong)
    return model


def compiled(given: dict[str, str], fault: str) -> bytes:
    """Return the content of the OM file."""
    import onnx

    from neonext_ms.export.onnx.neocell_node import is_neocell
    from neonext_ms.export.onnx.runnable import expand_custom

    model = onnx.load(given["model"])
    inputs, batches = om_stand_in.inputs_of(given)
    batch = inputs[0][2][0]
    nodes = [{"name": n.name, "type": n.op_type, "output": n.output[0]} for n in model.graph.node]
    if any(is_neocell(node) for node in model.graph.node):
        if not os.environ.get("ASCEND_CUSTOM_OPP_PATH"):
            fail("E13010", "No operator plugin is registered for Op: NeoCell, optype: ai.onnx::13::NeoCell.")
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = max(batches or [batch])
        model = expand_custom(model)
    if fault.startswith("wrong:"):
        model = spoil(model, fault.removeprefix("wrong:"))
    if given["precision_mode_v2"] == "fp16":
        model = halves(model)
    aipp = Path(given["insert_op_conf"]).read_text() if "insert_op_conf" in given else ""
    outputs = []
    for value in model.graph.output:
        sides = [side.dim_value for side in value.type.tensor_type.shape.dim]
        outputs.append((value.name, "float32", [batch, *sides[1:]]))
    note = {
        "argv": sys.argv[1:],
        "inputs": inputs[:1],
        "outputs": outputs,
        "batches": batches,
        "aipp": aipp,
        "nodes": nodes,
    }
    parts = [
        (om_stand_in.INOUT, om_stand_in.inout_info(inputs, outputs, batches)),
        (om_stand_in.MODEL_DEF, om_stand_in.model_def(given["output"], given["soc_version"], inputs, outputs)),
        (om_stand_in.WEIGHTS, model.SerializeToString()),
        (om_stand_in.TASKS, json.dumps(note).encode()),
    ]
    return om_stand_in.om_bytes([parts], given["output"])


def main() -> None:
    print("ATC start working now, please wait for a moment.")
    given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
    fault = next((fault for part, fault in FAULTS.get("atc", {}).items() if part in given["output"]), "")
    if fault == "no-kernels":
        fail("EZ3003", "No supported Ops kernel and engine are found for [stem.conv], optype [Conv2D].")
    if fault == "hang":
        time.sleep(600)
    if fault == "crash":
        os.abort()
    content = compiled(given, fault)
    Path(given["output"] + ".om").write_bytes(content[: len(content) // 2] if fault == "broken-file" else content)
    print("ATC run success, welcome to the next use.")


if __name__ == "__main__":
    main()
