"""Parts of a model that follow a Parameter, which each training step sets: drop path, and a change of activation."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn

from neonext_ms.models.neonext import ACTIVATION_CELLS, DropPath, NeoNeXt


class _SampledDropPath(nn.Cell):
    """Stochastic depth with given factors, one row of `keep` per block, so that a step can be repeated exactly."""

    def __init__(self, keep: Parameter, row: int):
        super().__init__()
        self.keep = keep
        self.row = row

    def construct(self, x):
        if self.training:
            x = x * self.factors(x).reshape(-1, 1, 1, 1)
        return x

    def factors(self, x):
        """Return one number per sample, `(N,)`."""
        return self.keep[self.row]


def sample_drop_path(model: NeoNeXt) -> Parameter | None:
    """Make the drop path of the model follow one Parameter, `(blocks with drop path, N)`, and return it."""
    owners = [cell for _, cell in model.cells_and_names() if isinstance(getattr(cell, "drop_path", None), DropPath)]
    if not owners:
        return None
    keep = Parameter(Tensor(np.ones((len(owners), 1), np.float32)), name="drop_path.keep", requires_grad=False)
    for row, owner in enumerate(owners):
        owner.drop_path = _SampledDropPath(keep, row)
    return keep


class _BlendedActivation(nn.Cell):
    """A weighted mean of two activations, `share` of the second one."""

    def __init__(self, first: nn.Cell, second: nn.Cell, share: Parameter):
        super().__init__()
        self.first, self.second = first, second
        self.share = share

    def construct(self, x):
        # In this order, a share of 1 gives the second one exactly.
        y = self.second(x)
        return y + (self.first(x) - y) * (1 - self.share).astype(x.dtype)


def blend_activations(model: NeoNeXt, first: str) -> Parameter:
    """Make all activations of the model start as `first`, and return the Parameter with the share of its own."""
    share = Parameter(Tensor(np.float32(1)), name="activation.share", requires_grad=False)
    for owner in [cell for _, cell in model.cells_and_names() if "act" in cell.name_cells()]:
        owner.act = _BlendedActivation(ACTIVATION_CELLS[first](), owner.act, share)
    return share
