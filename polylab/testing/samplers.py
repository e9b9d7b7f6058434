"""What every sampler promises (`polylab.poly.routers.Sampler`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polylab.poly.routers import Sampler
from polylab.testing.claims import CLOSE, Claims, checking, compiled
from polylab.testing.models import check_in_models

__all__ = ["check_sampler"]

_Make = Callable[[], Sampler]
_SHAPE = (6, 2, 5)  # batch, splits, gates


def check_sampler(cls: type[Sampler], **options: Any) -> None:
    """Whether `noise: {_target_: ...}` can name `cls`.

    Args:
        cls: The class, at the top level of a module.
        **options: Its arguments.

    Raises:
        AssertionError: At the first promise that is broken: what was checked, what came out, what
            is required.
    """
    with checking(cls, options, option="noise", kind=Sampler) as (claims, target, make):
        for check in (_gates, _extremes, _noise, _neighbours, _mean, _gradients, _compiling):
            check(claims, make)
        check_in_models(claims, {"noise": target})


def _draw(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(_SHAPE, generator=generator)
    u = torch.rand(_SHAPE, generator=generator).clamp(1e-4, 1 - 1e-4)
    return logits.to(dtype), u.to(dtype)


def _gates(claims: Claims, make: _Make) -> None:
    for dtype in (torch.float32, torch.float64):
        with claims.step(f"gates of {dtype} logits"):
            logits, u = _draw(dtype=dtype)
            kept = logits.clone(), u.clone()
            z = make()(logits, u)
            claims.shape(z, _SHAPE, "batch, n_splits, gates: as the logits")
            claims.require(z.dtype == dtype, f"dtype {z.dtype}", f"{dtype}, as the logits")
            untouched = torch.equal(logits, kept[0]) and torch.equal(u, kept[1])
            claims.require(untouched, "its arguments were changed in place", "untouched ones")


def _extremes(claims: Claims, make: _Make) -> None:
    u = torch.tensor([2.0**-24, 0.5, 1 - 2.0**-24]).repeat(3, 2, 1)
    for bound in (1.0, 5.0, 40.0):
        with claims.step(f"gates of logits -{bound:g}, 0 and {bound:g}"):
            logits = torch.tensor([-bound, 0.0, bound])[:, None, None].expand(3, 2, 3)
            z = make()(logits, u)
            claims.finite(z)
            low, high = z.min().item(), z.max().item()
            claims.require(low >= 0 and high <= 1, f"from {low:.3g} to {high:.3g}", "from 0 to 1")
            claims.require(
                (z.sum(-1) > 0).all(),
                "all gates of a head are 0",
                "a gate above 0 in every head: weights are gates / their sum",
            )


def _noise(claims: Claims, make: _Make) -> None:
    with claims.step("noise"):
        sampler, (logits, u) = make(), _draw()
        one = sampler(logits, u)
        claims.same(sampler(logits, u), one, "equal gates from the same `uniform`")
        other = sampler(logits, _draw(1)[1])
        claims.require(
            not torch.equal(one, other), "another `uniform` changes nothing", "other gates"
        )


def _neighbours(claims: Claims, make: _Make) -> None:
    with claims.step("one example alone"):
        sampler, (logits, u) = make(), _draw()
        alone, together = sampler(logits[1:2], u[1:2]), sampler(logits, u)[1:2]
        claims.same(alone, together, "the gates that it has in a batch with others", **CLOSE)


def _mean(claims: Claims, make: _Make) -> None:
    with claims.step("the mean gate of logits -2, 0 and 2 over 4000 draws"):
        u = torch.rand(4000, 1, 3).clamp(1e-4, 1 - 1e-4)
        logits = torch.tensor([-2.0, 0.0, 2.0]).expand(4000, 1, 3)
        low, middle, high = make()(logits, u).mean((0, 1)).tolist()
        came = f"{low:.3f}, {middle:.3f} and {high:.3f}"
        claims.require(low < middle < high, came, "the higher the logit, the more open the gate")


def _gradients(claims: Claims, make: _Make) -> None:
    with claims.step("the gradient"):
        logits, u = _draw()
        logits.requires_grad_()
        z = make()(logits, u)
        claims.require(z.requires_grad, "gates that carry none", "one in the logits")
        z.sum().backward()
        claims.gradients({"the logits": logits.grad}, "one that is not 0")


def _compiling(claims: Claims, make: _Make) -> None:
    with claims.step("torch.compile(fullgraph=True)"):
        logits, u = _draw()
        wanted, found = make()(logits, u), compiled(make())(logits, u)
        claims.same(found, wanted, "the gates of eager mode", rtol=1e-4, atol=1e-5)
