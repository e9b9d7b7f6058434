"""The JSON files of Super-NaturalInstructions: one object a task, checked as it is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any


def read_task(path: Path) -> dict[str, Any]:
    """The content of a task's file.

    Raises:
        ValueError: If it is no task, or two instances share an id.
    """
    found = path.stat()
    return _parsed(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)  # a task is read split by split
def _parsed(path: Path, _time: int, _size: int) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        line = getattr(error, "lineno", None)
        where = str(path) if line is None else f"{path}:{line}"
        raise ValueError(f"{where}: not valid JSON ({error}) · mend or remove the file.") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: a JSON {type(content).__name__} · it must be one object, a task of "
            "Super-NaturalInstructions · mend or remove the file."
        )
    for key in ("Definition", "Instances"):
        if key not in content:
            raise ValueError(
                f"{path}: no {key!r} among the keys {sorted(content)} · it must be a task of "
                "Super-NaturalInstructions · mend or remove the file."
            )
    if not isinstance(content["Instances"], list):
        kind = type(content["Instances"]).__name__
        raise ValueError(
            f"{path}: 'Instances' is a {kind} · it must be a list · mend or remove the file."
        )
    _check_ids(content["Instances"], path)
    return content


def _check_ids(instances: Sequence[Any], path: Path) -> None:
    ids = Counter(str(row["id"]) for row in instances if isinstance(row, dict) and "id" in row)
    repeated = [id for id, count in ids.items() if count > 1]
    if repeated:
        raise ValueError(
            f"{path}: instances share the ids {repeated[:3]} · ids must be distinct · rename them, "
            "or remove the instances that occur twice."
        )


def name_of(row: Any, position: int) -> str:
    """An instance as errors name it: by its id or, in files that have none, its position from 0."""
    has_id = isinstance(row, dict) and "id" in row
    return f"the instance {row['id']!r}" if has_id else f"the instance at position {position}"


def texts(row: Mapping[str, Any], key: str, where: object) -> list[str]:
    """A list of strings; altered copies have one string in its place.

    Raises:
        ValueError: Starting with `where`, if it is something else.
    """
    value = row.get(key)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        shown = json.dumps(value)[:60] if key in row else "nothing"
        raise ValueError(
            f"{where}: {key!r} has {shown} · it must be a list of strings · mend or remove it."
        )
    return value


def definition(content: Mapping[str, Any], path: Path) -> str:
    """What the task is.

    Raises:
        ValueError: If the file does not say.
    """
    found = texts(content, "Definition", path)
    if not found:
        raise ValueError(
            f"{path}: 'Definition' is empty · it must say what the task is · mend or remove the "
            "file."
        )
    return found[0]
