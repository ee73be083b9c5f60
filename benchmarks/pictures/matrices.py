"""Fig. 5 of the paper: the matrices of a trained network beside those of NeoInit.

Heat maps, distance to the identity, singular values, and the pattern that each learned matrix is most like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from neonext_ms.checkpoint.checkpoint import load_checkpoint
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.ops.init import neo_init

_SHOWN = 5
# A matrix is like a pattern if the cosine between the two is at least this large; its sign does not matter.
_LIKE = 0.7


def patterns(size: int) -> dict[str, np.ndarray]:
    """Return simple square matrices of norm 1 by name."""
    line = np.arange(size) - (size - 1) / 2
    found = {
        "identity": np.eye(size),
        "mean": np.ones((size, size)),
        "reversal": np.eye(size)[::-1],
        "step by one": np.eye(size, k=1),
        "step by minus one": np.eye(size, k=-1),
        "smoothing": np.eye(size) + (np.eye(size, k=1) + np.eye(size, k=-1)) / 2,
        "difference": np.eye(size, k=1) - np.eye(size, k=-1),
        "sharpening": np.eye(size) - (np.eye(size, k=1) + np.eye(size, k=-1)) / 2,
        "slope": np.outer(line, np.ones(size)),
    }
    return {name: matrix / np.linalg.norm(matrix) for name, matrix in found.items()}


def likeness(matrices: np.ndarray) -> dict[str, float]:
    """Return the share of the matrices `(N, k, k)` that is most like each pattern, and of those like "none" of them."""
    named = patterns(matrices.shape[1])
    norms = np.linalg.norm(matrices, axis=(1, 2), keepdims=True)
    cosines = np.abs(np.einsum("nij,pij->np", matrices / np.maximum(norms, 1e-12), np.stack(list(named.values()))))
    nearest = np.where(cosines.max(1) >= _LIKE, cosines.argmax(1), len(named))
    counts = np.bincount(nearest, minlength=len(named) + 1) / len(matrices)
    return dict(zip([*named, "none"], counts.tolist(), strict=True))


def draw(plt, args):
    """Draw, for every stage and size of its blocks, matrices of NeoInit and learned ones, and their statistics."""
    if len(args.runs) != 1:
        raise UsageError(f"--figure 5: draws one checkpoint (got {len(args.runs)} names)")
    checkpoint = load_checkpoint(args.runs[0], ema=args.ema, key=args.key)
    groups = list(_groups(checkpoint))
    if not groups:
        raise InputError(f"{args.runs[0]}: has no blocks, and so no square matrices of a NeoCell")
    figure, axes = plt.subplots(
        len(groups), 4, figsize=(13, 0.5 + 2.1 * len(groups)), layout="constrained", squeeze=False,
        width_ratios=(2.4, 2.4, 1, 1),
    )  # fmt: skip
    facts: list[dict] = []
    for panels, (stage, matrices) in zip(axes, groups, strict=True):
        size = matrices.shape[1]
        start = neo_init((len(matrices), size, size), np.random.RandomState(0))
        chosen = np.linspace(0, len(matrices) - 1, min(_SHOWN, len(matrices))).astype(int)
        limit = float(np.abs(np.concatenate([start[chosen], matrices[chosen]])).max())
        for panel, values, name in ((panels[0], start, "NeoInit"), (panels[1], matrices, "learned")):
            row = np.full((size, len(chosen) * (size + 1) - 1), np.nan)
            for i, index in enumerate(chosen):
                row[:, i * (size + 1) : i * (size + 1) + size] = values[index]
            panel.imshow(row, cmap="RdBu", vmin=-limit, vmax=limit)
            panel.set_axis_off()
            panel.set_title(f"stage {stage}, {size}x{size}: {name}", fontsize="small")
        facts.append({"stage": stage, "size": size, "matrices": len(matrices)})
        for values, name, key in ((start, "NeoInit", "neoinit"), (matrices, "learned", "learned")):
            distance = np.linalg.norm(values - np.eye(size), axis=(1, 2)) / np.sqrt(size)
            spectrum = np.linalg.svd(values, compute_uv=False)
            panels[2].hist(distance, bins=30, alpha=0.5, label=name, density=True)
            middle, spread = spectrum.mean(0), spectrum.std(0)
            panels[3].plot(range(1, size + 1), middle, marker=".", label=name)
            panels[3].fill_between(range(1, size + 1), middle - spread, middle + spread, alpha=0.2, linewidth=0)
            facts[-1][key] = {
                "distance": float(distance.mean()), "singular_values": middle.tolist(), "like": likeness(values),
            }  # fmt: skip
        panels[2].set_title("distance to the identity / sqrt(k)", fontsize="small")
        panels[3].set_title("singular values: mean, deviation", fontsize="small")
        panels[3].set_ylim(bottom=0)
    axes[0, 2].legend(fontsize="small")
    return figure, {"checkpoint": args.runs[0], "groups": facts}


def _groups(checkpoint) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the stage and all A and B, `(N, k, k)`, of its blocks for each size k."""
    for stage, sizes in enumerate(checkpoint.architecture.kernels, 1):
        for group, _ in enumerate(sizes):
            ends = tuple(f".neocell.weight_{side}.{group}" for side in "ab")
            found = [
                np.asarray(array, np.float64)
                for name, array in checkpoint.arrays.items()
                if name.startswith(f"stage_{stage}.") and name.endswith(ends)
            ]
            if found:
                yield stage, np.concatenate(found)


def describe(facts: Mapping) -> list[str]:
    """Return the facts of `draw` as lines."""
    lines = []
    for row in facts["groups"]:
        start, learned = row["neoinit"], row["learned"]
        like = sorted(((share, name) for name, share in learned["like"].items() if share >= 0.005), reverse=True)
        lines.append(
            f"stage {row['stage']}, {row['matrices']:,} of {row['size']}x{row['size']}: distance to the identity "
            f"{learned['distance']:.2f} (NeoInit {start['distance']:.2f}), largest singular value "
            f"{learned['singular_values'][0]:.2f} ({start['singular_values'][0]:.2f}); like "
            + ", ".join(f"{name} {100 * share:.0f} %" for share, name in like)
        )
    return lines
