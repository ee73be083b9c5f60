"""As much of MindSpore for Ascend as `ops.device_check` calls, on NumPy: its operator is `ops.reference`.

The fault `{"mindspore": "wrong"}` of STAND_IN_FAULTS makes its gradients wrong; with "no-device" there is none.
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import numpy as np

FAULT = json.loads(os.environ.get("STAND_IN_FAULTS") or "{}").get("mindspore")
float16, float32, bfloat16 = np.float16, np.float32, None
Type = type
nn = SimpleNamespace(Cell=object)
_last: dict = {}


class Tensor:
    def __init__(self, value):
        self.value = np.asarray(value)

    def astype(self, dtype):
        return Tensor(self.value.astype(dtype))

    def asnumpy(self):
        return self.value

    def __mul__(self, other):
        _last["factor"] = other.value
        return Tensor(self.value * other.value)

    def sum(self):
        return Tensor(self.value.sum())


class _Primitive:
    def __init__(self, name):
        self.name = name

    def set_const_prim(self, value):
        pass


ops = SimpleNamespace(PrimitiveWithInfer=_Primitive, constexpr=lambda function: function)


def set_device(name: str) -> None:
    from neonext_ms.ops import ascend

    if FAULT == "no-device":
        raise RuntimeError(f"{name} is not there")
    ascend.neo_cell = _neo_cell
    ascend.operator_available = lambda spec, dtype: ascend.installed_package() is not None


def _neo_cell(x, a, b, spec, bias):
    from neonext_ms.ops import reference

    values = [x.value, [m.value for m in a], [m.value for m in b]]
    _last.update(values=values, spec=spec)
    return Tensor(reference.forward(*values, spec, bias.value))


def grad(function, positions):
    def gradients(*arguments):
        from neonext_ms.ops import reference

        function(*arguments)
        x, a, b = _last["values"]
        d_x, d_a, d_b, d_bias = reference.backward(x, a, b, _last["spec"], _last["factor"])
        return [Tensor(d * (1.5 if FAULT == "wrong" else 1)) for d in (d_x, *d_a, *d_b, d_bias)]

    return gradients
