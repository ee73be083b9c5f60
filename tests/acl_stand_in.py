"""A recording stand-in for pyACL, by CANN's documentation: it keeps device memory, checks order, sizes and ownership.

`violations` collects what a device would not forgive; `calls` is every call by name, in order. A model is a JSON file:
{"inputs": [{"name", "dims", "dtype"}], "outputs": [...], "batches": [1, 8]}; dims[0] is -1 where there are batches.
The outputs repeat the sum of each image.
"""

from __future__ import annotations

import ctypes
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

CODES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "uint8": 4}
BAD_ARGUMENT, NOT_INITIALISED, TWICE, NO_CONTEXT = 100000, 100001, 100002, 107002
DYNAMIC = "ascend_mbatch_shape_data"


class StandIn(SimpleNamespace):
    """The module `acl`. `fail` maps the name of a call to the code that it shall return."""

    def __init__(self, fail=None):
        super().__init__()
        self.__file__ = "stand-in"
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

    def _acl_init(self):
        if self._state["init"] or self._state["finalized"]:
            self.violations.append("acl.init twice in a process")
            return TWICE
        self._state["init"] = 1
        return 0

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
        return self._new("model", {**json.loads(Path(path).read_text()), "batch": None}), 0

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
        for buffer, tensor in zip(outs, found["outputs"], strict=True):
            array = self._array(buffer, tensor, found["batch"])
            array[:] = images.reshape(len(images), -1).sum(axis=1, dtype=np.float64)[:, None]
        return 0

    def _array(self, buffer, tensor, batch):
        address, _ = buffer
        memory = self._get("memory", address)
        dims = [batch if d < 0 else d for d in tensor["dims"]]
        dtype = np.dtype(tensor["dtype"])
        return np.frombuffer(memory, dtype, int(np.prod(dims))).reshape(dims)
