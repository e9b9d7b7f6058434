"""Classes of the user's own, named by their dotted path in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

__all__ = ["TARGET", "build", "is_custom"]

TARGET = "_target_"
_Built = TypeVar("_Built")


def is_custom(value: object) -> bool:
    """Whether an option's value names a class."""
    return isinstance(value, Mapping) and TARGET in value


def build(
    option: str, value: Mapping[str, Any], *, kind: type[_Built], given: Mapping[str, Any]
) -> _Built:
    """An instance of the class that `value[_target_]` names.

    Args:
        option: The option's name, for errors.
        value: `_target_` and the class's own arguments.
        kind: What it must be a subclass of.
        given: Arguments that polylab adds.

    Raises:
        ValueError: If there is no such class, it is of another kind, or it refuses the arguments.
    """
    cls = _find(option, str(value[TARGET]))
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise ValueError(
            f"{option}._target_={value[TARGET]!r} is {cls!r}, not a subclass of "
            f"{kind.__module__}.{kind.__name__}."
        )
    own = {key: item for key, item in value.items() if key != TARGET}
    try:
        return cls(**given, **own)
    except TypeError as error:
        raise ValueError(
            f"{option}._target_={value[TARGET]!r} cannot be built from {sorted({**given, **own})}: "
            f"{error}"
        ) from error


def _find(option: str, path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{option}._target_={path!r} cannot be imported: {error}. Give the dotted path of a "
            "class that Python finds (PYTHONPATH, or an installed package)."
        ) from error
