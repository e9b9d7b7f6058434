"""Classes of the user's own, named by their dotted path in a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard, TypeVar

__all__ = ["TARGET", "build", "is_custom", "named_classes", "refuse_code"]

TARGET = "_target_"
_OPTIONS = ("router", "noise", "combine")
_Built = TypeVar("_Built")


def is_custom(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether an option's value names a class."""
    return isinstance(value, Mapping) and TARGET in value


def named_classes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The classes that an adapter's options name: option to dotted path."""
    priors = values.get("priors")
    priors = priors if isinstance(priors, Mapping) else {}
    options = {name: values.get(name) for name in _OPTIONS}
    options |= {f"priors.{name}": value for name, value in priors.items()}
    return {name: value[TARGET] for name, value in options.items() if is_custom(value)}


def refuse_code(values: Mapping[str, Any], source: str | Path) -> None:
    """Let no file choose what is imported.

    Raises:
        ValueError: If the options that were read from `source` name a class.
    """
    named = named_classes(values)
    if named:
        paths = ", ".join(f"{option}._target_={path!r}" for option, path in named.items())
        raise ValueError(
            f"{source} names code to import and run: {paths}. Only the built-in classes load "
            "unasked. If you trust it, and have its module, pass trust_code=True."
        )


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
    what = f"{option}._target_={value[TARGET]!r}"
    cls = _find(what, str(value[TARGET]), kind)
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise ValueError(
            f"{what} is {cls!r}, not a subclass of {kind.__module__}.{kind.__name__}: derive it "
            "from that."
        )
    own = {key: item for key, item in value.items() if key != TARGET}
    _check_arguments(what, cls, own=own, given=given)
    arguments = {**given, **own}
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be built from {arguments}: {error}") from error


def _check_arguments(
    what: str, cls: type, *, own: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    twice = sorted({*own} & {*given})
    if twice:
        raise ValueError(f"{what} gets {twice} from the adapter's own options: leave them out.")
    signature = inspect.signature(cls)
    try:
        signature.bind(**given, **own)
    except TypeError as error:
        names = [*signature.parameters]
        wrong = [name for name in own if name not in names]
        near = _near(wrong[0], names) if wrong else ""
        raise ValueError(
            f"{what}: {error}.{near} It is given {sorted({*own, *given})} and takes {names}."
        ) from error


def _find(what: str, path: str, kind: type) -> Any:
    name, _, leaf = path.rpartition(".")
    try:
        module = import_module(name)
    except Exception as error:  # whatever the module's own code raises
        raise ValueError(
            f"{what} cannot be imported: {type(error).__name__}: {error}. Give the dotted path of "
            "a class that Python finds (PYTHONPATH, or an installed package)."
        ) from error
    if not hasattr(module, leaf):
        there = [*_classes(module, kind)]
        raise ValueError(
            f"{what}: there is no {leaf!r} in {name}.{_near(leaf, there or dir(module))} "
            f"{kind.__name__} classes there: {there}."
        )
    return getattr(module, leaf)


def _classes(module: ModuleType, kind: type) -> Iterable[str]:
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, kind) and value is not kind:
            yield name


def _near(given: str, valid: Iterable[str]) -> str:
    close = get_close_matches(given, [*valid], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
