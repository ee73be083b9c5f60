"""A short training of the `Segmenter` on generated shapes."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.names import official_name
from neonext_ms.ops.init import neo_init
from neonext_ms.training.config.schema import OptimizerConfig, ScheduleConfig
from neonext_ms.training.optimizers import make_optimizer
from neonext_ms.training.result import last, result_of
from neonext_ms.training.schedule import learning_rate
from neonext_ms.training.step import CALL_DEPTH

from .network import Segmenter, SegmenterSource
from .shapes import CLASSES, draw_batch

WIDTH = 32
_RATE = 4e-3


def make_model(rng: np.random.RandomState) -> Segmenter:
    """Return a new network: NeoInit for the NeoCells, normal noise for the convolutions of the decoder."""
    np.random.seed(rng.randint(1 << 31))
    # The network of configs/digits.yaml.
    architecture = make_architecture(
        len(CLASSES), (1, 1, 2, 1), (16, 32, 64, 128), shifts=(1, 1, 0, 0), linear_bias=True, kernel_spec="4+7"
    )
    model = Segmenter(architecture, WIDTH)
    for parameter in model.get_parameters():
        if parameter.name.startswith("encoder."):
            continue
        if ".weight_" in parameter.name:
            parameter.set_data(Tensor(neo_init(parameter.shape, rng)))
        elif parameter.name.endswith("weight"):
            deviation = np.sqrt(2 / parameter.shape[1])
            parameter.set_data(Tensor(rng.normal(0, deviation, parameter.shape).astype(np.float32)))
    return model


def train(
    steps: int, batch: int, size: tuple[int, int], seed: int, report: Callable[[int, float], None]
) -> SegmenterSource:
    """Train a new network with AdamW.

    Args:
        steps: number of updates.
        batch: images of an update.
        size: height and width of the images.
        seed: random seed of weights and images.
        report: called with number and loss of every step.
    """
    ms.set_device("CPU")
    ms.set_recursion_limit(CALL_DEPTH)
    rng = np.random.RandomState(seed)
    model = make_model(rng)
    model.set_train(True)
    weights = model.trainable_params()
    optimizer = make_optimizer(OptimizerConfig(), weights, [1.0] * len(weights))
    schedule = ScheduleConfig(epochs=1, warmup_epochs=0.1)

    def forward(images, targets):
        return -(targets * ops.log_softmax(model(images), 1)).sum(1).mean()

    gradients_of = ms.value_and_grad(forward, None, optimizer.weights)

    @ms.jit
    def step(images, targets, rate, count):
        loss, gradients = gradients_of(images, targets)
        one = count * 0 + 1
        return last(loss.reshape(1), optimizer.update(gradients, one, rate, count, one))

    for number in range(steps):
        images, classes = draw_batch(rng, batch, size)
        targets = np.eye(len(CLASSES), dtype=np.float32)[classes].transpose(0, 3, 1, 2)
        scalars = learning_rate(schedule, _RATE, number, steps), number + 1
        values = (images, np.ascontiguousarray(targets), *map(np.float32, scalars))
        report(number + 1, float(result_of(step, *map(Tensor, values))[0]))
    return segmenter_source(model, size)


def segmenter_source(model: Segmenter, size: tuple[int, int]) -> SegmenterSource:
    """Return a network to export, with a copy of its weights."""
    arrays = {official_name(p.name): p.asnumpy().copy() for p in model.get_parameters()}
    return SegmenterSource(arrays, model.encoder.architecture, "shapes", metadata={"image_size": list(size)})
