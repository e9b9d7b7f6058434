"""The signature of a wrapped model's `forward`: the base model's, and what PolyModel adds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any, TypeVar

from torch import nn

__all__ = ["blank", "root_of", "signed"]

_T = TypeVar("_T")
_ROOT = "_signed_from"


@functools.cache
def signed(cls: type[_T], base: type[nn.Module]) -> type[_T]:
    """A subclass of `cls` whose `forward` shows the arguments of `base`'s, `task_ids` included.

    The Trainer of transformers keeps the columns of a dataset that `forward` names, looks there for
    labels (on the class, so that a signature per object does not do), and reads from it whether the
    loss takes `num_items_in_batch`.
    """
    cls = root_of(cls)
    call: Callable[..., Any] = getattr(cls, "forward")  # noqa: B009

    @functools.wraps(call)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, *args, **kwargs)

    forward.__signature__ = _joined(inspect.signature(base.forward), inspect.signature(call))  # type: ignore[attr-defined]
    # The base's name in it: the Trainer finds the labels of question answering by the class's name.
    made: Any = type(cls)(
        f"{cls.__name__}[{base.__name__}]",
        (cls,),
        {"__module__": cls.__module__, "__doc__": cls.__doc__, "forward": forward, _ROOT: cls},
    )
    return made


def root_of(cls: type[_T]) -> type[_T]:
    """The class that has an import path, of one that `signed` made."""
    return vars(cls).get(_ROOT, cls)


def blank(cls: type[_T], base: type[nn.Module]) -> _T:
    """An object without a state: what pickle and copy fill. The class itself has no import path."""
    return object.__new__(signed(cls, base))


def _joined(base: inspect.Signature, ours: inspect.Signature) -> inspect.Signature:
    """The base's arguments, then ours that are by keyword only, then the base's `**kwargs`."""
    theirs = [*base.parameters.values()]
    rest = [p for p in theirs if p.kind is Parameter.VAR_KEYWORD]
    added = [p for p in ours.parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    added = [p for p in added if p.name not in base.parameters]
    named = [p for p in theirs if p.kind is not Parameter.VAR_KEYWORD]
    return base.replace(
        parameters=[*named, *added, *rest], return_annotation=ours.return_annotation
    )
