"""Every rule of the simulator is broken by a small kernel; the error names the rule, the line and the numbers."""

import re
from pathlib import Path

import numpy as np
import pytest

from neonext_ms.ops import twin
from neonext_ms.ops.twin.build import INCLUDE

KERNELS = Path(__file__).with_name("kernels")
SOURCE = KERNELS / "rules.cpp"
DOCS = Path(__file__).resolve().parents[3] / "docs" / "operator.md"
# (id, text, "true" for a hazard) of every rule in the table of the headers.
RULES = re.findall(r'RULE\(\w+, "([\w-]+)", "([^"]+)", (true|false)\)', (INCLUDE / "twin" / "rules.h").read_text())


def _cases():
    entry, blocks, soc = None, 1, None
    for number, line in enumerate(SOURCE.read_text().splitlines(), 1):
        if found := re.match(r"KERNEL\((\w+)\)(?:.*// blocks: (\d+))?(?:.*// soc: (\w+))?", line):
            entry, blocks, soc = found[1], int(found[2] or 1), found[3] or "Ascend310P3"
        if found := re.search(r"// error: ([\w-]+) \| (.*)", line):
            yield pytest.param(entry, blocks, soc, number, found[1], found[2], id=entry)


CASES = list(_cases())


@pytest.fixture
def arguments():
    return [np.arange(4096, dtype=np.float16), np.full(4096, 7, np.float16), None]


def _kernel(entry, soc="Ascend310P3"):
    return twin.compile(SOURCE, soc=soc, entry=entry)


@pytest.mark.parametrize(("entry", "blocks", "soc", "line", "rule", "text"), CASES)
def test_a_mistake_is_an_error(entry, blocks, soc, line, rule, text, arguments):
    with pytest.raises(twin.SimulatorError) as caught:
        alone = {"isolated": True, "timeout": 0.3} if rule in ("crash", "time-out") else {}
        _kernel(entry, soc).launch(arguments, blocks=blocks, outputs=(1,), **alone)
    error = caught.value
    assert (error.rule, error.line, Path(error.file)) == (rule, line, SOURCE), str(error)
    assert text in error.finding.text
    assert f"{SOURCE}:{line}: " in str(error)
    assert np.all(arguments[1] == 7), "a kernel that breaks a rule leaves its outputs alone"


def test_every_rule_has_a_bad_kernel():
    assert {case.values[4] for case in CASES} == {name for name, _, _ in RULES}


def test_the_table_of_rules_in_the_docs():
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    assert rows == [(name, ("*hazard*: " if hazard == "true" else "") + text) for name, text, hazard in RULES]


@pytest.mark.parametrize("entry", ["copy_onto_a_fill", "set_for_nobody", "ub_never_written", "gm_read_back_at_once"])
def test_hazards_can_be_listed(entry, arguments):
    case = next(case for case in CASES if case.id == entry)
    counts = _kernel(entry).launch(arguments, blocks=1, outputs=(1,), hazards="report")
    assert [(found.rule, found.line) for found in counts["hazards"]] == [(case.values[4], case.values[3])]


def test_other_rules_are_never_only_listed(arguments):
    with pytest.raises(twin.SimulatorError, match="ub-bounds"):
        _kernel("ub_copy_past_the_end").launch(arguments, blocks=1, outputs=(1,), hazards="report")
