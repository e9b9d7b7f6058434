"""What every router promises (`polylab.poly.routers.Router`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from polylab.poly.config import PolyConfig
from polylab.poly.routers import Router, make_router, normalise
from polylab.testing.claims import CLOSE, Claims, compiled, settled, stirred, target_of
from polylab.testing.models import check_in_models

__all__ = ["check_router"]

BATCH, SEQ, D_IN = 4, 7, 12
_SIXTEEN_BITS = {torch.float16: 2e-3, torch.bfloat16: 2e-2}  # how far a sum may be from 1


def check_router(
    cls: type[Router], *, n_tasks: int = 3, n_skills: int = 5, n_splits: int = 2, **options: Any
) -> None:
    """Whether `cls` works wherever polylab's own routers do.

    Built as a configuration builds it, alone and within a tiny T5 and a tiny GPT-2.

    Args:
        cls: The class, at the top level of a module.
        n_tasks: Of the adapters that are made.
        n_skills: Likewise.
        n_splits: Likewise.
        **options: Arguments of `cls` beside `n_tasks`, `n_skills`, `n_splits` and `d_in`.

    Raises:
        AssertionError: At the first promise that is broken: what was checked, what came out, what
            is required.
    """
    claims = Claims(cls)
    with settled():
        target = target_of(cls, options)
        sizes: dict[str, Any] = {"n_tasks": n_tasks, "n_skills": n_skills, "n_splits": n_splits}
        with claims.step("building it from a configuration"):
            make = partial(_make, PolyConfig(router=target, **sizes))
            make()
        subject = _Subject(claims, make, n_tasks)
        for check in _CHECKS:
            check(subject)
        router = make()
        # noise of a router that reads no task ids cannot be keyed
        is_free = router.draws_noise and not router.needs_task_ids
        source = {"noise_source": "global"} if is_free else {}
        check_in_models(claims, {**sizes, **source, "router": target})


@dataclass(frozen=True)
class _Subject:
    """A class under test.

    Args:
        claims: Where failures are said.
        make: A router with parameters as if trained; the same each time.
        n_tasks: Ids run below it.
    """

    claims: Claims
    make: Callable[..., Router]
    n_tasks: int

    def calls(self, router: Router) -> Iterator[_Call]:
        """Every form in which a model calls the router."""
        generator = torch.Generator().manual_seed(2)
        ids = torch.arange(BATCH) % self.n_tasks
        packed = torch.randint(self.n_tasks, (BATCH, SEQ), generator=generator)
        tokens = torch.randn(BATCH, SEQ, D_IN, generator=generator)
        by_row = (ids if router.needs_task_ids or router.reads is None else None, (BATCH,))
        by_token = (packed if by_row[0] is not None else None, (BATCH, SEQ))
        if router.reads is None:
            yield _Call("task_ids [batch]", by_row[0], None, lead=by_row[1])
            yield _Call("task_ids [batch, seq]", by_token[0], None, lead=by_token[1])
            return
        if router.reads == "prompt":
            yield _Call("prompts [batch, d_in]", by_row[0], tokens[:, 0], lead=by_row[1])
            yield _Call("prompts [batch, seq, d_in]", by_token[0], tokens, lead=by_token[1])
            return
        yield _Call("tokens [batch, seq, d_in]", by_row[0], tokens, lead=by_token[1])


@dataclass(frozen=True)
class _Call:
    """Arguments of a router, and the leading axes of what must come back."""

    name: str
    ids: Tensor | None
    hidden: Tensor | None
    lead: tuple[int, ...]

    def __call__(self, router: Router, **kwargs: Any) -> Tensor:
        return router(self.ids, self.hidden, **kwargs)

    def uniform(self, router: Router, seed: int = 3) -> Tensor:
        """Noise for this call."""
        lead = self.lead if self.ids is None else self.ids.shape
        generator = torch.Generator().manual_seed(seed)
        u = torch.rand(*lead, router.n_splits, router.n_gates, generator=generator)
        return u.clamp(1e-4, 1 - 1e-4)

    def take(self, rows: slice) -> _Call:
        """The same call of some rows only."""
        ids, hidden = (None if t is None else t[rows] for t in (self.ids, self.hidden))
        return replace(self, ids=ids, hidden=hidden, lead=(rows.stop - rows.start, *self.lead[1:]))

    def cast(self, dtype: torch.dtype) -> _Call:
        """The same call with an input of `dtype`."""
        return replace(self, hidden=None if self.hidden is None else self.hidden.to(dtype))


def _make(config: PolyConfig, *, seed: int = 0) -> Router:
    torch.manual_seed(seed)
    router = make_router(config, D_IN)
    router.reset()
    stirred(router)
    return router


def _weights(s: _Subject) -> None:
    """Shapes and values, with and without noise."""
    for training in (False, True):
        router = s.make().train(training)
        for call in s.calls(router):
            with s.claims.step(f"weights of {call.name} in {_mode(router)}"):
                w = call(router)
                want = (*call.lead, router.n_splits, router.n_skills)
                s.claims.shape(w, want, "batch, [seq,] n_splits, n_skills")
                _valid(s.claims, w, 1e-5)
                if router.is_hard:
                    ones = (w == 1).sum(-1) == 1
                    s.claims.require(ones.all(), "not one-hot", "one-hot weights, as is_hard says")
    router = s.make().eval()
    if router.reads is None and not router.needs_task_ids:
        with s.claims.step("weights without task_ids"):
            w = router(None, None)
            s.claims.shape(w, (1, router.n_splits, router.n_skills), "1, n_splits, n_skills")


def _gates(s: _Subject) -> None:
    router = s.make().eval()
    if router.reads is not None:
        return
    with s.claims.step("gates of all tasks"):
        ids = torch.arange(s.n_tasks)
        z = router.gates(ids)
        if z is not None:
            wanted = router(ids, sample=False)
            rule = "weights in evaluation = gates / their sum over the skills (or no gates)"
            s.claims.same(normalise(z), wanted, rule, **CLOSE)


def _determinism(s: _Subject) -> None:
    router = s.make().eval()
    for call in s.calls(router):
        with s.claims.step(f"evaluating {call.name} twice"):
            s.claims.same(call(router), call(router), "equal weights")


def _noise(s: _Subject) -> None:
    plain = s.make().eval()
    for call in s.calls(plain):
        router = s.make().train()
        with s.claims.step(f"noise of {call.name}"):
            calm = call(router, sample=False)
            rule = "in training with sample=False the weights of evaluation"
            s.claims.same(calm, call(plain), rule, **CLOSE)
            one, two = call(router), call(router)
            if not router.draws_noise:
                s.claims.same(one, two, "equal weights in training, as draws_noise=False says")
                rule = "the weights of evaluation, as draws_noise=False says"
                s.claims.same(one, calm, rule, **CLOSE)
                continue
            is_noisy = not torch.equal(one, two)
            rule = "other weights at each call in training, as draws_noise=True says"
            s.claims.require(is_noisy, "two calls give equal weights", rule)
            u = call.uniform(router)
            given = call(router, uniform=u)
            rule = "equal weights from the same `uniform`"
            s.claims.same(given, call(router, uniform=u), rule)
            other = call(router, uniform=call.uniform(router, seed=4))
            rule = "weights that depend on `uniform`"
            s.claims.require(not torch.equal(given, other), "another one changes nothing", rule)


def _neighbours(s: _Subject) -> None:
    for training in (False, True):
        router = s.make().train(training)
        for call in s.calls(router):
            u = call.uniform(router) if training and router.draws_noise else None
            with s.claims.step(f"one example of {call.name} alone, in {_mode(router)}"):
                together = call(router, uniform=u)
                for row in range(BATCH):
                    rows = slice(row, row + 1)
                    alone = call.take(rows)(router, uniform=None if u is None else u[rows])
                    rule = "the weights that it has in a batch with others"
                    s.claims.same(alone, together[rows], rule, **CLOSE)


def _gradients(s: _Subject) -> None:
    for training in (False, True):
        router = s.make().train(training)
        call = next(s.calls(router))
        with s.claims.step(f"gradients in {_mode(router)}"):
            w = call(router)
            _pull(w)
            named = {name: p.grad for name, p in router.named_parameters()}
            s.claims.gradients(named, "one that is not 0, for every parameter")


def _precisions(s: _Subject) -> None:
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        for scale in (0.0, 3.0):
            router = s.make()
            stirred(router, scale).to(dtype)
            for call in s.calls(router):
                for mode in (router.eval(), router.train()):
                    with s.claims.step(f"{call.name} with the router in {dtype}, {_mode(mode)}"):
                        w = call.cast(dtype)(mode)
                        _valid(s.claims, w, _SIXTEEN_BITS.get(dtype, 1e-6))


def _state(s: _Subject) -> None:
    trained = s.make()
    stirred(trained, 1.0)
    other, twin = s.make(seed=1), copy.deepcopy(trained).eval()
    with s.claims.step("saving its state_dict"):
        other.load_state_dict(trained.state_dict())
    trained.eval()
    other.eval()
    for call in s.calls(trained):
        with s.claims.step(f"weights of {call.name} after loading a saved state_dict"):
            s.claims.same(call(other), call(trained), "equal weights")
        with s.claims.step(f"weights of {call.name} of a deep copy"):
            s.claims.same(call(twin), call(trained), "equal weights")


def _compiling(s: _Subject) -> None:
    for training in (False, True):
        eager, router = s.make().train(training), s.make().train(training)
        call = next(s.calls(eager))
        u = call.uniform(eager) if training and eager.draws_noise else None
        with s.claims.step(f"torch.compile(fullgraph=True) in {_mode(eager)}"):
            wanted = call(eager, uniform=u, sample=training)
            found = call(compiled(router), uniform=u, sample=training)  # type: ignore[arg-type]
            s.claims.same(found, wanted, "the weights of eager mode", rtol=1e-4, atol=1e-5)
            _pull(wanted)
            _pull(found)
            for (name, p), q in zip(router.named_parameters(), eager.parameters(), strict=True):
                assert p.grad is not None
                assert q.grad is not None
                rule = f"the gradient of {name} in eager mode"
                s.claims.same(p.grad, q.grad, rule, rtol=1e-4, atol=1e-5)


_CHECKS = (
    *(_weights, _gates, _determinism, _noise, _neighbours),
    *(_gradients, _precisions, _state, _compiling),
)


def _valid(claims: Claims, w: Tensor, tolerance: float) -> None:
    claims.finite(w)
    claims.require(w.min() >= 0, f"a weight of {w.min().item():.3g}", "no weight below 0")
    sums = w.double().sum(-1)
    worst = sums.flatten()[(sums - 1).abs().argmax()].item()
    came = f"the weights of a head sum to {worst:.6g}"
    claims.require(abs(worst - 1) <= tolerance, came, "1")


def _pull(w: Tensor) -> None:
    """Backward of a loss that treats every skill differently."""
    if w.requires_grad:
        generator = torch.Generator().manual_seed(5)
        (w * torch.randn(w.shape, generator=generator)).sum().backward()


def _mode(router: Router) -> str:
    return "training" if router.training else "evaluation"
