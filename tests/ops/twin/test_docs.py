"""docs/twin.md has the table of rules as the headers have it."""

import re
from pathlib import Path

from neonext_ms.ops import twin

DOCS = Path(__file__).resolve().parents[3] / "docs" / "twin.md"


def test_the_table_of_rules():
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    expected = [(rule.id, ("*hazard*: " if rule.hazard else "") + rule.text) for rule in twin.rules().values()]
    assert rows == expected
