"""Whether values from a JSON file are of the types that a dataclass's fields have."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from polylab.poly.files import capped

__all__ = ["check_types"]


def check_types(values: Mapping[str, Any], cls: type, *, path: Path) -> None:
    """Check every value whose key is a field of `cls`; other keys are somebody else's to refuse.

    Raises:
        ValueError: Naming the file, and each value with its type and the valid one.
    """
    # not get_type_hints, which has none for a class under @no_type_check
    kinds = inspect.get_annotations(cls, eval_str=True)
    wrong = [
        f"{name}={reprlib.repr(value)} is a {type(value).__name__}; valid: {_spelled(kinds[name])}."
        for name, value in values.items()
        if name in kinds and not _is_a(value, kinds[name])
    ]
    if wrong:
        raise ValueError("\n".join([f"{path} has values of a wrong type:", *capped(wrong)]))


def _is_a(value: Any, kind: Any) -> bool:
    parts = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_is_a(value, part) for part in parts)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(item, parts[0]) for item in value)
    if get_origin(kind) is dict:
        items = value.values() if isinstance(value, dict) else ()
        return isinstance(value, dict) and all(_is_a(item, parts[1]) for item in items)
    if kind is float:
        return type(value) in (int, float)
    # exactly: True is no number; what JSON has no type for is the class's own to check
    return type(value) is kind if kind in (bool, int, str, type(None)) else True


def _spelled(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
