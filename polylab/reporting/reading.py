"""Files of a folder, read without trust: what cannot be read becomes a line for the reader."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

__all__ = ["Folder", "number", "plain"]

T = TypeVar("T")
# the C parser is ten times as fast, where it was built
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Folder:
    """A folder whose files may be missing, torn or wrong.

    Args:
        path: Of the folder.
        notes: One line for each file that is there and cannot be read; shared with the page.
    """

    path: Path
    notes: list[str] = field(default_factory=list)
    _known: dict[str, Any] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """An object; empty without the file, or with a line in `notes`."""
        return self._read(name, _json_object) or {}

    def yaml(self, name: str) -> dict[str, Any]:
        """A mapping; empty without the file, or with a line in `notes`."""
        return self._read(name, _yaml_mapping) or {}

    def json_lines(self, name: str) -> list[dict[str, Any]]:
        """Objects, one a line; torn lines are left out: their writer was killed or is at work."""
        return self._read(name, _json_lines) or []

    def lines(self, name: str) -> list[str]:
        """The lines of a text that are not empty."""
        return self._read(name, lambda text: [line for line in text.splitlines() if line]) or []

    def table(self, name: str) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and rows of a CSV file; a torn last line is left out."""
        return self._read(name, _csv_rows) or ([], [])

    def note(self, line: str) -> None:
        self.notes.append(line)

    def _read(self, name: str, parse: Callable[[str], T]) -> T | None:
        if name not in self._known:
            self._known[name] = self._parsed(name, parse)
        return self._known[name]

    def _parsed(self, name: str, parse: Callable[[str], T]) -> T | None:
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return parse(_text(path))
        except (OSError, ValueError, csv.Error, yaml.YAMLError, RecursionError) as error:
            self.note(f"{name} cannot be read, and is left out: {_line(error)}")
            return None


def number(text: Any) -> float | None:
    """The finite number that a cell holds, if it holds one."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """`value` as strict JSON: numbers that are not finite become null, others keep 7 digits."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _text(path: Path) -> str:
    # a kill may tear a line within a letter
    return path.read_text(encoding="utf-8", errors="replace" if path.suffix == ".jsonl" else None)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def _yaml_mapping(text: str) -> dict[str, Any]:
    value = yaml.load(text, Loader=_LOADER)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a mapping")
    return value


def _json_lines(text: str) -> list[dict[str, Any]]:
    """The lines that are objects: a killed process tears its last one, and its heir goes on."""
    lines = text.splitlines()
    found = []
    for line in lines:
        try:
            found.append(_json_object(line))
        except ValueError:
            continue
    if lines[1:] and not found:
        raise ValueError(f"none of its {len(lines)} lines is a JSON object")
    return found


def _csv_rows(text: str) -> tuple[list[str], list[dict[str, str]]]:
    whole = text if text.endswith("\n") else text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole, newline=""), strict=True)
    columns = [name.strip() for name in reader.fieldnames or []]
    if not columns:
        raise ValueError("it has no header")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has not the {len(columns)} fields of line 1")
        rows.append(dict(zip(columns, row.values(), strict=True)))
    return columns, rows
