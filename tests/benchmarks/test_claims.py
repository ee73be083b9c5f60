"""The paper's claims: that the compared forms are the same operator, that counts are those of the equations, and that
the commands run; never how long anything takes."""

import json

import numpy as np
import onnxruntime
import pytest

from neonext_ms.benchmarks.claims import command, complexity, forms, share
from neonext_ms.export.source import Source
from neonext_ms.ops import reference
from neonext_ms.ops.spec import NeoCellSpec


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    """Nothing here is measured, so nothing has to be warm."""
    monkeypatch.setattr("neonext_ms.benchmarks.measure.WARM_UP_ROUNDS", 1)


def run(model, x):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {forms.INPUT: x})[0]


def test_the_forms_of_a_neocell_agree():
    generator = np.random.default_rng(0)
    shape, k = (2, 5, 12, 8), 4
    x = generator.standard_normal(shape, np.float32)
    a, b = generator.standard_normal((2, 5, k, k), np.float32)
    spec = NeoCellSpec({"kernel": k, "channels": 5, "shift": 0})
    whole = spec.matrices([a], [b], 12, 8)
    expected = reference.forward_patchwise(x, [a], [b], spec)
    for model in (forms.block_diagonal(*whole, shape), forms.patchwise(a, b, shape)):
        np.testing.assert_allclose(run(model, x), expected, rtol=0, atol=1e-4)


def test_depthwise_keeps_the_map():
    kernels = np.zeros((3, 4, 4), np.float32)
    kernels[:, 1, 1] = 2
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 7), np.float32)
    np.testing.assert_allclose(run(forms.depthwise(kernels, x.shape), x), 2 * x, atol=1e-6)


@pytest.mark.parametrize("k", [1, 4, 7])
def test_im2col_is_the_depthwise_convolution(k):
    generator = np.random.default_rng(0)
    kernels, x = generator.standard_normal((3, k, k), np.float32), generator.standard_normal((2, 3, 6, 9), np.float32)
    np.testing.assert_allclose(
        run(forms.im2col(kernels, x.shape), x), run(forms.depthwise(kernels, x.shape), x), atol=1e-5
    )


def test_memory_is_what_was_counted(capsys):
    assert command.main(["memory", "--maps", "28,27", "--kernels", "4", "--batch", "6", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["map_bytes"] == 4 * 6 * 192 * 28 * 28 and row["counted_bytes"]["im2col"] == 17 * row["map_bytes"]
    for name, peak in row["peak_bytes"].items():
        # The system counts resident pages in batches.
        assert peak > 0.9 * row["counted_bytes"][name], name
    assert row["peak_bytes"]["block-diagonal"] < 2.6 * row["map_bytes"]
    assert command.main(["memory", "--maps", "27", "--kernels", "4"]) == 1


@pytest.mark.parametrize(("k", "side"), [(2, 14), (7, 14), (14, 56)])
def test_counts_where_k_divides_the_map(k, side):
    found = complexity.counted(k, 8, side)
    assert found["neocell_counted"] == found["neocell"] == 2 * k
    assert found["depthwise"] == k * k and found["neocell_with_zeros"] == 2 * side


def test_a_cut_off_block_counts_less():
    assert complexity.counted(4, 8, 14)["neocell_counted"] < 8


def test_share_counts(digits):
    source = Source.from_checkpoint(digits, (1, 1, 0, 0))
    found = share.count(source, (64, 64))
    assert 0 < found["share"] < found["share_with_zeros"] < 0.2 and 0 < found["share_of_weights"] < 0.1


def printed(capsys, *arguments):
    assert command.main([*arguments, "--threads", "1", "--rounds", "1", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_complexity_command(capsys):
    found = printed(capsys, "complexity", "--kernels", "2,7,9", "--maps", "7")
    assert [row["kernel"] for row in found["rows"]] == [2, 7]
    assert all(row["neocell_ms"] > 0 and row["depthwise_ms"] > 0 for row in found["rows"])
    assert "2k multiply-adds" in found["claim"]
    assert any("map 7" in line for line in complexity.lines(found))


def test_patchwise_command(capsys):
    from neonext_ms.benchmarks.claims import patchwise

    found = printed(capsys, "patchwise", "--maps", "7", "--batch", "1")
    (row,) = found["rows"]
    assert len(row["ratios"]) == 5 and all(value > 0 for value in row["ms"].values())
    assert any("PyNative" in line for line in patchwise.lines(found))


def test_convnext_command(capsys, monkeypatch, digits):
    from neonext_ms.benchmarks import networks
    from neonext_ms.benchmarks.claims import convnext

    # The named networks take seconds to make; any two forms do for the plumbing.
    source = Source.from_checkpoint(digits, (1, 1, 0, 0))
    own = convnext.forms_of_source(source, (64, 64))

    def small(name, *, image_size, folded):
        assert name == "convnext_t"
        return own["neonext folded" if folded else "neonext plain"]

    monkeypatch.setattr(Source, "from_name", lambda name: source)
    monkeypatch.setattr(networks, "deploy_graph", small)
    found = printed(capsys, "convnext", "--batch", "1", "--image-size", "64")
    (row,) = found["rows"]
    assert set(row["ms"]) == {"neonext plain", "neonext folded", "convnext plain", "convnext folded"}
    assert any("images/s" in line for line in convnext.lines(found))


@pytest.mark.parametrize(
    "arguments",
    [[], ["speed"], ["complexity", "--rounds", "0"], ["patchwise", "--kernel", "5"], ["share", "--batch", "-1"],
     ["complexity", "--kernels", "x"]],
)  # fmt: skip
def test_usage(arguments):
    try:
        code = command.main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2


def test_bad_names(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["convnext", "--sizes", "q"])
    assert command.main(["share", "--models", "neonext_q"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
