"""README and docs: every command line parses, every link leads somewhere."""

from __future__ import annotations

import re

import pytest

from docs_check import PAGES, command_lines, parse

LINES = [line for page in PAGES for line in command_lines(page)]


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.page}:{line.number}")
def test_a_command_of_a_page_parses(line):
    assert parse(line) is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    # A page of this repository that a text names without a link.
    named = re.findall(r"(?<![\w/])docs/[\w-]+\.(?:md|png)", text)
    assert [name for name in named if not (page.parents[page.parent.name == "docs"] / name).exists()] == []


def test_the_program_for_boards_is_the_one_of_the_kit():
    docs = next(page for page in PAGES if page.name == "deploy.md")
    source = docs.parents[1] / "benchmarks" / "board" / "kit" / "cpp" / "classify.cpp"
    assert f"```cpp\n{source.read_text(encoding='utf-8')}```\n" in docs.read_text(encoding="utf-8")
