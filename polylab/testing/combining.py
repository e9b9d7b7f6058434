"""What every combining rule promises (`polylab.poly.combining.Combine`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from polylab.poly.combining import Combine
from polylab.testing.claims import CLOSE, Claims, checking, compiled, rows_of
from polylab.testing.models import check_in_models

__all__ = ["check_combine"]

_Make = Callable[[], Combine]
_GROUPS, _SKILLS, _BLOCK_IN, _RANK, _BLOCK_OUT = 7, 5, 4, 3, 6
_SPLITS = (1, 2)


def check_combine(cls: type[Combine], **options: Any) -> None:
    """Whether `combine: {_target_: ...}` can name `cls`.

    Args:
        cls: The class, at the top level of a module.
        **options: Its arguments.

    Raises:
        AssertionError: At the first promise that is broken: what was checked, what came out, what
            is required.
    """
    with checking(cls, options, option="combine", kind=Combine) as (claims, target, make):
        for check in _CHECKS:
            for splits in _SPLITS:
                with claims.step(f"n_splits={splits}"):
                    check(claims, make(), splits)
        for changes in _in_models():
            with claims.step(str(changes)):
                check_in_models(claims, {**changes, "combine": target})


def _in_models() -> Iterator[dict[str, Any]]:
    yield {"poly_type": "poly"}
    yield {"poly_type": "private", "n_tasks": 5}
    yield {"poly_type": "mope", "router_level": "token"}


def _banks(n_splits: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_splits)
    a = torch.randn(n_splits, _SKILLS, _BLOCK_IN, _RANK, generator=generator)
    b = torch.randn(n_splits, _SKILLS, _RANK, _BLOCK_OUT, generator=generator)
    return a.to(dtype), b.to(dtype)


def _input(n_splits: int) -> Tensor:
    return torch.randn(_GROUPS, n_splits * _BLOCK_IN, generator=torch.Generator().manual_seed(7))


def _update(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`(x A*) B*` of one row of x for each group."""
    return torch.einsum("nd,ndk,nke->ne", x, a.expand(len(x), -1, -1), b)


def _factors(claims: Claims, rule: Combine, n_splits: int) -> None:
    weights = rows_of(_GROUPS, n_splits, _SKILLS)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        with claims.step(f"factors of banks in {dtype}"):
            banks = _banks(n_splits, dtype)
            kept = [bank.clone() for bank in banks]
            a, b = rule.factors(weights, *banks)
            k = a.shape[-1]
            groups = 1 if len(a) == 1 else _GROUPS
            claims.shape(a, (groups, n_splits * _BLOCK_IN, k), "groups or 1, d_in, k")
            claims.shape(b, (_GROUPS, k, n_splits * _BLOCK_OUT), "groups, k, d_out")
            for factor in (a, b):
                claims.require(factor.dtype == dtype, f"dtype {factor.dtype}", f"{dtype}")
                claims.finite(factor)
            untouched = all(torch.equal(*pair) for pair in zip(banks, kept, strict=True))
            claims.require(untouched, "the banks were changed in place", "untouched ones")


def _tokens(claims: Claims, rule: Combine, n_splits: int) -> None:
    with claims.step("per_token against factors"):
        x, weights, banks = _input(n_splits), rows_of(_GROUPS, n_splits, _SKILLS), _banks(n_splits)
        y = rule.per_token(x, weights, banks=banks)
        claims.shape(y, (_GROUPS, n_splits * _BLOCK_OUT), "tokens, d_out")
        wanted = _update(x, *rule.factors(weights, *banks))
        claims.same(y, wanted, "(x A*) B* with the factors of the same weights", **_near(wanted))


def _one_hot(claims: Claims, rule: Combine, n_splits: int) -> None:
    """`pick` stands in for `factors` where a router is hard."""
    x, banks = _input(n_splits), _banks(n_splits)
    generator = torch.Generator().manual_seed(8)
    chosen = torch.randint(_SKILLS, (_GROUPS, n_splits), generator=generator)
    for what, rows in (("one skill", chosen[:, :1].expand(-1, n_splits)), ("heads apart", chosen)):
        with claims.step(f"one-hot weights, {what}: pick against factors"):
            weights = torch.eye(_SKILLS)[rows]
            picked = _update(x, *rule.pick(weights, *banks))
            wanted = _update(x, *rule.factors(weights, *banks))
            required = "the same update (without a pick of its own, a skill's plain LoRA)"
            claims.same(picked, wanted, required, **_near(wanted))


def _zero(claims: Claims, rule: Combine, n_splits: int) -> None:
    with claims.step("the update of B = 0"):
        a, b = _banks(n_splits)
        y = _update(_input(n_splits), *rule.factors(rows_of(_GROUPS, n_splits, _SKILLS), a, 0 * b))
        came = f"up to {y.abs().max().item():.3g}"
        claims.require(y.abs().max() == 0, came, "0: a fresh adapter is the base model")


def _neighbours(claims: Claims, rule: Combine, n_splits: int) -> None:
    with claims.step("one group alone"):
        x, weights, banks = _input(n_splits), rows_of(_GROUPS, n_splits, _SKILLS), _banks(n_splits)
        alone = _update(x[1:2], *rule.factors(weights[1:2], *banks))
        together = _update(x, *rule.factors(weights, *banks))[1:2]
        required = "the update that it has beside other groups"
        claims.same(alone, together, required, **_near(together))


def _gradients(claims: Claims, rule: Combine, n_splits: int) -> None:
    for what in ("factors", "per_token"):
        with claims.step(f"gradients through {what}"):
            leaves = [rows_of(_GROUPS, n_splits, _SKILLS), *_banks(n_splits)]
            weights, a, b = (leaf.requires_grad_() for leaf in leaves)
            x = _input(n_splits)
            if what == "factors":
                y = _update(x, *rule.factors(weights, a, b))
            else:
                y = rule.per_token(x, weights, banks=(a, b))
            (y * torch.arange(1.0, y.shape[1] + 1)).sum().backward()
            named = {"the weights": weights.grad, "bank A": a.grad, "bank B": b.grad}
            claims.gradients(named, "one that is not 0, for weights, A and B")


def _compiling(claims: Claims, rule: Combine, n_splits: int) -> None:
    with claims.step("torch.compile(fullgraph=True)"):
        x, weights, banks = _input(n_splits), rows_of(_GROUPS, n_splits, _SKILLS), _banks(n_splits)
        for found, wanted in zip(
            (
                *compiled(rule.factors)(weights, *banks),
                compiled(rule.per_token)(x, weights, banks=banks),
            ),
            (*rule.factors(weights, *banks), rule.per_token(x, weights, banks=banks)),
            strict=True,
        ):
            claims.same(found, wanted, "the values of eager mode", rtol=1e-4, atol=1e-4)


_CHECKS = (_factors, _tokens, _one_hot, _zero, _neighbours, _gradients, _compiling)


def _near(wanted: Tensor) -> dict[str, float]:
    """Tolerances of sums that are taken in another order."""
    return {"rtol": CLOSE["rtol"], "atol": 1e-5 * max(1.0, wanted.abs().max().item())}
