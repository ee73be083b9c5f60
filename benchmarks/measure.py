"""Time several subjects in one run, round by round, so that a slow spell of the machine affects all of them alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from neonext_ms.runtime.base import Runtime

from .official_torch import OfficialTorch

# Warm-up ends when, for every subject, the medians of the last `WINDOW` calls and of the `WINDOW` before differ by at
# most `STABLE`, or at one of the limits, but never before `WINDOW` rounds.
WINDOW = 3
STABLE = 0.05
WARM_UP_ROUNDS = 30
WARM_UP_SECONDS = 20.0

EXECUTE = "execute"
MEASURING = "measuring"


class Parts(dict):
    """Seconds of the steps of one call, by name, returned by a subject that times itself.

    The step "execute" becomes the sample. The others (copies to and from a device, conversion) are kept separately.
    """


def timed(runtime: Runtime, arrays: Sequence[np.ndarray]) -> Callable[[], Parts]:
    """Return a subject for `interleave`: one call of a loaded model, as "copy_in", "execute" and "copy_out".

    Args:
        runtime: runtime that has loaded the model.
        arrays: inputs of the model.
    """
    if isinstance(runtime, OfficialTorch):
        # It times itself: neither the pipe nor the files of images and logits count.
        runtime.copy_in(arrays)
        return lambda: Parts({EXECUTE: runtime.execute_timed()})

    def call() -> Parts:
        start = time.perf_counter()
        runtime.copy_in(arrays)
        copied = time.perf_counter()
        runtime.execute()
        executed = time.perf_counter()
        runtime.copy_out()
        end = time.perf_counter()
        return Parts({"copy_in": copied - start, EXECUTE: executed - copied, "copy_out": end - executed})

    return call


@dataclass
class Measurement:
    """Result of `interleave`.

    Attributes:
        samples: seconds of every call, by subject, in the order of rounds; all lists have the same length.
        parts: seconds of the other steps of every call, by subject and step, for subjects that return `Parts`.
        warm_up_rounds: number of rounds before the first sample.
        stable: whether the time of each subject had settled when warm-up ended.
        partial: whether the run was interrupted; only complete rounds are kept.
        seconds: duration of the timed rounds.
    """

    samples: dict[str, list[float]] = field(default_factory=dict)
    parts: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    warm_up_rounds: int = 0
    stable: dict[str, bool] = field(default_factory=dict)
    partial: bool = False
    seconds: float = 0.0

    @property
    def rounds(self) -> int:
        """Return the number of complete rounds."""
        return min((len(values) for values in self.samples.values()), default=0)


def interleave(
    subjects: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """Time subjects in turns. A round is one call of every subject, in an order drawn anew for each round.

    Before the first sample, rounds are run until the time of every subject is stable: the medians of its last three
    calls and of the three before differ by at most 5 %. Warm-up ends in any case after 30 rounds, or after 20 s and
    three rounds. Python's garbage collector is off during the run.

    Ctrl-C ends the run. The incomplete round is dropped, and the result is marked `partial`.

    Args:
        subjects: functions to time, by name.
        rounds: number of timed rounds, at least 1.
        seconds: time limit of the timed rounds, of which at least one is run.
        seed: random seed of the order inside a round.
        progress: function that is called with "warm-up" or "measuring", the number of rounds done, and their limit.

    Raises:
        ValueError: there is no subject, or `rounds` is below 1.
        Exception: any exception of a subject.
    """
    if not subjects or rounds < 1:
        raise ValueError(f"expected subjects and at least one round (got {len(subjects)} subjects and {rounds} rounds)")
    report = progress or (lambda step, done, total: None)
    result = Measurement(stable=dict.fromkeys(subjects, False))
    order = random.Random(seed)
    complete: list[dict[str, Parts]] = []
    with _garbage_collector_off():
        try:
            _warm_up(subjects, order, result, report)
            start = time.perf_counter()
            for done in range(rounds):
                complete.append(_round(subjects, order))
                result.seconds = time.perf_counter() - start
                report(MEASURING, done + 1, rounds)
                if seconds is not None and result.seconds >= seconds:
                    break
        except KeyboardInterrupt:
            result.partial = True
    for name in subjects:
        calls = [times[name] for times in complete]
        steps = {step: [parts[step] for parts in calls] for step in (calls[0] if calls else {EXECUTE: 0})}
        result.samples[name] = steps.pop(EXECUTE)
        if steps:
            result.parts[name] = steps
    return result


def _warm_up(subjects, order: random.Random, result: Measurement, report) -> None:
    seen: dict[str, list[float]] = {name: [] for name in subjects}
    start = time.perf_counter()
    for done in range(1, WARM_UP_ROUNDS + 1):
        for name, parts in _round(subjects, order).items():
            seen[name].append(parts[EXECUTE])
        result.warm_up_rounds = done
        result.stable = {name: _is_stable(values) for name, values in seen.items()}
        report("warm-up", done, WARM_UP_ROUNDS)
        too_long = done >= WINDOW and time.perf_counter() - start > WARM_UP_SECONDS
        if too_long or all(result.stable.values()):
            return


def _is_stable(values: list[float]) -> bool:
    if len(values) < 2 * WINDOW:
        return False
    last, before = statistics.median(values[-WINDOW:]), statistics.median(values[-2 * WINDOW : -WINDOW])
    return abs(last - before) <= STABLE * min(last, before)


def _round(subjects, order: random.Random) -> dict[str, Parts]:
    names = list(subjects)
    # In a fixed order a subject would always find the caches as the same neighbour left them.
    order.shuffle(names)
    times = {}
    for name in names:
        start = time.perf_counter()
        parts = subjects[name]()
        seconds = time.perf_counter() - start
        times[name] = parts if isinstance(parts, Parts) else Parts({EXECUTE: seconds})
    return times


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
