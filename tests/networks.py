"""Random small networks for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from neonext_ms.models.activations import ACTIVATIONS
from neonext_ms.models.architecture import Architecture, make_architecture
from neonext_ms.models.initialization import initial_arrays


@st.composite
def networks(draw) -> tuple[Architecture, dict[str, np.ndarray], tuple[int, int]]:
    """An architecture, its weights (statistics and scales far from neutral), and an image size."""
    kernels = draw(st.lists(st.sampled_from(["2", "3", "4", "7", "4+7", "2+3+5"]), min_size=4, max_size=4))
    architecture = make_architecture(
        num_classes=draw(st.integers(1, 5)),
        per_stage_layers=draw(st.tuples(*[st.integers(0, 2)] * 4)),
        dims=draw(st.tuples(*[st.integers(3, 12)] * 4)),
        kernel_spec=kernels,
        shifts=[draw(st.integers(0, min(map(int, code.split("+"))) - 1)) for code in kernels],
        layer_scale_init_value=draw(st.sampled_from([0, 0.5])),
        linear_bias=draw(st.booleans()),
        downsample=draw(st.sampled_from(["official", "paper"])),
        activation=draw(st.sampled_from(ACTIVATIONS)),
    )
    rng = np.random.RandomState(draw(st.integers(0, 2**31)))
    arrays = initial_arrays(architecture, rng=rng)
    for name in arrays:
        if ".norm" in name or name.endswith("gamma"):
            arrays[name] = (np.abs(rng.standard_normal(arrays[name].shape)) + 0.2).astype(np.float32)
    return architecture, arrays, (4 * draw(st.integers(8, 24)), 4 * draw(st.integers(8, 24)))
