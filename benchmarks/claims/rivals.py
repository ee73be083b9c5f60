"""NeoNeXt and ConvNeXt of the same depths and widths: trained alike, and folded for 8 bit.

A network is trained by the step, the batches and the schedule of `neonext-train`. Its weights are kept in a file;
a training that was interrupted starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.text import list_names
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import DeployGraph, original_graph
from neonext_ms.models.architecture import Architecture
from neonext_ms.models.neonext import NeoNeXt
from neonext_ms.training import distributed
from neonext_ms.training.config.changes import changes
from neonext_ms.training.config.schema import Config
from neonext_ms.training.data.datasets import open_dataset
from neonext_ms.training.data.image_sets import ImageSet, check_data, describe_data
from neonext_ms.training.data.loader import TrainLoader
from neonext_ms.training.optimizers import full_rate
from neonext_ms.training.plan import TrainingPlan, make_plan
from neonext_ms.training.run_state import Progress, load_state, save_state
from neonext_ms.training.schedule import learning_rate
from neonext_ms.training.step import TrainStep

from ..networks import folded
from ..networks.convnext_cell import ConvNeXt, ConvNeXtArchitecture, authors_arrays, initial_arrays

# Name of a ConvNeXt -> its norm.
_NORMS = {"convnext": "layer_norm", "convnext_bn": "batch_norm"}


@dataclass(frozen=True)
class Task:
    """A configuration, its images, and the NeoNeXt that it describes.

    Attributes:
        config: configuration with its seed.
        plan: network, initial weights and preprocessing.
        train, val: images of either part.
    """

    config: Config
    plan: TrainingPlan
    train: ImageSet
    val: ImageSet

    @classmethod
    def from_config(cls, config: Config, note: Callable[[str], None]) -> Task:
        """Open the images of a configuration.

        Raises:
            UsageError: the configuration starts from a checkpoint, which only NeoNeXt could.
        """
        if config.model.init or config.quantize.enabled:
            raise UsageError("all networks start from new weights. Leave out model.init and quantize.enabled.")
        distributed.start(config.run.device)
        train, val = open_dataset(config.data)
        return cls(config, make_plan(config, train, val, None, note), train, val)

    def architecture(self, name: str) -> Architecture:
        """Return the architecture of a network of these depths and widths."""
        own = self.plan.architecture
        if name not in _NORMS:
            return own
        return ConvNeXtArchitecture(
            num_classes=own.num_classes,
            per_stage_layers=own.per_stage_layers,
            dims=own.dims,
            layer_scale_init_value=own.layer_scale_init_value,
            drop_path=own.drop_path,
            norm=_NORMS[name],
        )

    def model(self, name: str) -> NeoNeXt | ConvNeXt:
        """Return a network with new weights."""
        architecture = self.architecture(name)
        if isinstance(architecture, ConvNeXtArchitecture):
            rng = np.random.RandomState(self.config.run.seed)
            return ConvNeXt(architecture, initial_arrays(architecture, rng))
        return NeoNeXt.from_architecture(architecture, self.plan.weights)

    def graph(self, name: str, arrays: Mapping[str, np.ndarray]) -> DeployGraph:
        """Return the folded graph of trained weights."""
        architecture = self.architecture(name)
        if not isinstance(architecture, ConvNeXtArchitecture):
            return fold(original_graph(architecture, arrays, self.plan.size))[0]
        graph = folded.convnext(
            *(name, authors_arrays(arrays), self.plan.size),
            *(architecture.per_stage_layers, architecture.dims, architecture.norm),
        )
        return folded.fold(graph, folded.INT8_RULES)


def trained(task: Task, name: str, path: Path, report: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Return the weights of a network from a file, or train it and write them.

    Args:
        task: configuration and images.
        name: name of the network.
        path: file of the weights.
        report: function that is called with the state of the training.

    Returns:
        the moving average of the weights by name if the configuration has one, else the weights.

    Raises:
        InputError: the file is damaged or of another configuration, or the training diverged.
    """
    config, data = task.config, describe_data(task.train, task.val)
    if path.exists():
        arrays, progress = load_state(path)
        # The folder is no part of the training.
        before = {**progress.config, "run": {**config.to_dict()["run"], "seed": progress.seed}}
        if changed := changes(before, config.to_dict()):
            raise InputError(
                f"{path}: was trained with another configuration. Choose another folder with --output, or remove this "
                f"file. These differ:\n{list_names(changed)}"
            )
        shapes = {key: array.shape for key, array in arrays.items()}
        if shapes != task.architecture(name).tensors():
            raise InputError(f"{path}: has the weights of another network. Remove it.")
        # Files of earlier versions do not say.
        if progress.data:
            check_data(progress.data, data, str(path))
            if progress.data["classes"] != data["classes"]:
                raise InputError(
                    f"{path}: was trained with its classes in another order. Set data.classes as it was, or remove "
                    "this file."
                )
        return arrays
    arrays, steps = _train(task, name, report)
    progress = Progress(steps, config.schedule.epochs, seed=config.run.seed, config=config.to_dict(), data=data)
    save_state(path, arrays, progress, task.plan.metadata)
    return arrays


def _train(task: Task, name: str, report: Callable[[str], None]) -> tuple[dict[str, np.ndarray], int]:
    config = task.config
    step = TrainStep(task.model(name), config.optimizer, config.ema.decay, config.precision, jit=config.run.jit)
    loader = TrainLoader(task.train, config, task.plan.size, step.drop_path_rates)
    per_epoch = loader.updates_per_epoch
    rate = full_rate(config.optimizer, config.data.batch_size * config.optimizer.accumulate)
    number, total = 0, per_epoch * config.schedule.epochs
    for epoch in range(config.schedule.epochs):
        for group in loader.epoch(epoch):
            result = step([batch.inputs for batch in group], learning_rate(config.schedule, rate, number, per_epoch))
            if not result.applied:
                raise InputError(f"{name}: a loss or gradient in step {number} is not finite. Lower optimizer.lr.")
            number += 1
            report(f"{name}: step {number}/{total}, loss {result.loss:.4f}")
    return step.weights(ema=config.ema.decay > 0), number


def with_seed(config: Config, seed: int) -> Config:
    """Return a configuration with another seed."""
    return replace(config, run=replace(config.run, seed=seed))
