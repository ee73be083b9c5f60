"""A stand-in for mindspore_lite, by its Python API: what it is given, what it rejects, in what order it is called."""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import ClassVar

import numpy as np


class ModelType(enum.Enum):
    MINDIR = 0


class DataType(enum.Enum):
    FLOAT16 = 42
    FLOAT32 = 43


class Format(enum.Enum):
    NCHW = 0
    NHWC = 1


class Context:
    def __init__(self):
        self.target = []
        self.cpu = SimpleNamespace(thread_num=0)
        self.ascend = SimpleNamespace(device_id=0)


class Tensor:
    layout = Format.NCHW

    def __init__(self, shape):
        self.name, self.dtype, self.format, self.shape = "image", DataType.FLOAT32, self.layout, list(shape)
        self.data = None

    def set_data_from_numpy(self, array):
        if array.dtype.name != self.dtype.name.lower() or list(array.shape) != self.shape:
            raise RuntimeError("data size not equal!")
        self.data = array

    def get_data_to_numpy(self):
        return self.data


class Model:
    built: ClassVar[list] = []
    shape = (1, 3, 8, 8)

    def build_from_file(self, path, model_type, context):
        if not isinstance(model_type, ModelType) or not isinstance(context, Context):
            raise TypeError("wrong types")
        if "broken" in path:
            raise RuntimeError("build_from_file failed! Error is Common error code.")
        self.context = context
        self._inputs = [Tensor(self.shape)]
        Model.built.append((model_type, context))

    def get_inputs(self):
        return self._inputs

    def predict(self, inputs):
        images = inputs[0].data
        result = Tensor((len(images), 2))
        result.data = np.repeat(images.reshape(len(images), -1).sum(axis=1)[:, None], 2, axis=1)
        return [result]
