"""YAML read strictly: no key twice, no number that is not plain decimal, no object, no expansion without bound."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

from .errors import InputError
from .files import read_text
from .text import one_line

# Values after the expansion of aliases; a configuration has a few hundred.
MAX_VALUES = 20_000
# Values within values. The parser's own limit is Python's recursion, which other packages raise; and with brackets it
# takes seconds to reach, because all that are open are looked at for every one that opens.
_MAX_LEVELS = 50
# As Python writes it: a text such as 0x10 or +7 would otherwise become 16 or 7 where text is expected.
_PLAIN_INT = re.compile(r"0|-?[1-9][0-9]*")


def read_yaml(path: str | os.PathLike, example: str) -> Any:
    """Load a YAML file as plain values; nothing in it is executed.

    Args:
        path: file to read.
        example: a valid file of this kind, for the error message.

    Raises:
        InputError: the file cannot be read, or `parse_yaml` rejects it.
    """
    return parse_yaml(read_text(path), os.fspath(path), f"; see {example}")


def parse_yaml(text: str, name: str, advice: str = "") -> Any:
    """Parse YAML text as plain values: mappings, lists, text, numbers, booleans and null.

    Args:
        text: YAML document.
        name: where it comes from, for the error message.
        advice: end of the error message.

    Raises:
        InputError: the text is not YAML, gives a key twice, writes a whole number in another way than in plain decimal,
            has a tag, or expands to more than `MAX_VALUES` values. The message has the line if it is known.
    """
    import yaml

    try:
        value = yaml.load(text, Loader=_loader())
        too_large = _count(value, MAX_VALUES) < 0
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or one_line(error)
        raise InputError(f"{where}: not valid YAML ({problem}){advice}") from error
    if too_large:
        raise InputError(f"{name}: its aliases expand to more than {MAX_VALUES:,} values{advice}")
    return value


def _count(value: Any, budget: int) -> int:
    """Return what is left of a budget of values after counting `value`; negative if it was exceeded."""
    budget -= 1
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        if budget < 0:
            break
        budget = _count(child, budget)
    return budget


@cache
def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        """A safe loader without YAML 1.1's surprises."""

        level = 0

        def fetch_flow_collection_start(self, token_class):
            self.check_level(self.flow_level, self.get_mark())
            super().fetch_flow_collection_start(token_class)

        def check_level(self, level, mark):
            if level >= _MAX_LEVELS:
                raise yaml.scanner.ScannerError(None, None, f"more than {_MAX_LEVELS} levels", mark)

        def compose_node(self, parent, index):
            event = self.peek_event()
            self.check_level(self.level, event.start_mark)
            tag = getattr(event, "tag", None)
            if tag and not isinstance(event, yaml.AliasEvent):
                raise yaml.composer.ComposerError(None, None, f"a tag, {tag[:60]}, is not allowed", event.start_mark)
            self.level += 1
            node = super().compose_node(parent, index)
            self.level -= 1
            return node

        def construct_mapping(self, node, deep=False):
            keys = set()
            for key, value in node.value:
                if key.tag == "tag:yaml.org,2002:merge" and isinstance(value, yaml.SequenceNode):
                    self.check_merged(value.value)
                # The keys of a mapping that `<<` merges may be overridden, but `<<` itself is a key.
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"the key {key.value[:60]!r} is given twice", key.start_mark
                        )
                    keys.add(key.value)
            return super().construct_mapping(node, deep)

        def check_merged(self, nodes):
            # The first of several mappings should win, but in PyYAML that depends on its version and on the key.
            owners: dict[str, yaml.MappingNode] = {}
            for node in nodes:
                if isinstance(node, yaml.MappingNode):
                    self.flatten_mapping(node)
                    for key, _ in node.value:
                        if isinstance(key, yaml.ScalarNode) and owners.setdefault(key.value, node) is not node:
                            raise yaml.constructor.ConstructorError(
                                None, None, f"the key {key.value[:60]!r} is in two merged mappings", key.start_mark
                            )

        def construct_yaml_int(self, node):
            # 010 is 8, 12:30 is 750 and 2026_11_28 is 20261128 in YAML 1.1 only: no reader expects that.
            if not _PLAIN_INT.fullmatch(node.value):
                raise _not_decimal(node)
            return super().construct_yaml_int(node)

        def construct_yaml_float(self, node):
            if ":" in node.value or "_" in node.value:
                raise _not_decimal(node)
            return super().construct_yaml_float(node)

    def _not_decimal(node):
        problem = (
            f"{node.value[:60]} is octal, sexagesimal, has underscores or is not plain decimal; write a decimal "
            "number, or quote text"
        )
        return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    # A date stays the text that it is, and `1e-3` is a number as in YAML 1.2.
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
    )
    return Loader
