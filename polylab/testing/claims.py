"""How a check speaks: what was checked, what came out, what is required."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import jaxtyping
import torch
from torch import Tensor, nn
from transformers.utils import logging

from polylab.poly.classes import build

__all__ = ["Claims", "checking", "rows_of", "settled", "stirred", "target_of"]

_Built = TypeVar("_Built")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Failed(AssertionError):
    """A class does not keep its word."""


class Claims:
    """The checks of one class, one `step` at a time.

    Args:
        cls: The class.
    """

    def __init__(self, cls: type) -> None:
        self.name = cls.__name__
        self._what: list[str] = []

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Check `what` inside.

        Raises:
            AssertionError: In place of any exception of the class.
        """
        self._what.append(what)
        try:
            yield
        except Failed:
            raise
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            came = f"raised {type(error).__name__}: {' '.join(lines[:3])}"
            raise Failed(self._say(came, "no error")) from error
        finally:
            self._what.pop()

    def require(self, holds: bool | Tensor, came_out: str, required: str) -> None:
        """One claim of the running step.

        Raises:
            AssertionError: If it does not hold.
        """
        if not bool(holds):
            raise Failed(self._say(came_out, required))

    def shape(self, tensor: Any, want: Sequence[int], axes: str) -> None:
        """`tensor` is one, of floating point, and has this shape.

        Raises:
            AssertionError: If not.
        """
        is_floating = isinstance(tensor, Tensor) and tensor.is_floating_point()
        came = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
        self.require(is_floating, came, "a tensor of floating-point numbers")
        self.require(
            tuple(tensor.shape) == tuple(want), f"shape {[*tensor.shape]}", f"{[*want]} ({axes})"
        )

    def finite(self, tensor: Tensor) -> None:
        """No value is infinite or none.

        Raises:
            AssertionError: If one is.
        """
        bad = (~torch.isfinite(tensor)).sum().item()
        self.require(bad == 0, f"{bad} of {tensor.numel()} values are not finite", "finite values")

    def same(self, found: Tensor, wanted: Tensor, required: str, **tolerance: float) -> None:
        """Two tensors agree: to the last bit, or within `rtol` and `atol`.

        Raises:
            AssertionError: If they do not.
        """
        close = {"rtol": 0.0, "atol": 0.0, **tolerance}
        holds = found.shape == wanted.shape and torch.allclose(found, wanted, **close)  # type: ignore[arg-type]
        came = f"shapes {[*found.shape]} and {[*wanted.shape]}"
        if found.shape == wanted.shape and found.numel():
            came = f"they differ by up to {(found - wanted).abs().max().item():.3g}"
        self.require(holds, came, required)

    def gradients(
        self, named: Mapping[str, Tensor | None], required: str, *, above: float = 0.0
    ) -> None:
        """Each gradient is there, finite, and somewhere larger than `above`.

        Raises:
            AssertionError: If one is not.
        """
        for name, grad in named.items():
            self.require(grad is not None, f"{name} gets none", required)
            assert grad is not None
            self.require(
                torch.isfinite(grad).all(), f"that of {name} is not finite", "finite gradients"
            )
            self.require(grad.abs().max() > above, f"that of {name} is 0 everywhere", required)

    def _say(self, came_out: str, required: str) -> str:
        return f"{self.name}, {': '.join(self._what)}: {came_out}. Required: {required}."


@contextmanager
def checking(
    cls: type, options: Mapping[str, Any], *, option: str, kind: type[_Built]
) -> Iterator[tuple[Claims, dict[str, Any], Callable[[], _Built]]]:
    """The claims of a class, its target in a configuration, and how to make one; it was made once.

    Args:
        cls: The class.
        options: Its arguments.
        option: That names it.
        kind: What it must be a subclass of.
    """
    claims = Claims(cls)
    with settled():
        target = target_of(cls, options)
        make = partial(build, option, target, kind=kind, given={})
        with claims.step("building it from a configuration"):
            make()
        yield claims, target, make


def target_of(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says to mean `cls(**options)`.

    Raises:
        AssertionError: If no dotted path leads to the class.
    """
    found = getattr(sys.modules.get(cls.__module__), cls.__qualname__, None)
    if found is not cls:
        raise Failed(
            f"{cls.__name__}, its dotted path: {cls.__module__}.{cls.__qualname__} does not lead "
            "to it. Required: a class at the top level of a module, which a configuration can name."
        )
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **options}


@contextmanager
def settled() -> Iterator[None]:
    """The same random numbers in every check, and the caller's generator as it was.

    Run-time checks of shapes (jaxtyping's import hook), which dynamo cannot trace, and advice of
    transformers are off.
    """
    before = jaxtyping.config.jaxtyping_disable  # pyright: ignore[reportAttributeAccessIssue]
    verbosity = logging.get_verbosity()
    jaxtyping.config.update("jaxtyping_disable", True)
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
        logging.set_verbosity(verbosity)


def stirred(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """`module` with every parameter moved away from its start, always in the same way."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(scale * noise.to(parameter))
    return module


def rows_of(*shape: int, seed: int = 0) -> Tensor:
    """Positive rows that sum to 1 over the last axis."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(*shape, generator=generator), dim=-1)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one graph."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")
