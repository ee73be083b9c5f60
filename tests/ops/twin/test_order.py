"""Events set by hand: correct kernels pass, and their subtly wrong variants are errors."""

import re
from pathlib import Path

import numpy as np
import pytest

from neonext_ms.ops import twin

SOURCE = Path(__file__).with_name("kernels") / "order.cpp"
ENTRIES = re.findall(r"^KERNEL\((\w+)\)", SOURCE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("entry", ENTRIES)
def test_order(entry):
    kernel = twin.compile(SOURCE, soc="Ascend310P3", entry=entry)
    x = (np.arange(4096) % 512).astype(np.float16)
    y = np.zeros_like(x)
    _, _, rule = entry.partition("__")
    if rule:
        with pytest.raises(twin.SimulatorError) as caught:
            kernel.launch([x, y, None], blocks=1, outputs=(1,))
        assert caught.value.rule == rule.replace("_", "-"), str(caught.value)
    else:
        counts = kernel.launch([x, y, None], blocks=1, outputs=(1,))
        assert np.array_equal(y, x + 1) and counts["hazards"] == []
