"""`neonext-plot --figure`: what the pictures of the paper show, against the reference."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conftest import DATA
from neonext_ms.benchmarks.pictures import geometry, matrices
from neonext_ms.commands import plot
from neonext_ms.models.published import ACCURACIES
from neonext_ms.models.registry import PUBLISHED
from neonext_ms.ops.spec import NeoCellSpec


def _run(capsys, *argv):
    pytest.importorskip("matplotlib")
    try:
        code = plot.main([str(a) for a in argv])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "size"),
    [("kernel=4,shift=1", (9, 7)), ("kernel_a=3,kernel_b=2,shift_a=2", (8, 5)),
     ("h_in=3,h_out=2,w_in=2,w_out=3", (6, 6)), ("h_in=1,h_out=2,w_in=2,w_out=1", (3, 7))],
)  # fmt: skip
def test_blocks_are_those_of_the_full_matrices(text, size):
    group = geometry.parse_spec(text)
    rows = geometry._rows(group, size)
    ones = [np.ones(shape) for shape in (group.shape_a, (group.channels, group.w_out, group.w_in))]
    height, width = NeoCellSpec(group).output_size(*size)
    full_a = group.axis_a.block_diagonal(ones[0], size[0], height)
    full_b = group.axis_b.block_diagonal(ones[1], size[1], width).swapaxes(1, 2)
    assert len(rows) == group.channels
    for row, a, b in zip(rows, full_a, full_b, strict=True):
        np.testing.assert_array_equal(row["A"] >= 0, a > 0)
        np.testing.assert_array_equal(row["B"] >= 0, b > 0)
        # An output and an input lie in patches of the same number exactly where the output depends on the input.
        depends = np.einsum("ij,kl->iljk", a, b) > 0
        np.testing.assert_array_equal(row["Y"][:, :, None, None] == row["X"], depends | (row["Y"] < 0)[..., None, None])


@pytest.mark.parametrize("figure", ["1", "2", "3", "4", "5", "receptive-field"])
def test_every_figure_is_drawn(figure, tmp_path, capsys):
    subject = {"5": [DATA / "digits_64.pt"], "receptive-field": ["neonext_t", "--map", "64"]}.get(figure, [])
    code, out, err = _run(capsys, "--figure", figure, *subject, "--output", tmp_path / "x.png", "--json")
    assert code == 0, err
    assert json.loads(out)["figure"] == figure and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert _run(capsys, "--figure", figure, *subject, "--output", tmp_path / "x.png")[1].endswith("x.png\n")


def test_the_ablation_is_drawn_from_its_results(tmp_path, capsys):
    epochs = [{"epoch": 1, "loss": 2.0, "top1": 0.3}, {"epoch": 2, "loss": None, "top1": 0.1}]
    for value, diverged in (("neoinit", False), ("normal", True)):
        trial = {"value": value, "seed": 0, "top1": 0.4, "loss": 1.5, "diverged": diverged, "epochs": epochs}
        (tmp_path / f"{value}-0").mkdir()
        (tmp_path / f"{value}-0" / "result.json").write_text(json.dumps(trial))
    code, out, err = _run(capsys, "--figure", "6", tmp_path, "--output", tmp_path / "x.png", "--json")
    summary = json.loads(out)["summary"]
    assert code == 0 and list(summary) == ["neoinit", "normal"], err
    assert summary["neoinit"]["curve"][0]["loss_mean"] == 2 and summary["normal"]["diverged"] == 1
    (tmp_path / "normal-0" / "result.json").write_text("{}")
    code, _, err = _run(capsys, "--figure", "6", tmp_path)
    assert code == 1 and f"{tmp_path}/normal-0/result.json: damaged, not the result of a run." in err
    assert _run(capsys, "--figure", "6", tmp_path / "normal-0")[0] == 1


def test_likeness_finds_the_pattern():
    rng = np.random.RandomState(0)
    named = matrices.patterns(7)
    for name, matrix in named.items():
        found = matrices.likeness(-3 * matrix + 0.01 * rng.standard_normal((5, 7, 7)))
        assert found[name] == 1 and sum(found.values()) == 1
    assert matrices.likeness(rng.standard_normal((50, 7, 7)))["none"] > 0.9
    assert matrices.likeness(np.zeros((2, 4, 4)))["none"] == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--figure", "2", "--spec", "kernel"], "--spec: not a NeoCell (got 'kernel'"),
        (["--figure", "2", "--spec", "kernel=4,shift=4"], "must be smaller than its matrix"),
        (["--figure", "2", "--spec", "kernel=40,shift=1"], "too many kinds of channels"),
        (["--figure", "2", "--map", "65"], "--map: too large to draw"),
        (["--figure", "2", "run"], "--figure 2: draws no run"),
        (["--figure", "1", "--spec", "kernel=4"], "--spec is for figures 2 to 4"),
        (["--figure", "5"], "draws one checkpoint"),
        (["--figure", "1", "--ema"], "are for the checkpoint of --figure 5"),
        (["--figure", "receptive-field", "neonext_q"], "unknown model"),
        (["--map", "8", "run"], "--spec and --map need --figure"),
        ([], "expected folders of runs, or --figure"),
    ],
)
def test_wrong_usage_is_explained(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(capsys, *argv)
    assert code == 2 and message in err and not list(tmp_path.iterdir())


def test_published_accuracies_agree_with_the_published_counts():
    counts = {(p.model.partition(".")[0][-1].upper(), p.quantity, p.image_size): p.published for p in PUBLISHED}
    for row in ACCURACIES:
        if row.family == "NeoNeXt":
            size = row.name.rpartition("-")[2]
            readme = 384 if size == "L" else 224
            assert row.source.startswith("README") and 1e6 * row.parameters == pytest.approx(
                next(p.published for p in PUBLISHED if p.source == row.source and p.quantity == "parameters"
                     and p.image_size == readme and p.model.startswith(f"neonext_{size.lower()}."))
            )  # fmt: skip
            if row.multiply_adds:
                assert 1e9 * row.multiply_adds == counts[size, "multiply_adds", row.image_size]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["1", "--map", "8"], "--map is for figures 2 to 4"),
        (["1", "--output", "weights.pt"], "ends in .png"),
        (["4", "--spec", "kernel=4,kernel=5"], "given twice"),
        (["4", "--spec", "kernel=\u0664"], "not a NeoCell"),
        (["4", "--spec", "h_in=1,h_out=64,w_in=1,w_out=64", "--map", "64"], "the output is too large to draw"),
        (["4", "--spec", "h_in=99,h_out=1,w_in=1,w_out=1"], "which is empty"),
        (["receptive-field", "--map", "1024"], "at most 512x512"),
    ],
)
def test_what_cannot_be_drawn_is_wrong_usage(arguments, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(capsys, "--figure", *arguments)
    assert code == 2 and problem in err and not list(tmp_path.iterdir())
