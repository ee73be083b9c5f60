"""Options of the commands that read a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neonext_ms.models.activations import ACTIVATIONS


def add_weights_options(add: Callable[..., Any], activation: bool = True) -> None:
    """Add `--activation`, `--ema` and `--key` with the `add_argument` of a parser or a group of options.

    Args:
        add: the method.
        activation: whether the activation matters to the command.
    """
    if activation:
        add(
            "--activation",
            choices=ACTIVATIONS,
            help="activation of a checkpoint that records none (default: gelu, that of the official ones)",
        )
    add("--ema", action="store_true", help="use the moving average of the weights of a checkpoint")
    add(
        "--key",
        metavar="NAME",
        help="use the weights below this key or prefix of a checkpoint, such as teacher or model.backbone; needed if "
        "several fit",
    )
