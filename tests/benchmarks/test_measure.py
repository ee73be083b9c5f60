"""The measuring loop and its statistics, on clocks and samples made by hand."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from neonext_ms.benchmarks import measure
from neonext_ms.benchmarks.measure import Parts, interleave
from neonext_ms.benchmarks.statistics import ratio, summary


class Clock:
    """A clock that only the subjects move."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def subject(self, *seconds):
        """A subject that takes these seconds in turn, then the last for ever."""
        left = list(seconds)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_samples_by_round(monkeypatch):
    clock = Clock(monkeypatch)
    steps = []
    found = interleave(
        {"a": clock.subject(1.0), "b": clock.subject(2.0)}, rounds=5, progress=lambda *step: steps.append(step)
    )
    assert found.samples == {"a": [1.0] * 5, "b": [2.0] * 5}
    assert found.rounds == 5 and not found.partial and found.seconds == 15.0
    assert found.warm_up_rounds == 6 and found.stable == {"a": True, "b": True}
    assert steps[0] == ("warm-up", 1, 30) and steps[-1] == ("measuring", 5, 5)


def test_warm_up_waits_for_the_slowest_to_settle(monkeypatch):
    clock = Clock(monkeypatch)
    found = interleave({"a": clock.subject(0.1), "b": clock.subject(0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.1)}, rounds=2)
    assert found.warm_up_rounds == 11
    assert found.samples["b"] == pytest.approx([0.1, 0.1])


def test_warm_up_that_never_settles_is_told(monkeypatch):
    clock = Clock(monkeypatch)
    found = interleave({"a": clock.subject(0.1), "b": clock.subject(*[0.9**i for i in range(99)])}, rounds=1)
    assert found.stable == {"a": True, "b": False}
    assert found.warm_up_rounds == measure.WARM_UP_ROUNDS
    slow = interleave({"a": clock.subject(15.0)}, rounds=1)
    assert slow.warm_up_rounds == 3 and slow.stable == {"a": False}


def test_time_limit_keeps_whole_rounds(monkeypatch):
    clock = Clock(monkeypatch)
    found = interleave({"a": clock.subject(1.0), "b": clock.subject(1.0)}, rounds=100, seconds=7)
    assert found.rounds == 4 and not found.partial


def test_subject_that_times_itself():
    found = interleave({"a": lambda: Parts(execute=2.0, copy_in=0.5), "b": lambda: 3}, rounds=3)
    assert found.samples["a"] == [2.0] * 3
    assert found.parts == {"a": {"copy_in": [0.5] * 3}}


def test_order_changes_between_rounds():
    calls = []
    interleave({name: (lambda name=name: calls.append(name) or Parts(execute=1.0)) for name in "abc"}, rounds=20)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 3


@pytest.mark.parametrize("at, kept", [(3, 0), (6 + 4, 4)])
def test_interrupt_keeps_complete_rounds(at, kept):
    calls = {"a": 0, "b": 0}

    def call(name):
        calls[name] += 1
        if calls["b"] > at:
            raise KeyboardInterrupt
        return Parts(execute=1.0, copy_in=0.1)

    found = interleave({"a": lambda: call("a"), "b": lambda: call("b")}, rounds=50)
    assert found.partial
    assert {len(v) for v in found.samples.values()} == {kept}
    assert all(len(v) == kept for parts in found.parts.values() for v in parts.values())


def test_an_error_passes_through_and_the_collector_comes_back():
    def broken():
        assert not gc.isenabled()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        interleave({"a": broken}, rounds=1)
    assert gc.isenabled()


@pytest.mark.parametrize("subjects, rounds", [({}, 1), ({"a": int}, 0)])
def test_nothing_to_measure(subjects, rounds):
    with pytest.raises(ValueError, match="at least one round"):
        interleave(subjects, rounds=rounds)


def test_summary():
    found = summary([1.0] * 50 + [1.1] * 50)
    assert found.count == 100 and found.min == 1.0 and found.mean == pytest.approx(1.05)
    assert found.p50 == pytest.approx(1.05) and found.p90 == found.p99 == pytest.approx(1.1)
    assert found.spread == pytest.approx(0.1 / 1.05) and found.drift == pytest.approx(0.1)
    assert summary([3.0]).drift == 0.0
    with pytest.raises(ValueError, match="samples"):
        summary([])


def noisy(seed, factor, rounds=60, noise=0.03):
    """Two subjects on a machine whose speed wanders, `factor` apart."""
    rng = np.random.default_rng(seed)
    machine = np.exp(np.cumsum(rng.normal(0, 0.05, rounds)))
    return [f * machine * np.exp(rng.normal(0, noise, rounds)) for f in (factor, 1.0)]


def test_ratio_survives_a_wandering_machine():
    found = [ratio(*noisy(seed, 1.3)) for seed in range(40)]
    inside = sum(r.low <= 1.3 <= r.high for r in found)
    assert inside >= 34
    assert found[0] == ratio(*noisy(0, 1.3))


def test_ratio_of_equals_is_not_ranked_and_of_unequals_is():
    assert ratio([1.0] * 20, [1.0] * 20).order == 0
    assert ratio(*noisy(1, 1.3, noise=0.001)).order in (0, 1)
    steady = np.random.default_rng(0).normal(1, 0.01, (2, 40))
    faster = ratio(0.8 * steady[0], steady[1])
    assert faster.sure and faster.order == -1
    assert ratio(steady[1], 0.8 * steady[0]).order == 1
    close = ratio(1.03 * steady[0], steady[1])
    assert close.sure and close.low > 1 and close.order == 0


@pytest.mark.parametrize(
    "a, b",
    [
        ([1.0] * 4, [0.5] * 4),  # too few rounds
        ([1.0] * 20 + [1.2] * 20, [1.0] * 40),  # the halves disagree
        (list(np.random.default_rng(0).lognormal(0, 1, 30)), list(np.random.default_rng(1).lognormal(1, 1, 30))),
    ],
)
def test_an_unsure_ratio_says_so(a, b):
    found = ratio(a, b)
    assert not found.sure and found.order == 0
    assert found.to_dict()["sure"] is False


def test_ratio_needs_pairs():
    with pytest.raises(ValueError, match="equal length"):
        ratio([1.0], [1.0, 2.0])
