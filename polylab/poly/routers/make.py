"""The router that a configuration asks for."""

from __future__ import annotations

from polylab.poly.classes import build, is_custom
from polylab.poly.config import PolyConfig
from polylab.poly.routers.base import Router
from polylab.poly.routers.fixed import GivenRouter, PrivateRouter, UniformRouter
from polylab.poly.routers.inputs import InputRouter
from polylab.poly.routers.sampling import RelaxedBernoulli, Sampler, StraightThrough
from polylab.poly.routers.tasks import CPolyRouter, TaskRouter

__all__ = ["make_router"]

_SAMPLERS: dict[str, type[RelaxedBernoulli] | type[StraightThrough]] = {
    "relaxed_bernoulli": RelaxedBernoulli,
    "straight_through": StraightThrough,
}


def make_router(config: PolyConfig, d_in: int) -> Router:
    """A new router, not yet `reset`.

    Args:
        config: Of the adapter.
        d_in: Width of what a router by input reads.

    Raises:
        ValueError: If a class of the user's own cannot be built, or has other sizes.
    """
    if config.router is not None:
        return _own_router(config, d_in)
    splits = config.n_splits
    if config.poly_type in ("shared", "uniform"):
        return UniformRouter(config.bank_size, splits)
    if config.poly_type == "private":
        return PrivateRouter(config.n_tasks, splits)
    if config.poly_type == "custom":
        assert config.allocation is not None
        return GivenRouter(config.allocation, splits)
    if config.poly_type == "mope":
        return InputRouter(
            d_in,
            config.n_skills,
            n_splits=splits,
            temperature=config.temperature,
            gating=config.gating,
            top_k=config.top_k,
            per_token=config.router_level == "token",
        )
    sampler, per_task = _sampler(config), config.noise_per == "task"
    if config.poly_type == "c-poly":
        return CPolyRouter(
            config.n_tasks,
            config.n_skills,
            n_private=config.n_private,
            n_splits=splits,
            sampler=sampler,
            noise_per_task=per_task,
        )
    return TaskRouter(
        config.n_tasks, config.n_skills, n_splits=splits, sampler=sampler, noise_per_task=per_task
    )


def _sampler(config: PolyConfig) -> Sampler | None:
    if is_custom(config.noise):
        assert isinstance(config.noise, dict)
        return build("noise", config.noise, kind=Sampler, given={})
    if config.noise == "none":
        return None
    return _SAMPLERS[str(config.noise)](config.temperature)


def _own_router(config: PolyConfig, d_in: int) -> Router:
    assert config.router is not None
    sizes = {"n_tasks": config.n_tasks, "n_skills": config.n_skills, "n_splits": config.n_splits}
    router = build("router", config.router, kind=Router, given={**sizes, "d_in": d_in})
    have = (getattr(router, "n_skills", None), getattr(router, "n_splits", None))
    if have != (config.n_skills, config.n_splits):
        raise ValueError(
            f"router {type(router).__name__} has n_skills={have[0]} and n_splits={have[1]}, but "
            f"the adapter n_skills={config.n_skills} and n_splits={config.n_splits}: set both "
            "attributes in its __init__."
        )
    if router.draws_noise and not router.needs_task_ids and config.noise_source == "keyed":
        raise ValueError(
            f"router {type(router).__name__} draws noise and reads no task_ids: keyed noise is per "
            "task's example. Give noise_source='global'."
        )
    if router.reads not in (None, "prompt", "tokens"):
        raise ValueError(
            f"router {type(router).__name__} has reads={router.reads!r}; valid: None, 'prompt', "
            "'tokens'."
        )
    return router
