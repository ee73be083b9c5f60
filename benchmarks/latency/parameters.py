"""The physical parameters of the device model: one table, fitted by `calibrate` and stored in `parameters.json`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import read_json
from neonext_ms.ops.soc import SOCS, Soc

FILE = Path(__file__).with_name("parameters.json")
# Fitted parameters, each between bounds outside which it would mean something else.
BOUNDS = {
    "run_us": (1.0, 200.0),
    "launch_us": (0.5, 8.0),
    "cube_share": (0.3, 1.0),
    "depthwise_share": (0.02, 1.0),
    "matrix_start_cycles": (10.0, 3000.0),
    "vector_share": (0.05, 1.0),
    "l2_share": (0.05, 1.0),
    "layout_share": (0.02, 1.0),
    "serial_share": (0.001, 1.0),
    "l2_held": (0.1, 4.0),
    "memory_310p": (0.5, 1.42),
    "memory_310b": (0.5, 2.44),
}
LEFT_OUT = "one network left out"  # in `errors` of the file


@dataclass(frozen=True)
class Parameters:
    """Shares of a device's rates (those of `ops/soc.py`) that a network reaches.

    Attributes:
        run_us: microseconds of a run besides its tasks: the call, until the first task works and after the last one.
        launch_us: microseconds from the end of one task to the work of the next.
        cube_share: share of the cube's rate in convolutions and products whose tiles of 16 are full.
        depthwise_share: share of the cube's rate in depthwise convolutions by diagonal 16x16 tiles.
        matrix_start_cycles: cycles of a core for each product of two values, besides its tiles.
        vector_share: share of the vector units' rate.
        l2_share: share of the level-2 cache's rate.
        layout_share: share of the rates of L2 and memory where Transpose, TransData or a copy reorders numbers.
        serial_share: share of the time of a task's shorter units that is not hidden behind the longest one.
        l2_held: share of the level-2 cache at which half of a value is still found, counting the value and all bytes
            touched since its last use.
        memory_310p: memory's bytes a second on the family 310P, relative to the platform configuration's figure for all
            AI cores of the family's fastest device.
        memory_310b: the same for the family 310B.
        memory_other: the same for all other families; assumed.
    """

    run_us: float = 50.0
    launch_us: float = 2.0
    cube_share: float = 0.7
    depthwise_share: float = 0.25
    matrix_start_cycles: float = 200.0
    vector_share: float = 0.5
    l2_share: float = 0.5
    layout_share: float = 0.3
    serial_share: float = 0.1
    l2_held: float = 0.7
    memory_310p: float = 1.2
    memory_310b: float = 2.2
    memory_other: float = 0.8

    def memory_bytes_per_second(self, device: Soc) -> float:
        """Return the reachable rate of a device's memory.

        Memory does not slow down with a device's cores, so the configuration's bytes per cycle count at the clock of
        the family's fastest device.
        """
        clock = max(soc.cube_mhz for soc in SOCS.values() if soc.family == device.family)
        share = {"ascend310p": self.memory_310p, "ascend310b": self.memory_310b}.get(device.family, self.memory_other)
        return device.memory_bytes_per_second * clock / device.cube_mhz * share


@lru_cache(maxsize=1)
def stored() -> dict:
    """Return the contents of `parameters.json`: `parameters`, `errors` of the fit, and the `rows` behind them.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return json.loads(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{FILE}: cannot be read ({error}). Write it again: python -m neonext_ms.benchmarks.latency.calibrate"
        ) from error


def read_parameters(path: str | os.PathLike) -> Parameters:
    """Return the parameters in a file of `neonext-board report --fit --output`.

    Raises:
        InputError: the file cannot be read, or is no such file.
    """
    values = read_json(path, "a fitted device model")
    found = values.get("parameters") if isinstance(values, dict) else None
    found = found if isinstance(found, dict) else {}
    known = {field.name: BOUNDS.get(field.name, (0.1, 10.0)) for field in fields(Parameters)}
    # The fit rounds to three digits, and leaves `memory_other` alone.
    right = set(found) == set(known) and all(
        type(value) in (int, float) and 0.99 * known[name][0] <= value <= 1.01 * known[name][1]
        for name, value in found.items()
    )
    if not right:
        raise InputError(
            f"{os.fspath(path)}: not a fitted device model. Write one: neonext-board report --fit --output"
        )
    return Parameters(**found)


def fitted() -> Parameters:
    """Return the stored parameters."""
    return Parameters(**stored()["parameters"])
