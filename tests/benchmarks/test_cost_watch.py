"""The regression watch with counting replaced: what counts, what fails, what is stored. valgrind is not run."""

import json

import pytest

from neonext_ms.benchmarks import cost_watch
from neonext_ms.benchmarks.cost_watch import PIECES, main


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Counts by extra piece, which a test may change; the baseline is a file of the test."""
    counts = {None: 1000, "exporter": 1100, "reader": 1200, "packers": 1300}
    monkeypatch.setattr(cost_watch, "count", lambda extra: counts[extra])
    monkeypatch.setattr(cost_watch, "BASELINE", tmp_path / "baseline.json")
    return counts


def test_update_then_compare(counted, capsys):
    assert main(["--update"]) == 0
    assert json.loads(cost_watch.BASELINE.read_text())["costs"] == {"exporter": 100, "reader": 200, "packers": 300}
    counted["reader"] = 1219
    capsys.readouterr()
    assert main([]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("reader")]
    assert row.split()[1:3] == ["219", "1.095"]


def test_a_piece_that_grew_fails_and_is_named(counted, capsys):
    main(["--update"])
    counted["packers"] = 1333
    assert main([]) == 1
    error = capsys.readouterr().err
    assert "packers (1.11 times" in error and "exporter" not in error and error.count("\n") == 1
    assert main(["--update"]) == 0


def test_a_baseline_of_other_versions_is_not_compared(counted, capsys):
    stored = {"versions": {**cost_watch.versions(), "numpy": "0.9"}, "costs": dict.fromkeys(PIECES, 1)}
    cost_watch.BASELINE.write_text(json.dumps(stored))
    assert main([]) == 0
    assert "not compared: the baseline is of other versions (numpy 0.9" in capsys.readouterr().out


def test_the_count_of_callgrind():
    assert cost_watch.parse_callgrind("==1== Collected : 654,338,678\n") == 654338678
    assert cost_watch.parse_callgrind("==1== nothing") is None


def test_the_pieces_run_and_counting_needs_valgrind(monkeypatch, capsys):
    cost_watch.work("exporter")
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([]) == 3
    assert "valgrind is not installed" in capsys.readouterr().err


def test_the_stored_baseline_is_whole():
    stored = json.loads(cost_watch.BASELINE.read_text())
    assert set(stored["costs"]) == set(PIECES) and set(stored["versions"]) == set(cost_watch.versions())
