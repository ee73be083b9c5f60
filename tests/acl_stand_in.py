"""A recording stand-in for pyACL, by CANN's documentation: it keeps device memory, checks order, sizes and ownership.

`violations` collects what a device would not forgive; `calls` is every call by name, in order. A model is a JSON file:
{"inputs": [{"name", "dims", "dtype"}], "outputs": [...], "batches": [1, 8]}; dims[0] is -1 where there are batches.
The outputs repeat the sum of each image. A model that `atc_stand_in` wrote is an OM file, and its outputs are those of
the ONNX model in it.

Faults of such a model, in the JSON of STAND_IN_FAULTS: `{"acl": {PART: FAULT}}`, where PART is a part of its path and
FAULT is `hang`, `crash` (a signal), or `memory` (the device has none left). `{"soc": NAME}` is another device.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from om_stand_in import TASKS, WEIGHTS, partition

CODES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "uint8": 4}
BAD_ARGUMENT, NOT_INITIALISED, TWICE, NO_CONTEXT = 100000, 100001, 100002, 107002
DYNAMIC = "ascend_mbatch_shape_data"
OUT_OF_MEMORY = 207001
FAULTS = json.loads(os.environ.get("STAND_IN_FAULTS") or "{}")


def open_om(path: str) -> dict:
    """Return what a model is, from an OM file with an ONNX model inside."""
    import onnx

    content = Path(path).read_bytes()
    note = json.loads(partition(content, TASKS))
    model = onnx.load_from_string(partition(content, WEIGHTS))
    sides = {
        side: [{"name": name, "dims": dims, "dtype": dtype} for name, dtype, dims in note[side]]
        for side in ("inputs", "outputs")
    }
    fault = next((fault for part, fault in FAULTS.get("acl", {}).items() if part in path), "")
    return {**sides, "batches": note["batches"], "note": note, "onnx": model, "fault": fault, "name": Path(path).stem}


def run_onnx(model: dict, images: np.ndarray, extra=()) -> list[np.ndarray]:
    """Return the outputs of the ONNX model in an OM file, and the values `extra` after them."""
    import onnx
    import onnxruntime as ort

    from aipp_stand_in import emulate

    if model["note"]["aipp"]:
        images = emulate(model["note"]["aipp"], images)
    sessions = model.setdefault("sessions", {})
    if extra not in sessions:
        own = list(model["onnx"].graph.output)
        model["onnx"].graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        options = ort.SessionOptions()
        # Pairs of casts that round would be removed.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        sessions[extra] = ort.InferenceSession(model["onnx"].SerializeToString(), options)
        del model["onnx"].graph.output[:]
        model["onnx"].graph.output.extend(own)
    session = sessions[extra]
    return session.run(None, {session.get_inputs()[0].name: images})


class StandIn(SimpleNamespace):
    """The module `acl`. `fail` maps the name of a call to the code that it shall return."""

    def __init__(self, fail=None):
        super().__init__()
        self.__file__ = "stand-in"
        self.STAND_IN = True
        self.fail = dict(fail or {})
        self.calls: list[str] = []
        self.violations: list[str] = []
        self._numbers = itertools.count(1000)
        self._live: dict[str, dict[int, object]] = {}
        self._state = {"init": 0, "device": None, "finalized": False}
        self.rt, self.mdl = SimpleNamespace(), SimpleNamespace()
        for name in dir(self):
            for prefix, place in (("_rt_", self.rt), ("_mdl_", self.mdl), ("_acl_", self)):
                if name.startswith(prefix):
                    setattr(place, name.removeprefix(prefix), self._recorded(name, prefix, getattr(self, name)))

    def _recorded(self, name, prefix, call):
        full = {"_rt_": "acl.rt.", "_mdl_": "acl.mdl.", "_acl_": "acl."}[prefix] + name.removeprefix(prefix)

        def recorded(*arguments):
            self.calls.append(full)
            if full in self.fail:
                return self._failure(full, self.fail[full])
            if full != "acl.init" and not self._state["init"]:
                self.violations.append(f"{full} before acl.init")
            return call(*arguments)

        return recorded

    @staticmethod
    def _failure(name, code):
        if name in ("acl.mdl.create_desc", "acl.mdl.create_dataset", "acl.create_data_buffer"):
            return 0
        pairs = ("malloc", "load_from_file", "create_context", "add_dataset_buffer", "get_input_dims")
        pairs += ("get_output_dims", "get_dynamic_batch", "get_input_index_by_name")
        return (None, code) if name.endswith(pairs) else code

    @property
    def live(self) -> dict[str, int]:
        """Return the resources that were not released, by kind."""
        found = {kind: len(things) for kind, things in self._live.items() if things}
        if self._state["init"]:
            found["init"] = 1
        if self._state["device"] is not None:
            found["device"] = 1
        return found

    def _new(self, kind, thing):
        number = next(self._numbers)
        self._live.setdefault(kind, {})[number] = thing
        return number

    def _get(self, kind, number):
        if number not in self._live.get(kind, {}):
            self.violations.append(f"{kind} {number} is not there")
            return None
        return self._live[kind][number]

    def _drop(self, kind, number):
        if self._get(kind, number) is None:
            return BAD_ARGUMENT
        del self._live[kind][number]
        return 0

    # acl

    def _acl_init(self, config=None):
        self._dump = json.loads(Path(config).read_text()).get("dump") if config else None
        if self._state["init"] or self._state["finalized"]:
            self.violations.append("acl.init twice in a process")
            return TWICE
        self._state["init"] = 1
        return 0

    def _acl_get_soc_name(self):
        return FAULTS.get("soc", "Ascend310P3")

    def _acl_finalize(self):
        if self._state["device"] is not None:
            self.violations.append("acl.finalize before reset_device")
        self._state.update(init=0, finalized=True)
        return 0

    def _acl_create_data_buffer(self, address, size):
        memory = self._get("memory", address)
        if memory is not None and size != len(memory):
            self.violations.append(f"a data buffer of {size} bytes over memory of {len(memory)}")
        return self._new("buffer", (address, size))

    def _acl_destroy_data_buffer(self, buffer):
        return self._drop("buffer", buffer)

    # acl.rt

    def _rt_set_device(self, number):
        self._state["device"] = number
        return 0

    def _rt_reset_device(self, number):
        if number != self._state["device"]:
            self.violations.append(f"reset of device {number}, set was {self._state['device']}")
        left = {kind for kind, things in self._live.items() if things}
        if left:
            self.violations.append(f"reset_device with {', '.join(sorted(left))} left")
        self._state["device"] = None
        return 0

    def _rt_create_context(self, number):
        if self._state["device"] != number:
            self.violations.append("create_context before set_device")
        return self._new("context", number), 0

    def _rt_destroy_context(self, context):
        if self._live.get("memory") or self._live.get("model"):
            self.violations.append("destroy_context with memory or models left")
        return self._drop("context", context)

    def _rt_malloc(self, size, policy):
        if not self._live.get("context"):
            self.violations.append("malloc without a context")
        if size < 1 or policy not in (0, 1, 2):
            return None, BAD_ARGUMENT
        memory = (ctypes.c_char * size)()
        self._live.setdefault("memory", {})[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory), 0

    def _rt_get_mem_info(self, kind):
        used = sum(len(memory) for memory in self._live.get("memory", {}).values())
        models = self._live.get("model", {}).values()
        used += sum(len(model["onnx"].SerializeToString()) for model in models if "onnx" in model)
        return (1 << 33) - used, 1 << 33, 0

    def _rt_free(self, address):
        used = [buffer for buffer, (at, _) in self._live.get("buffer", {}).items() if at == address]
        if used:
            self.violations.append("memory freed under a data buffer")
        return self._drop("memory", address)

    def _rt_memcpy(self, to, room, source, count, kind):
        device = {1: to, 2: source}.get(kind)
        memory = self._get("memory", device)
        if memory is None or count > room or count > len(memory) or (kind == 1 and room > len(memory)):
            self.violations.append(f"memcpy of {count} bytes into {room}, kind {kind}")
            return BAD_ARGUMENT
        ctypes.memmove(to, source, count)
        return 0

    # acl.mdl

    def _mdl_load_from_file(self, path):
        if not self._live.get("context"):
            return None, NO_CONTEXT
        is_om = Path(path).read_bytes()[:4] == b"IMOD"
        model = open_om(path) if is_om else json.loads(Path(path).read_text())
        if model.get("fault") == "memory":
            return None, OUT_OF_MEMORY
        return self._new("model", {**model, "batch": None}), 0

    def _mdl_unload(self, model):
        if len(self._live.get("dataset", {})) > 2 * (len(self._live["model"]) - 1):
            self.violations.append("unload with datasets left")
        return self._drop("model", model)

    def _mdl_create_desc(self):
        return self._new("desc", {})

    def _mdl_destroy_desc(self, desc):
        return self._drop("desc", desc)

    def _mdl_get_desc(self, desc, model):
        self._get("desc", desc)["model"] = self._get("model", model)
        return 0

    def _side(self, desc, side):
        model = self._get("desc", desc)["model"]
        tensors = list(model[f"{side}s"])
        if side == "input" and model.get("batches"):
            tensors.append({"name": DYNAMIC, "dims": [1], "dtype": "int32"})
        return model, tensors

    def _mdl_get_num_inputs(self, desc):
        return len(self._side(desc, "input")[1])

    def _mdl_get_num_outputs(self, desc):
        return len(self._side(desc, "output")[1])

    def _size(self, desc, side, index):
        model, tensors = self._side(desc, side)
        dims = [max(model["batches"]) if d < 0 else d for d in tensors[index]["dims"]]
        return int(np.prod(dims)) * np.dtype(tensors[index]["dtype"]).itemsize

    def _mdl_get_input_size_by_index(self, desc, index):
        return self._size(desc, "input", index)

    def _mdl_get_output_size_by_index(self, desc, index):
        return self._size(desc, "output", index)

    def _dims(self, desc, side, index):
        tensor = self._side(desc, side)[1][index]
        return {"name": tensor["name"], "dimCount": len(tensor["dims"]), "dims": list(tensor["dims"])}, 0

    def _mdl_get_input_dims(self, desc, index):
        return self._dims(desc, "input", index)

    def _mdl_get_output_dims(self, desc, index):
        found, code = self._dims(desc, "output", index)
        # The documentation: the shape of the largest profile.
        found["dims"] = [max(self._side(desc, "output")[0]["batches"]) if d < 0 else d for d in found["dims"]]
        return found, code

    def _mdl_get_input_data_type(self, desc, index):
        return CODES[self._side(desc, "input")[1][index]["dtype"]]

    def _mdl_get_output_data_type(self, desc, index):
        return CODES[self._side(desc, "output")[1][index]["dtype"]]

    def _mdl_get_dynamic_batch(self, desc):
        batches = self._side(desc, "input")[0].get("batches", [])
        return {"batchCount": len(batches), "batch": batches}, 0

    def _mdl_get_input_index_by_name(self, desc, name):
        names = [tensor["name"] for tensor in self._side(desc, "input")[1]]
        return (names.index(name), 0) if name in names else (None, BAD_ARGUMENT)

    def _mdl_set_dynamic_batch_size(self, model, dataset, index, batch):
        found = self._get("model", model)
        buffers = self._get("dataset", dataset)
        if batch not in found["batches"] or index != len(buffers) - 1:
            self.violations.append(f"batch {batch} at input {index}")
            return BAD_ARGUMENT
        found["batch"] = batch
        return 0

    def _mdl_create_dataset(self):
        return self._new("dataset", [])

    def _mdl_destroy_dataset(self, dataset):
        if any(buffer in self._live.get("buffer", {}) for buffer in self._get("dataset", dataset) or ()):
            self.violations.append("destroy_dataset before its data buffers")
        return self._drop("dataset", dataset)

    def _mdl_add_dataset_buffer(self, dataset, buffer):
        if self._get("buffer", buffer) is not None:
            self._get("dataset", dataset).append(buffer)
        return dataset, 0

    def _mdl_execute(self, model, given, wanted):
        found = self._get("model", model)
        if found.get("batches") and found["batch"] is None:
            self.violations.append("execute before set_dynamic_batch_size")
            return BAD_ARGUMENT
        ins, outs = ([self._get("buffer", b) for b in self._get("dataset", side)] for side in (given, wanted))
        images = self._array(ins[0], found["inputs"][0], found["batch"])
        if "onnx" in found:
            return self._execute_onnx(found, images, outs)
        for buffer, tensor in zip(outs, found["outputs"], strict=True):
            array = self._array(buffer, tensor, found["batch"])
            array.T[:] = images.reshape(len(images), -1).sum(axis=1, dtype=np.float64)
        return 0

    def _array(self, buffer, tensor, batch):
        address, _ = buffer
        memory = self._get("memory", address)
        dims = [batch if d < 0 else d for d in tensor["dims"]]
        dtype = np.dtype(tensor["dtype"])
        return np.frombuffer(memory, dtype, int(np.prod(dims))).reshape(dims)

    def _execute_onnx(self, found, images, outs):
        if found["fault"] == "hang":
            time.sleep(600)
        if found["fault"] == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        nodes = found["note"]["nodes"] if self._dump else []
        names = tuple(node["output"] for node in nodes if node["output"] not in [t["name"] for t in found["outputs"]])
        results = run_onnx(found, images, names)
        for buffer, tensor, result in zip(outs, found["outputs"], results, strict=False):
            self._array(buffer, tensor, found["batch"])[:] = result
        values = dict(zip([*(t["name"] for t in found["outputs"]), *names], results, strict=True))
        for task, node in enumerate(nodes):
            self._write_dump(found["name"], task, node, values[node["output"]])
        return 0

    def _write_dump(self, model, task, node, value):
        """Write a value as CANN does: the length of a header, the header, inputs, outputs."""
        place = Path(self._dump["dump_path"]) / "20260101000000" / "0" / model / "1" / "0"
        place.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[./\\\s]", "_", node["name"])
        content = dump_file(node["name"], value.astype(np.float16))
        (place / f"{node['type']}.{name}.{task}.0.{1700000000000000 + task}").write_bytes(content)


def number(value: int) -> bytes:
    """Return a whole number as protobuf writes it."""
    low, value = value & 127, value >> 7
    return bytes([low | 128]) + number(value) if value else bytes([low])


def message(**fields: int | bytes | list[int]) -> bytes:
    """Return a protobuf message: `f3=...` is its field 3; a list is packed."""
    out = b""
    for name, value in fields.items():
        key = int(name[1:]) << 3
        if isinstance(value, list):
            value = b"".join(map(number, value))
        out += number(key | 2) + number(len(value)) + value if isinstance(value, bytes) else number(key) + number(value)
    return out


def dump_file(name: str, value: np.ndarray, layout: int = 2, original: list[int] | None = None) -> bytes:
    """Return a dump of an operator with an input of three bytes, and an output in float16 (dump_data.proto).

    Args:
        name: the operator.
        value: output as it lies in memory.
        layout: number of its OutputFormat.
        original: its shape in a plain layout.
    """
    shape = message(f1=original or list(value.shape))
    tensor = {"f1": 2, "f2": layout, "f3": message(f1=list(value.shape)), "f6": value.nbytes, "f7": shape}
    header = message(f1=b"2.0", f2=1700000000, f3=message(**tensor), f4=message(f1=4, f2=2, f5=3), f6=name.encode())
    return len(header).to_bytes(8, "little") + header + b"abc" + value.astype("<f2").tobytes()
