from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from conftest import relative_l2
from neonext_ms.benchmarks import networks, rewrites
from neonext_ms.benchmarks.networks import folded
from neonext_ms.benchmarks.networks.builder import GraphBuilder
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import original_graph
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.runtime.base import onnx_session


def neonext():
    architecture = make_architecture(5, (1, 1, 2, 1), (8, 12, 16, 20), kernel_spec="4+7", linear_bias=True)
    return fold(original_graph(architecture, initial_arrays(architecture, rng=np.random.RandomState(0)), (64, 96)))[0]


def convnext():
    options = ((1, 1, 2, 1), (8, 12, 16, 20))
    plain = GraphBuilder("small", 1, (64, 96), keep=True)
    networks.Network("convnext", options, 0, 0.0, "", "transformers").add_to(plain)
    return folded.fold(folded.convnext("small", plain.weights.made, (64, 96), *options))


@pytest.mark.parametrize("make", [neonext, convnext])
def test_exact_rewrites_compute_the_same(make):
    graph = make()
    x = np.random.RandomState(0).standard_normal((2, 3, 64, 96)).astype(np.float32)
    expected = onnx_session(rewrites.emitted(graph).SerializeToString(), 1).run(None, {"input": x})[0]
    own = rewrites.emitted(graph)
    assert len(rewrites.rewrites(graph)) > 9
    for rewrite in rewrites.rewrites(graph):
        model = rewrite.model(graph)
        onnx.checker.check_model(model)
        found = onnx_session(model.SerializeToString(), 1).run(None, {"input": x})[0]
        assert found.shape == expected.shape
        deviation = relative_l2(found, expected)
        assert (deviation < 1e-5) if rewrite.exact else (deviation > 1e-6), rewrite.name
        assert rewrites.emitted(graph) == own, f"{rewrite.name} changed the graph"
        # Each one does something, on maps as large as it is for.
        if "56x56" not in rewrite.name:
            assert model.graph != own.graph, rewrite.name


def test_parts_of_the_hidden_channels():
    graph = neonext()
    whole = graph.count("gelu")
    assert rewrites.hidden_in_parts(graph, 2, 16 * 24).count("gelu") == whole + 1
    assert rewrites.hidden_in_parts(graph, 2, 1).count("gelu") == 2 * whole
    assert rewrites.hidden_in_parts(graph, 7, 1).count("gelu") == whole


def test_the_command(capsys, monkeypatch):
    def command(*argv):
        return rewrites.run(rewrites._main, list(argv)), *capsys.readouterr()

    assert json.loads(command("--model", "resnet18", "--image-size", "32", "--json")[1]) == {"resnet18": []}
    code, _, err = command("--model", "resnet19")
    assert code == 1 and "did you mean resnet18" in err
    assert command("--batch", "dynamic")[0] == 2
    with pytest.raises(SystemExit, match="2"):
        command("--batch", "1,0")
    monkeypatch.setattr(rewrites, "folded", lambda name, size: convnext())
    monkeypatch.setattr(rewrites, "_CONVNEXT", rewrites._CONVNEXT[:2])
    monkeypatch.setattr(rewrites, "_COMMON", rewrites._COMMON[-1:])
    code, out, err = command("--model", "small", "--batch", "1,2", "--rounds", "3")
    assert code == 0, err
    assert out.count("LayerNorm in steps") == 2 and "another function" in out
    (rows,) = json.loads(command("--model", "small", "--batch", "1", "--rounds", "3", "--json")[1]).values()
    assert [row["exact"] for row in rows] == [False, True, True]
    assert all(row["batches"]["1"]["low"] <= row["batches"]["1"]["median_ratio"] for row in rows)
