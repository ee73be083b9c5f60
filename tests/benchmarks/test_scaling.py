"""Many cards, on paper: the messages are those of the training, and the arithmetic of what backward hides."""

from __future__ import annotations

import argparse
import json
import math

import pytest

from neonext_ms.benchmarks import scaling
from neonext_ms.models.architecture import STATISTICS, make_architecture
from neonext_ms.models.registry import model_config
from neonext_ms.training.distributed import buckets

RATES = argparse.Namespace(start_us=1e-9, server_gbs=10.0, network_gbs=5.0)


@pytest.mark.parametrize("downsample", ["official", "paper"])
def test_parts_add_up_to_the_network(downsample):
    architecture = make_architecture(10, (1, 2, 0, 1), (8, 16, 24, 32), downsample=downsample)
    costs = scaling.part_costs(architecture, (64, 96))
    cells = [architecture.downsample_spec(i).multiply_adds(*architecture.maps((64, 96))[i]) for i in range(3)]
    assert sum(costs.values()) + sum(cells) == architecture.multiply_adds((64, 96))
    assert list(costs)[:3] == ["stem", "stage_1.0", "downsample_1"] and list(costs)[-1] == "head"


@pytest.mark.parametrize("megabytes", [0.01, 0.5, 25, math.inf])
def test_messages_are_those_of_the_training(megabytes):
    architecture = make_architecture(10, (1, 1, 2, 1), (16, 32, 64, 128))
    sizes = [math.prod(shape) for name, shape in architecture.tensors().items() if not name.endswith(STATISTICS)]
    numbers = buckets(sizes, megabytes)
    sent = scaling.messages(architecture, (64, 64), megabytes)
    assert [size for size, _ in sent] == [
        4 * sum(size for size, number in zip(sizes, numbers, strict=True) if number == bucket)
        for bucket in range(max(numbers) + 1)
    ]
    ready = [share for _, share in sent]
    assert ready == sorted(ready) and ready[-1] == pytest.approx(1) and (len(sent) == 1) == (megabytes > 1)


def test_what_backward_hides():
    # 0.1 s of computation, of which 1/15 s is backward. Messages of 10 ms, after half of it and at its end.
    sent = [(10**8, 0.5), (10**8, 1.0)]
    result = scaling.predict(sent, 8, 0.1, RATES)
    assert result["step"] == pytest.approx(0.11) and result["exchange"] == pytest.approx(0.02)
    assert result["hidden"] == pytest.approx(0.5) and result["efficiency"] == pytest.approx(0.1 / 0.11)
    # Across two servers, an eighth of it twice over half of the ports' rate: 2.5 ms more.
    assert scaling.exchange_seconds(10**8, 16, RATES) == pytest.approx(0.0125)


def test_the_command_prints_both_forms(capsys):
    assert scaling.run(scaling._main, ["--cards", "8", "--utilization", "0.3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    one, several = result["predicted"]
    assert result["gradient_bytes"] == 4 * model_config(result["model"]).architecture.parameters()
    assert (one["messages"], several["messages"]) == (1, 5) and several["hidden"] > 0.5 > one["hidden"]
    assert scaling.run(scaling._main, ["--cards", "8"]) == 0
    assert "predicted" in capsys.readouterr().out
