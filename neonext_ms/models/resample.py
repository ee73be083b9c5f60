"""A trained network with other kernel sizes: its square NeoCell matrices are resampled, everything else stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.ops.resample import resample_matrices

from .architecture import STAGES, Architecture, make_architecture


def resample_kernels(
    arrays: Mapping[str, np.ndarray],
    architecture: Architecture,
    kernel_spec: str | Sequence[str],
    reading: str = "offset",
) -> tuple[dict[str, np.ndarray], Architecture]:
    """Return the weights and the architecture of a trained network with other kernel sizes.

    The NeoCells between the stages, which halve the map, stay as they are.

    Args:
        arrays: weights and statistics by official name; they are only read.
        architecture: architecture of the network.
        kernel_spec: new kernel sizes, such as "5+8", with as many sizes in each stage as before.
        reading: "offset" or "scale", see `ops.resample`.

    Raises:
        InputError: another number of sizes in a stage, or a shift that a kernel size does not allow.

    Example:
        >>> arrays, architecture = resample_kernels(checkpoint.float32(), checkpoint.architecture, "5+8")
        >>> save_checkpoint("resampled.safetensors", arrays, {"shifts": list(architecture.shifts)})
    """
    changed = replace(architecture, kernels=make_architecture(kernel_spec=kernel_spec, shifts=None).kernels)
    result = dict(arrays)
    for stage in range(STAGES):
        before, after = architecture.kernels[stage], changed.kernels[stage]
        if len(before) != len(after):
            raise InputError(
                f"stage {stage + 1}: another number of kernel sizes (got {'+'.join(map(str, after))}, expected "
                f"{len(before)} as in {'+'.join(map(str, before))}). Channels would change their group."
            )
        for block in range(architecture.per_stage_layers[stage]):
            cell = f"stage_{stage + 1}.{block}.ops.content.neocell"
            for group, size in enumerate(after):
                a, b = f"{cell}.weight_a.{group}", f"{cell}.weight_b.{group}"
                result[a] = resample_matrices(arrays[a], size, reading)
                # The outputs of B are its columns.
                turned = resample_matrices(np.swapaxes(arrays[b], 1, 2), size, reading)
                result[b] = np.ascontiguousarray(np.swapaxes(turned, 1, 2))
    return result, changed
