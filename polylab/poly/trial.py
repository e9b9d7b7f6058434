"""Try the user's own classes once, before a model is changed for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from polylab.poly.classes import named_classes
from polylab.poly.config import PolyConfig
from polylab.poly.layers import make_combine
from polylab.poly.prior_loss import make_priors
from polylab.poly.routers import Router, make_router

__all__ = ["try_own_classes"]

_ROWS, _SEQ, _BLOCK_IN, _BLOCK_OUT, _RANK = 4, 3, 5, 6, 2


def try_own_classes(config: PolyConfig, d_in: int) -> None:
    """Build and call each class that `config` names; nothing happens if it names none.

    Sizes and errors only: `polylab.testing` checks the rest of what a class promises.

    Args:
        config: Of the adapter.
        d_in: Width of a layer's input.

    Raises:
        ValueError: If a class cannot be built, raises, or returns a tensor of a wrong shape.
    """
    named = named_classes(config.to_dict())
    if not named:
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        router = make_router(config, d_in)
        for option in ("router", "noise"):
            if option in named:
                _try_router(f"{option}._target_={named[option]!r}", router, config, d_in)
        if "combine" in named:
            _try_combine(f"combine._target_={named['combine']!r}", config)
        _try_priors(config)


def _try_router(what: str, router: Router, config: PolyConfig, d_in: int) -> None:
    with _calling(f"{what}: reset"):
        router.reset()
    ids = torch.arange(_ROWS) % config.n_tasks if router.needs_task_ids else None
    lead = {None: (_ROWS if router.needs_task_ids else 1,), "prompt": (_ROWS,)}
    shape = lead.get(router.reads, (_ROWS, _SEQ))
    hidden = None if router.reads is None else torch.ones(*shape, d_in)
    for training in (False, True):
        router.train(training)
        with _calling(f"{what}: forward"):
            weights = router(ids, hidden, uniform=None, sample=training and router.draws_noise)
        given = "no task_ids" if ids is None else f"task_ids of shape {[_ROWS]}"
        given += "" if hidden is None else f" and input of shape {[*hidden.shape]}"
        _check(f"{what} for {given}", weights, (*shape, config.n_splits, config.bank_size))


def _try_combine(what: str, config: PolyConfig) -> None:
    splits, skills = config.n_splits, config.bank_size
    bank_a = torch.ones(splits, skills, _BLOCK_IN, _RANK)
    bank_b = torch.ones(splits, skills, _RANK, _BLOCK_OUT)
    weights = torch.full((_ROWS, splits, skills), 1 / skills)
    rule = make_combine(config)
    with _calling(f"{what}: factors"):
        a, b = rule.factors(weights, bank_a, bank_b)
    groups, k = (len(a), a.shape[-1]) if isinstance(a, Tensor) and a.ndim == 3 else (_ROWS, _RANK)
    given = f"{what}.factors for {_ROWS} groups"
    _check(f"{given}, A*", a, (1 if groups == 1 else _ROWS, splits * _BLOCK_IN, k))
    _check(f"{given}, B*", b, (_ROWS, k, splits * _BLOCK_OUT))
    x = torch.ones(_ROWS, splits * _BLOCK_IN)
    with _calling(f"{what}: per_token"):
        y = rule.per_token(x, weights, banks=(bank_a, bank_b))
    _check(f"{what}.per_token for {_ROWS} tokens", y, (_ROWS, splits * _BLOCK_OUT))


def _try_priors(config: PolyConfig) -> None:
    named = named_classes({"priors": config.priors})
    weights = torch.full((_ROWS, config.n_splits, config.bank_size), 1 / config.bank_size)
    for item in make_priors(config):
        path = named.get(f"priors.{item.name}")
        if path is not None:
            what = f"priors.{item.name}._target_={path!r}"
            gates = weights if item.prior.needs_gates else None
            with _calling(f"{what}: __call__"):
                penalty = item.prior(weights, gates, torch.full((_ROWS,), 1 / _ROWS))
            _check(what, penalty, ())


@contextmanager
def _calling(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the class's own code raises
        raise ValueError(f"{what} raised {type(error).__name__}: {error}") from error


def _check(what: str, found: object, want: Sequence[int]) -> None:
    shape = tuple(found.shape) if isinstance(found, Tensor) else None
    if shape != tuple(want):
        got = type(found).__name__ if shape is None else f"shape {[*shape]}"
        raise ValueError(f"{what} gives {got}; a tensor of shape {[*want]} is needed.")
