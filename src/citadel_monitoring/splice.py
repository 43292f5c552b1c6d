"""Pieces of our own in a configuration that is someone else's: put in as text, between marks, and taken out again.

The owner's file is parsed to find the places, and never written anew by a YAML library: comments, quotes and order
stay, and without our pieces it is the same file, byte for byte.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

__all__ = ["Piece", "SpliceError", "covered", "insert", "items", "remove"]

BEGIN = "# BEGIN citadel (managed; its owner is the LLM servers' playbook)"
END = "# END citadel"
_LAST_NEWLINE = "# (the file ended without a line's end)"


@dataclass(frozen=True)
class Piece:
    """Entries for the list at a path of keys, at its end or before all that is there."""

    path: tuple[str, ...]
    entries: Sequence[Any]
    first: bool = False


class SpliceError(ValueError):
    """A file that nothing can be put into; the text says where, and what to do by hand."""


def remove(text: str) -> str:
    """The file without our pieces."""
    kept: list[str] = []
    inside = trimmed = False
    for line in text.splitlines(keepends=True):
        word = line.strip()
        if word == BEGIN:
            inside = True
        elif inside and word == _LAST_NEWLINE:
            trimmed = True
        elif word == END and inside:
            inside = False
        elif not inside:
            kept.append(line)
    if inside:
        raise SpliceError(f"a piece begins with {BEGIN!r} and does not end: restore the file from its owner's copy")
    found = "".join(kept)
    return found[:-1] if trimmed else found


def items(text: str, path: Sequence[str]) -> list[Any]:
    """The list at a path of keys; empty where there is none."""
    found = yaml.safe_load(text) or {}
    for key in path:
        found = (found or {}).get(key) if isinstance(found, dict) else None
    return list(found or [])


def covered(text: str, key: str, path: str, folder: str) -> bool:
    """Whether a pattern of the list `key` takes the file `path` in; relative patterns are meant from `folder`."""
    patterns = [posixpath.join(folder, str(one)) for one in items(text, [key])]
    return any(posixpath.dirname(one) == posixpath.dirname(path) and fnmatch.fnmatchcase(path, one) for one in patterns)


def insert(text: str, pieces: Sequence[Piece]) -> str:
    """The file with the pieces put in, in the place of those that it may have had.

    A list that is missing is made, as far as its parents are there. Raises SpliceError where the file writes the place
    in one line (`[]`, `{}`), which no line can be put into.
    """
    text = remove(text)
    tail = ""
    if text and not text.endswith("\n"):
        text, tail = text + "\n", _LAST_NEWLINE
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise SpliceError("the file is empty or holds no mapping: is it the right one?")
    lines = text.splitlines(keepends=True)
    blocks = [_place(root, lines, piece) for piece in pieces if piece.entries]
    # From the last line on, so that numbers stay; of those before the same line, what is deeper inside comes first.
    order = sorted(range(len(blocks)), key=lambda index: (-blocks[index][0], blocks[index][1], -index))
    for number, _, block in (blocks[index] for index in order):
        lines.insert(number, block)
    if tail and blocks:
        last = max(number for number, _, _ in blocks)
        index = next(n for n, line in enumerate(lines) if n >= last and line.lstrip().startswith(BEGIN))
        lines[index] = lines[index].replace(BEGIN, f"{BEGIN}\n{tail}", 1)
    return "".join(lines)


def _place(root: yaml.MappingNode, lines: list[str], piece: Piece) -> tuple[int, int, str]:
    """The number of the line before which a block goes, how deep inside it lies, and the block."""
    node: yaml.Node = root
    path, entries = piece.path, piece.entries
    for depth, key in enumerate(path):
        if not isinstance(node, yaml.MappingNode) or node.flow_style:
            raise _by_hand(path[:depth], entries)
        value = next((value for name, value in node.value if name.value == key), None)
        if value is None:
            made: Any = list(entries)
            for missing in reversed(path[depth:]):
                made = {missing: made}
            text = yaml.safe_dump(made, sort_keys=False, width=1000)
            return _end(node, lines), depth, _block(text, _column(node))
        if isinstance(value, yaml.ScalarNode) and value.value in ("", "~", "null") and depth == len(path) - 1:
            own = next(name for name, value in node.value if name.value == key)
            if value.value:
                raise _by_hand(path, entries)
            return own.start_mark.line + 1, len(path), _dump(entries, own.start_mark.column + 2)
        node = value
    if not isinstance(node, yaml.SequenceNode) or node.flow_style:
        raise _by_hand(path, entries)
    # A sequence's own mark is its first dash.
    column = node.start_mark.column
    return (node.start_mark.line if piece.first else _end(node, lines)), len(path), _dump(entries, column)


def _end(node: yaml.Node, lines: Sequence[str]) -> int:
    """The number of the line after a block's last one that is neither empty nor a comment."""
    number: int = node.end_mark.line if node.end_mark.column == 0 else node.end_mark.line + 1
    number = min(number, len(lines))
    while number > node.start_mark.line + 1 and (
        not lines[number - 1].strip() or lines[number - 1].lstrip().startswith("#")
    ):
        number -= 1
    if lines[number - 1].strip() in ("...", "---"):
        number -= 1
    return number


def _column(node: yaml.MappingNode) -> int:
    return int(node.value[0][0].start_mark.column) if node.value else 0


def _dump(entries: Sequence[Any], indent: int) -> str:
    return _block(yaml.safe_dump(list(entries), sort_keys=False, width=1000), indent)


def _block(text: str, indent: int) -> str:
    inner = "".join(f"{' ' * indent}{line}" for line in text.splitlines(keepends=True))
    return f"{' ' * indent}{BEGIN}\n{inner}{' ' * indent}{END}\n"


def _by_hand(path: Sequence[str], entries: Sequence[Any]) -> SpliceError:
    where = ".".join(path) or "the top"
    return SpliceError(
        f"{where} is written in one line, so that nothing can be put in beside the owner's entries: write it as a "
        f"block, or add by hand:\n{yaml.safe_dump(list(entries), sort_keys=False, width=1000)}"
    )
