"""Labelled images as a tree of folders, one folder per class, as torchvision's `ImageFolder` reads it."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained, parse_json, read_text
from neonext_ms.common.text import list_names, printable, shorten
from neonext_ms.common.yaml_file import parse_yaml

from .images import SUFFIXES


@dataclass(frozen=True)
class ImageFolder:
    """The images below `root/<class>/`.

    Attributes:
        root: root folder.
        classes: names of the class folders, sorted.
        files: paths relative to `root`, sorted within each class.
        folders: index in `classes` of the class of each file.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    folders: tuple[int, ...]

    def subset(self, limit: int | None) -> ImageFolder:
        """Return at most `limit` of the images, spread evenly over all of them, so that every class occurs."""
        if limit is None or limit >= len(self.files):
            return self
        chosen = [i * len(self.files) // limit for i in range(limit)]
        files, folders = tuple(self.files[i] for i in chosen), tuple(self.folders[i] for i in chosen)
        return ImageFolder(self.root, self.classes, files, folders)


def find_images(root: str | os.PathLike) -> ImageFolder:
    """Find the images in `root/<class>/**/` by their suffixes, in any case; hidden files and folders are skipped.

    Raises:
        InputError: the folder does not exist, has no class folders, or a class has no images.
    """
    root = Path(root)
    with explained(root):
        if root.is_file():
            raise InputError(f"{root}: this is a file (expected one folder per class, root/<class>/*.png)")
        entries = sorted(os.listdir(root))
    classes = [name for name in entries if not name.startswith(".") and (root / name).is_dir()]
    if not classes:
        if any(_is_image(name) for name in entries):
            problem = "images lie directly in it. Put them into one folder per class, or use neonext-predict."
        else:
            problem = "it has no folders. Check the path." if entries else "it is empty. Check the path."
        raise InputError(f"{root}: expected one folder of images per class (root/<class>/*.png), but {problem}")
    images = [_images_below(root, name) for name in classes]
    if empty := [name for name, files in zip(classes, images, strict=True) if not files]:
        raise InputError(
            f"{root}: no images in {len(empty)} of {len(classes)} class folders (expected files with the suffixes "
            f"{' '.join(SUFFIXES)}). Fill or remove:\n{list_names(map(printable, empty))}"
        )
    files = tuple(file for names in images for file in names)
    folders = tuple(i for i, names in enumerate(images) for _ in names)
    return ImageFolder(root, tuple(classes), files, folders)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _images_below(root: Path, name: str) -> list[str]:
    images = []

    def stop(error: OSError):
        raise error

    def place(folder: str | os.PathLike) -> tuple[int, int]:
        status = os.stat(folder)
        return status.st_dev, status.st_ino

    with explained(root / name):
        # A link to a folder above has the images of all classes, and would be followed without end.
        seen = set(map(place, (root, *(root / name).resolve().parents)))
        for folder, subfolders, names in os.walk(root / name, followlinks=True, onerror=stop):
            if place(folder) in seen:
                subfolders.clear()
                continue
            seen.add(place(folder))
            subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
            images += [(folder, file) for file in sorted(names) if _is_image(file)]
    # torchvision sorts by folder first, then by name.
    return [os.path.relpath(os.path.join(folder, file), root) for folder, file in sorted(images)]


# Rule -> its name in a sentence.
CLASS_RULES = {"by-name": "by name", "by-number": "by number", "sorted": "in sorted order"}
_NUMBER = re.compile(r"[0-9]{1,9}")
# What `str.strip` removes, and the invisible marks that editors and joined files leave.
_BLANKS = " \t\r\n\v\f\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u3000\u200b\ufeff"
_DECORATIONS = {
    "its number": re.compile(r"([0-9]{1,9})(?:\s|\s?[:;,=.)|]).*"),
    "a number behind it": re.compile(r".*[:;,=|\t]\s*([0-9]{1,9})"),
    "its synset": re.compile(r"n[0-9]{8}[\s:;,].*"),
    "quotation marks": re.compile(r"(?:'.*'|\".*\"),?"),
    "a comma behind it": re.compile(r".*,"),
    "a dash before it": re.compile(r"- .*"),
}
# A line of comments, the columns of a table, or a key of YAML.
_HEADING = re.compile(r"#.*|.*[:;,|\t].*")


def match_classes(
    folders: Sequence[str],
    classes: int,
    labels: Sequence[str] | None = None,
    rule: str | None = None,
    source: str = "the folder",
    option: str | None = "--classes ",
) -> tuple[list[int], str]:
    """Return the class of each class folder; training, resuming, fine-tuning and validation all call this.

    If a folder is named by a label, all of them must be. Otherwise the folders are matched by number if all names are
    whole numbers below `classes`, else by their order if there are as many folders as classes. Names are compared
    without blanks at their ends, and if they do not all agree so, without regard to case, `_` and `-`.

    Args:
        folders: names of the class folders, in their order.
        classes: number of classes.
        labels: recorded names of the classes, if there are any.
        rule: key of `CLASS_RULES`, or None to choose as above.
        source: name of the folder in messages.
        option: option that sets the rule, for the messages; None where there is none.

    Returns:
        One class per folder, and the rule that applied.

    Raises:
        InputError: only some folders are named by a label, or the rule does not apply, or none does.
    """
    names, places, unnamed = _named(folders, labels or ())
    plain = list(map(_plain, folders))
    numbers = [int(name) if _NUMBER.fullmatch(name) else classes for name in plain]
    numbered = max(numbers) < classes and len(set(numbers)) == len(numbers)
    # Numbers that sort differently as text were hardly meant to be sorted as text. Nor were names with numbers in them
    # where there are labels, whose order they have to meet.
    counted = bool(labels) or all(map(_NUMBER.fullmatch, plain))
    misleading = counted and plain != sorted(plain, key=_by_numbers)
    if rule is None:
        if len(unnamed) < len(folders):
            rule = "by-name"
        elif numbered:
            rule = "by-number"
        elif len(folders) == classes and not misleading:
            rule = "sorted"
    if rule == "by-name" and places and not unnamed and len(set(names)) == len(names):
        return [places[name][0] for name in names], rule
    if rule == "by-number" and numbered:
        return numbers, rule
    if rule == "sorted" and len(folders) == classes:
        return list(range(classes)), rule
    raise InputError(_mismatch(folders, classes, places, unnamed, numbers, rule, source, option))


def is_named(folders: Sequence[str], labels: Sequence[str]) -> bool:
    """Return whether any of the class folders is named by a label."""
    return len(_named(folders, labels)[2]) < len(folders)


def _named(folders: Sequence[str], labels: Sequence[str]) -> tuple[list[str], dict[str, list[int]], list[str]]:
    """Return folders in a form for comparison, labels in it with their places, and folders that no one label names.

    The form is the strictest of those in which most folders are named.
    """
    forms = []
    for form in (str, _plain, _loose):
        names = [form(name) for name in folders]
        places: dict[str, list[int]] = {}
        for place, label in enumerate(labels):
            places.setdefault(form(label), []).append(place)
        unnamed = [folder for folder, name in zip(folders, names, strict=True) if len(places.get(name, ())) != 1]
        forms.append((names, places, unnamed))
    return min(forms, key=lambda named: len(named[2]))


def _mismatch(
    folders, classes: int, places: dict, unnamed, numbers, rule: str | None, source: str, option: str | None
) -> str:
    """Return the message about class folders that do not match."""
    if rule == "by-name" and not places:
        return (
            f"{source}: the class folders cannot be matched by name, since no labels are recorded. Choose another rule."
        )
    if rule == "by-name" and not unnamed:
        return f"{source}: two class folders have the same name, apart from blanks or case. Rename one of them."
    if rule == "by-name":
        choice = f", or choose another rule with {option}by-number or {option}sorted" if option else ""
        return (
            f"{source}: {len(unnamed)} of {len(folders)} class folders are not named by one of the {len(places)} "
            f"recorded labels (or the label occurs twice). Rename or remove them{choice}:\n"
            f"{list_names(map(printable, unnamed))}"
        )
    wrong = [name for name, number in zip(folders, numbers, strict=True) if number >= classes]
    reasons = []
    if rule != "by-number":
        reasons.append(f"there are {len(folders)} class folders for {classes} classes")
    if rule is None:
        reasons.append("none of them is named by a recorded label" if places else "no labels are recorded")
    if rule != "sorted" and wrong:
        reasons.append(f"{printable(wrong[0])!r} is not a number from 0 to {classes - 1}")
    elif rule != "sorted":
        reasons.append("two folders have the same number")
    advice = "Name the folders by label or by class number, or provide one folder per class."
    if rule is None and len(folders) == classes:
        reasons.append("their numbers sort differently as text")
    if rule is None and option and len(folders) == classes:
        advice = f"Name the folders by label or by class number, or sort them as text with {option}sorted."
    return f"{source}: the classes of the folders cannot be determined: {'; '.join(reasons)}. {advice}"


def _plain(name: str) -> str:
    """Return a name as it is compared: without blanks at its ends, accents composed (macOS decomposes them)."""
    return unicodedata.normalize("NFC", name).strip(_BLANKS)


def _loose(name: str) -> str:
    """Return a name as it is compared if not all names agree otherwise."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_-]+", " ", _plain(name)).casefold())


def _by_numbers(name: str) -> str:
    """Return a key that sorts names by the numbers in them: `class 2` before `class 10`."""
    return re.sub(r"[0-9]+", lambda number: number[0].zfill(9), name)


def rule_note(source: str, rule: str) -> str:
    """Return the note on the rule of `CLASS_RULES` that gave the class folders of `source` their classes."""
    return f"{source}: classes of the folders taken {CLASS_RULES[rule]}"


def read_labels(path: str | os.PathLike, tell: Callable[[str], None] = lambda text: None) -> list[str]:
    """Read the names of the classes, in their order.

    Args:
        path: a text file with one name per line, a JSON or YAML file with a list or a map (`{"0": "cat"}` or
            `{"cat": 0}`), also below `names` or `id2label`, or a folder with one folder per class, in the order of
            `match_classes`.
        tell: function that is called with the rule that ordered the folders.

    Raises:
        InputError: the file cannot be read, has an empty line before its end, an empty name, a control character, or
            lines with more than a name. Two classes may have one name, as "crane" in ImageNet; such folders cannot be
            matched by name.
    """
    source = os.fspath(path)
    if os.path.isdir(path):
        folders = find_images(path).classes
        numbers, rule = match_classes(folders, len(folders), rule=order_rule(folders))
        tell(rule_note(source, rule))
        return [folders[numbers.index(number)] for number in range(len(folders))]
    text = read_text(path)
    if source.lower().endswith((".yaml", ".yml")):
        labels = _mapped_labels(parse_yaml(text, source), source)
    elif text.lstrip().startswith(("[", "{")) or source.lower().endswith(".json"):
        labels = _mapped_labels(parse_json(text, source, "a list or map of labels in JSON"), source)
    else:
        labels = [line.strip(_BLANKS) for line in text.rstrip().split("\n")]
        # All lines, or all below a heading.
        parts = [labels, *([labels[1:]] if _HEADING.fullmatch(labels[0]) else [])]
        fitting = ((what, part[0]) for what, pattern in _DECORATIONS.items() for part in parts if _fits(pattern, part))
        if decoration := next(fitting, None):
            raise InputError(
                f"{source}: every line has {decoration[0]} besides the label (got {shorten(decoration[1])}). Remove "
                "what is no part of the names, or write them as JSON."
            )
        if labels[0].startswith("#") and not all(label.startswith("#") for label in labels):
            raise InputError(f"{source}: begins with a comment (got {shorten(labels[0])}). Remove what is no label.")
    if labels == [""]:
        raise InputError(f"{source}: has no labels (expected one per line)")
    for number, label in enumerate(labels, 1):
        if not label:
            raise InputError(f"{source}: label {number} is empty. Remove the empty line, or name the class.")
        if control := next((c for c in label if unicodedata.category(c) in ("Cc", "Zl", "Zp")), None):
            raise InputError(
                f"{source}: label {number} has the control character {control!r} (got {shorten(label)}). Write one "
                "name per line, in UTF-8."
            )
    return labels


def check_order(labels: Sequence[str], recorded: Sequence[str], source: str) -> None:
    """Check that labels which replace recorded ones do not give a recorded name to another class.

    Raises:
        InputError: one does; `source` names the file of the recorded labels.
    """
    classes: dict[str, list[int]] = {}
    for number, label in enumerate(recorded):
        classes.setdefault(_plain(label), []).append(number)
    for number, label in enumerate(labels):
        known = classes.get(_plain(label), [number])
        if number not in known:
            raise InputError(
                f"{source}: the new labels have the recorded ones in another order ({shorten(label)} is class "
                f"{known[0]}, got {number}). Leave the labels out, or put them into the recorded order."
            )


def _fits(pattern: re.Pattern[str], lines: Sequence[str]) -> bool:
    """Return whether all of at least two lines match; numbers that are captured have to count the lines, or to grow."""
    matches = [match for match in map(pattern.fullmatch, lines) if match]
    if len(lines) < 2 or len(matches) < len(lines):
        return False
    if not pattern.groups:
        return True
    # Of `5 euro`, `10 euro` and `20 euro`, the numbers are what names the classes.
    if 2 * len({match.string.replace(match[1], "", 1) for match in matches}) <= len(lines):
        return False
    numbers = [int(match[1]) for match in matches]
    counts = sorted(numbers) in (list(range(len(lines))), list(range(1, len(lines) + 1)))
    return counts or all(one < other for one, other in pairwise(numbers))


def order_rule(folders: Sequence[str]) -> str:
    """Return the rule for folders that define the classes: "by-number" if they are numbered from 0, else "sorted"."""
    numbers = {int(name) for name in map(_plain, folders) if _NUMBER.fullmatch(name)}
    return "by-number" if numbers == set(range(len(folders))) else "sorted"


def _mapped_labels(values: object, source: str) -> list[str]:
    """Return the labels of a list, of a map from numbers to names, or of one from names to numbers."""
    if isinstance(values, dict):
        # The data set of Ultralytics, the configuration of Hugging Face.
        inner = (values[key] for key in ("names", "id2label") if isinstance(values.get(key), (dict, list)))
        values = next(inner, values)
    if isinstance(values, dict):
        # JSON has numbers as text.
        pairs = [(str(key) if type(key) is int else key, value) for key, value in values.items()]
        if all(type(value) is int for value in values.values()):
            pairs = [(str(number), name) for name, number in pairs]
        numbered = {int(key): name for key, name in pairs if isinstance(key, str) and _NUMBER.fullmatch(key)}
        if len(numbered) != len(pairs) or set(numbered) != set(range(len(pairs))):
            raise InputError(f"{source}: wrong numbers of the labels (expected each from 0 to {len(pairs) - 1} once)")
        values = [numbered[number] for number in range(len(numbered))]
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise InputError(f'{source}: no labels (got {shorten(values)}, expected ["cat", ...] or {{"0": "cat", ...}})')
    return [value.strip(_BLANKS) for value in values]
