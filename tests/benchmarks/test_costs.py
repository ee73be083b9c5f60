from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings

from neonext_ms.benchmarks import costs, networks
from neonext_ms.commands import info
from neonext_ms.common.errors import InputError
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import original_graph
from neonext_ms.export.lower import neocell_to_matmul
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.models.registry import model_config
from networks import networks as random_networks


@pytest.mark.parametrize("name", ["convnext_t", "resnet18", "resnet50"])
def test_published_counts_of_the_peers(name):
    published = networks.NETWORKS[name].multiply_adds
    graph = networks.deploy_graph(name)
    counted = costs.total(costs.of_graph(graph))
    # Folding adds nothing but the depthwise 1x1 convolution behind the stem of ConvNeXt.
    assert counted.multiply_adds / 1e9 == pytest.approx(published, abs=6e-4)
    assert counted.weight_bytes == pytest.approx(4 * networks.NETWORKS[name].parameters, rel=0.01)


def test_t_counts_as_neonext_info_counts(capsys):
    info.main(["neonext_t.released_224", "--json"])
    facts = json.loads(capsys.readouterr().out)
    architecture = model_config("neonext_t.released_224").architecture
    graph = original_graph(architecture, initial_arrays(architecture, rng=np.random.RandomState(0)), (224, 224))
    for network, key in ((graph, "multiply_adds"), (neocell_to_matmul(graph), "multiply_adds_block_diagonal")):
        assert costs.total(costs.of_graph(network)).multiply_adds == facts[key]
    folded = costs.of_graph(fold(graph)[0], batch=8, itemsize=2)
    # A merged downsampling costs what its 1x1 convolution did; its NeoCell is gone.
    merged = sum(architecture.downsample_spec(i).multiply_adds(*architecture.maps((224, 224))[i]) for i in range(3))
    assert costs.total(folded).multiply_adds == 8 * (facts["multiply_adds"] - merged)
    stem = folded[0]
    assert (stem.op, stem.multiply_adds) == ("conv", 8 * 56 * 56 * 96 * 48)
    assert (stem.weight_bytes, stem.read_bytes, stem.written_bytes) == (
        2 * (96 * 48 + 96),
        2 * 8 * 3 * 224 * 224,
        2 * 8 * 96 * 56 * 56,
    )
    assert stem.bytes == stem.weight_bytes + stem.read_bytes + stem.written_bytes


@settings(max_examples=20, deadline=None)
@given(random_networks())
def test_any_network_counts_as_its_architecture(case):
    architecture, arrays, size = case
    graph = original_graph(architecture, arrays, size)
    assert costs.total(costs.of_graph(graph)).multiply_adds == architecture.multiply_adds(size)
    for cost in costs.of_graph(graph):
        assert cost.read_bytes > 0 and cost.written_bytes > 0


def test_refusals():
    graph = networks.deploy_graph("resnet18", image_size=(32, 32))
    with pytest.raises(InputError, match=r"batch must be at least 1 \(got 0\)"):
        costs.of_graph(graph, 0)
    with pytest.raises(InputError, match="itemsize"):
        costs.of_graph(graph, 1, 0)
