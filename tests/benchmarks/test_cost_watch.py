"""The regression watch with counting replaced: what counts, what fails, what is stored. valgrind is not run."""

import json

import pytest

from neonext_ms.benchmarks import cost_watch
from neonext_ms.benchmarks.cost_watch import PIECES, compare, main
from neonext_ms.common.errors import InputError


@pytest.fixture
def counted(monkeypatch):
    """Counts by extra piece, which a test may change."""
    counts = {None: 1000, "exporter": 1100, "reader": 1200, "packers": 1300}
    monkeypatch.setattr(cost_watch, "count", lambda how, extra: counts[extra])
    monkeypatch.setattr(cost_watch.shutil, "which", lambda name: f"/usr/bin/{name}")
    return counts


def arguments(path):
    return ["--method", "callgrind", "--baseline", str(path), "--json"]


def test_update_then_compare(counted, tmp_path, capsys):
    path = tmp_path / "baseline.json"
    assert main([*arguments(path), "--update"]) == 0
    assert json.loads(path.read_text())["callgrind"]["costs"] == {"exporter": 100, "reader": 200, "packers": 300}
    counted["reader"] = 1219
    capsys.readouterr()
    assert main(arguments(path)) == 0
    rows = {row["piece"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["reader"]["ratio"] == pytest.approx(1.095) and not rows["reader"]["fails"]


def test_a_piece_that_grew_fails_and_is_named(counted, tmp_path, capsys):
    path = tmp_path / "baseline.json"
    main([*arguments(path), "--update"])
    counted["packers"] = 1333
    assert main(arguments(path)) == 1
    error = capsys.readouterr().err
    assert "packers (1.11 times" in error and "exporter" not in error and error.count("\n") == 1
    assert main([*arguments(path), "--update"]) == 0


def test_what_cannot_be_compared_is_said(counted, tmp_path, capsys):
    path = tmp_path / "none.json"
    assert main(["--method", "callgrind", "--baseline", str(path)]) == 0
    assert "not compared: the baseline has no figures by callgrind" in capsys.readouterr().out
    stored = {"callgrind": {"versions": {**cost_watch.versions(), "numpy": "0.9"}, "costs": dict.fromkeys(PIECES, 1)}}
    rows, reason = compare("callgrind", dict.fromkeys(PIECES, 100.0), stored)
    assert "numpy 0.9" in reason and not any(row.fails for row in rows)


@pytest.mark.parametrize("text", ["{", "[]", '{"perf": {}}', '{"perf": {"versions": {}, "costs": {"exporter": 1}}}'])
def test_damaged_baseline(text, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"b\.json"):
        cost_watch.read_baseline(path)


def test_counters_of_the_tools():
    assert cost_watch.parse_perf("12345,,instructions:u,1000,100.00,,\n") == 12345
    assert cost_watch.parse_perf("<not supported>,,instructions:u,0,100.00,,\n") is None
    assert cost_watch.parse_callgrind("==1== Collected : 654,338,678\n") == 654338678
    assert cost_watch.parse_callgrind("==1== nothing") is None


def test_the_pieces_run_and_the_ratio_needs_no_tool(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cost_watch, "REPEATS", 1)
    monkeypatch.setattr(cost_watch.shutil, "which", lambda name: None)
    cost_watch.work("exporter")
    assert main(["--baseline", str(tmp_path / "b.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "ratio" and all(row["cost"] > 0 for row in found["rows"])
    assert main(["--method", "callgrind"]) == 3
    assert main(["--method", "clock"]) == 2


def test_the_stored_baseline_is_whole():
    assert set(cost_watch.read_baseline(cost_watch.BASELINE)) == {"callgrind", "ratio"}
