"""What every prior promises (`polylab.poly.priors.Prior`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polylab.poly.config import PolyConfig
from polylab.poly.model import get_peft_model
from polylab.poly.priors import Prior
from polylab.poly.routers import normalise
from polylab.testing.claims import (
    CLOSE,
    Claims,
    checking,
    compiled,
    rows_of,
    stirred,
)
from polylab.testing.models import batch_of, check_in_models, gpt2

__all__ = ["check_prior"]

_Make = Callable[[], Prior]
_ROWS, _SPLITS, _SKILLS = 6, 2, 5


def check_prior(cls: type[Prior], **options: Any) -> None:
    """Whether `priors: {NAME: {_target_: ..., weight: ...}}` can name `cls`.

    Args:
        cls: The class, at the top level of a module.
        **options: Its arguments, without the weight.

    Raises:
        AssertionError: At the first promise that is broken: what was checked, what came out, what
            is required.
    """
    with checking(cls, options, option="priors.own", kind=Prior) as (claims, target, make):
        for check in (_value, _padding, _gradients, _corners, _precisions, _compiling):
            check(claims, make)
        priors = {"own": {**target, "weight": 0.1}}
        _in_the_loss(claims, make, {"priors": priors})
        check_in_models(claims, {"priors": priors})


def _rows(prior: Prior, seed: int = 0) -> tuple[Tensor, Tensor | None, Tensor]:
    """Weights, gates where the prior needs them, and equal shares."""
    shares = torch.full((_ROWS,), 1 / _ROWS)
    if not prior.needs_gates:
        return rows_of(_ROWS, _SPLITS, _SKILLS, seed=seed), None, shares
    generator = torch.Generator().manual_seed(seed)
    z = torch.sigmoid(torch.randn(_ROWS, _SPLITS, _SKILLS, generator=generator))
    return normalise(z), z, shares


def _value(claims: Claims, make: _Make) -> None:
    with claims.step("its value"):
        prior = make()
        arguments = _rows(prior)
        value = prior(*arguments)
        claims.shape(value, (), "a scalar")
        claims.finite(value)
        claims.same(prior(*arguments), value, "the same value for the same rows")


def _padding(claims: Claims, make: _Make) -> None:
    prior = make()
    if prior.needs_gates:  # rows are tasks then, never tokens
        return
    with claims.step("rows with a share of 0 (padding)"):
        weights, _, shares = _rows(prior)
        more = torch.cat([weights, rows_of(3, _SPLITS, _SKILLS, seed=9)])
        padded = prior(more, None, torch.cat([shares, torch.zeros(3)]))
        wanted = prior(weights, None, shares)
        claims.same(padded, wanted, "no effect on the value", **CLOSE)


def _gradients(claims: Claims, make: _Make) -> None:
    with claims.step("the gradient"):
        prior = make()
        weights, gates, shares = _rows(prior)
        what = "weights" if gates is None else "gates"
        leaf = (weights if gates is None else gates).log().requires_grad_()
        gates = None if gates is None else leaf.exp()
        weights = torch.softmax(leaf, -1) if gates is None else normalise(gates)
        value = prior(weights, gates, shares)
        claims.require(value.requires_grad, "a value that carries none", f"one in the {what}")
        value.backward()
        rule = f"one that is not 0, for {what} that keep their sum"
        claims.gradients({f"the {what}": leaf.grad}, rule, above=1e-6)


def _corners(claims: Claims, make: _Make) -> None:
    one_hot = torch.eye(_SKILLS)[torch.arange(_ROWS) % _SKILLS][:, None].expand(-1, _SPLITS, -1)
    corners = {
        "one-hot weights": one_hot,
        "uniform weights": torch.full((_ROWS, _SPLITS, _SKILLS), 1 / _SKILLS),
        "one skill for all rows": one_hot[:1].expand(_ROWS, -1, -1),
    }
    for what, rows in corners.items():
        with claims.step(f"value and gradient of {what}"):
            prior, leaf = make(), rows.clone().requires_grad_()
            value = prior(
                leaf, leaf if prior.needs_gates else None, torch.full((_ROWS,), 1 / _ROWS)
            )
            claims.finite(value)
            if value.requires_grad:
                value.backward()
            if leaf.grad is not None:
                claims.finite(leaf.grad)


def _precisions(claims: Claims, make: _Make) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        with claims.step(f"weights in {dtype}"):
            prior = make()
            weights, gates, shares = _rows(prior)
            z = None if gates is None else gates.to(dtype)
            claims.finite(prior(weights.to(dtype), z, shares))


def _compiling(claims: Claims, make: _Make) -> None:
    with claims.step("torch.compile(fullgraph=True)"):
        prior = make()
        arguments = _rows(prior)
        found = compiled(make())(*arguments)
        claims.same(found, prior(*arguments), "the value of eager mode", rtol=1e-4, atol=1e-5)


def _in_the_loss(claims: Claims, make: _Make, changes: dict[str, Any]) -> None:
    """The model adds it to its loss, for each kind of router that it takes."""
    kinds: list[dict[str, Any]] = [{"poly_type": "poly"}, {"poly_type": "c-poly"}]
    if not make().needs_gates:
        kinds += [{"poly_type": "mope"}, {"poly_type": "mope", "router_level": "token"}]
    for kind in kinds:
        with claims.step(f"in the loss of an adapter with {kind}"):
            config = PolyConfig(
                r=2, n_tasks=3, n_splits=2, target_modules=["c_attn"], noise="none", **kind,
                **changes,
            )  # fmt: skip
            model = stirred(get_peft_model(gpt2(2), config)).train()
            output = model(**batch_of(3, causal=True))
            claims.finite(output.prior_loss)
            output.prior_loss.backward()
            routers = {n: p.grad for n, p in model.named_parameters() if "poly_router" in n}
            is_moved = any(grad is not None and grad.abs().max() > 0 for grad in routers.values())
            claims.require(is_moved, "no parameter of a router gets a gradient", "one that does")
