"""The receptive field of every stage, with the shifts of the network and without."""

from __future__ import annotations

from collections.abc import Mapping

from neonext_ms.common.errors import UsageError, usage_errors
from neonext_ms.models.receptive_field import describe_fields, receptive_fields
from neonext_ms.models.registry import model_config

_DEFAULT = "neonext_t.released_224"


def draw(plt, args):
    """Draw, for every stage, how many outputs of the middle of the map depend on each patch of the image."""
    if len(args.runs) > 1:
        raise UsageError(f"--figure receptive-field: draws one network (got {len(args.runs)} names)")
    name = args.runs[0] if args.runs else _DEFAULT
    with usage_errors():
        config = model_config(name)
        architecture, size = config.architecture, args.map or config.image_size
        architecture.maps(size)
    versions = {"with": architecture, "without": architecture.with_shifts([0] * len(architecture.dims))}
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    facts: dict = {"model": name, "image_size": list(size)}
    for panels, (word, network) in zip(axes, versions.items(), strict=True):
        with usage_errors():
            facts[f"{word}_shifts"] = rows = describe_fields(network, size)
        for stage, (panel, row) in enumerate(zip(panels, rows, strict=True)):
            fields = receptive_fields(network, size, stage)
            middle = fields[fields.shape[0] // 2, fields.shape[1] // 2]
            panel.imshow(middle, cmap="Blues", vmin=0, vmax=1.4, extent=(0, size[1], size[0], 0))
            panel.set_title(
                f"stage {row['stage']} {word} shifts: {100 * middle.mean():.0f} % of the image", fontsize="small"
            )
    figure.suptitle(f"{name}: pixels that the output in the middle of the map depends on", fontsize="medium")
    return figure, facts


def describe(facts: Mapping) -> list[str]:
    """Return the facts of `draw` as lines."""
    return [
        f"stage {row['stage']} {word.replace('_', ' ')}: median {row['pixels']['median']:,} pixels"
        for word in ("with_shifts", "without_shifts")
        for row in facts[word]
    ]
