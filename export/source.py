"""The source of an export: a network from a checkpoint, from the registry of models, or from a live model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neonext_ms.checkpoint.metadata import SCALES
from neonext_ms.common.errors import UsageError, usage_errors
from neonext_ms.models.architecture import Architecture
from neonext_ms.models.registry import identify, model_config
from neonext_ms.models.scales import Scales, parse_scales

from .graph import DeployGraph, original_graph

if TYPE_CHECKING:
    from mindspore import nn

    from neonext_ms.models.neonext import NeoNeXt

Size = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """A network to export: named arrays, and the data that belongs to them.

    Attributes:
        arrays: float32 arrays by official name.
        architecture: options of the network, shifts included.
        name: base name of the exported files.
        path: path of the checkpoint, or None.
        metadata: recorded `labels`, `preprocessing`, `image_size`, and `scales`.
        notes: messages to show to the user.
    """

    arrays: Mapping[str, np.ndarray]
    architecture: Architecture
    name: str
    path: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def scales(self) -> Scales | None:
        """The scales that a checkpoint was fine-tuned with for 8 bit; None for any other."""
        recorded = self.metadata.get(SCALES)
        return None if recorded is None else parse_scales(recorded, f"{self.path}: {SCALES}")

    @classmethod
    def from_checkpoint(
        cls,
        path: str,
        shifts: Sequence[int] | None = None,
        ema: bool = False,
        key: str | None = None,
        activation: str | None = None,
    ) -> Source:
        """Read a checkpoint file.

        Args:
            path: path of the checkpoint.
            shifts: shifts of the four stages, for a file that does not record them.
            ema: use the moving average of the weights.
            key: key or prefix of the weights in a checkpoint of several models.
            activation: activation, for a file that records none and is not of a network with GELU.

        Raises:
            InputError: the file cannot be read, or is no NeoNeXt.
            UsageError: the shifts are not known.
        """
        from neonext_ms.checkpoint.checkpoint import load_checkpoint, require_shifts

        checkpoint = load_checkpoint(path, shifts, ema, key, activation)
        architecture = require_shifts(checkpoint)
        metadata, notes = checkpoint.metadata or {}, list(checkpoint.notes)
        name = Path(Path(path).name.removesuffix(".tar")).stem
        return cls(checkpoint.float32(), architecture, name, path, metadata, notes)

    @classmethod
    def from_name(
        cls, name: str, shifts: Sequence[int] | None = None, seed: int = 0, activation: str | None = None
    ) -> Source:
        """Make a named model with random weights, for benchmarks; MindSpore is not imported.

        Args:
            name: name of the model, one of `list_models()`.
            shifts: shifts of the four stages, instead of the model's own.
            seed: random seed of the weights.
            activation: activation, instead of the model's own.

        Raises:
            UsageError: an unknown name, or shifts that do not fit it.
        """
        from neonext_ms.models.initialization import initial_arrays

        options = {"shifts": shifts, "activation": activation}
        with usage_errors():
            config = model_config(name, **{option: value for option, value in options.items() if value is not None})
        arrays = initial_arrays(config.architecture, rng=np.random.RandomState(seed))
        metadata = {"image_size": config.image_size, "preprocessing": config.preprocessing.to_dict()}
        notes = [f"{name} has random weights (seed {seed}): use it only to measure speed"]
        return cls(arrays, config.architecture, name, metadata=metadata, notes=notes)

    @classmethod
    def from_model(cls, model: NeoNeXt, name: str = "neonext") -> Source:
        """Copy the weights of a live model."""
        from neonext_ms.models.weights import model_arrays

        return cls(model_arrays(model), model.architecture, name)

    def graph(self, size: Size, features_only: bool = False) -> DeployGraph:
        """Return the original network, node by node; see `graph.original_graph`."""
        return original_graph(self.architecture, self.arrays, size, features_only)

    def model(self, features_only: bool = False) -> nn.Cell:
        """Return the original network in MindSpore."""
        from neonext_ms.models.neonext import NeoNeXt

        return NeoNeXt.from_architecture(self.architecture, self.arrays, features_only)

    def image_sizes(self, requested: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
        """Return the requested sizes, or the recorded one, or the one that the architecture is published with.

        Raises:
            UsageError: there is none of these, or a size that a named network cannot take.
        """
        if self.path is None:
            # The options alone are wrong then, not a file.
            with usage_errors():
                for size in requested:
                    self.architecture.maps(size)
        if requested:
            return list(dict.fromkeys((height, width) for height, width in requested))
        if self.metadata.get("image_size"):
            height, width = self.metadata["image_size"]
            return [(height, width)]
        model = identify(self.architecture)
        if model is None:
            raise UsageError(
                "the checkpoint does not record its image size. Pass --image-size, such as 224 or 256x320 (image_size "
                "in Python)."
            )
        return [model_config(model).image_size]
