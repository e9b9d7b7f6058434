"""What figures must know of a model's routers: who shares one, and what is given, not learned."""

from __future__ import annotations

from dataclasses import dataclass

from polylab.poly.model import PolyModel
from polylab.poly.routers import GivenRouter, PrivateRouter, Router, UniformRouter

__all__ = ["Routers"]

_GIVEN = {
    UniformRouter: "uniform by construction: no task prefers a skill",
    PrivateRouter: "by construction every task has a skill of its own, and uses no other",
    GivenRouter: "this allocation was given, not learned",
}


@dataclass(frozen=True)
class Routers:
    """The routers of a model's active adapter.

    Args:
        of_layers: Of each layer in model order the router, named by the first layer that has it.
        given: In words what is allocated where nothing is learned; empty where it is.
        is_private: Every task has exactly one skill, its own.
    """

    of_layers: dict[str, str]
    given: str = ""
    is_private: bool = False

    @staticmethod
    def of(model: PolyModel) -> Routers:
        """Routers that learn nothing do the same in every layer, and count as one."""
        layers = {n: part.router(model.active_adapter) for n, part in model.active_layers().items()}
        first: dict[object, str] = {}
        of_layers = {name: first.setdefault(_key(router), name) for name, router in layers.items()}
        given = {_words(router) for router in layers.values()}
        return Routers(
            of_layers,
            given.pop() if len(given) == 1 else "",
            all(isinstance(router, PrivateRouter) for router in layers.values()),
        )


def _words(router: Router) -> str:
    if isinstance(router, UniformRouter) and router.n_skills == 1:
        return "one skill, shared by all tasks: there is nothing to choose"
    return _GIVEN.get(type(router), "")


def _key(router: Router) -> object:
    return type(router) if type(router) in _GIVEN else id(router)
