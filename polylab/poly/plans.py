"""`Plan`: route and mix all layers of an adapter at once, before the base model runs.

Each by itself, the layers would launch dozens of small operations. But the routers of an adapter
have tables of one shape, and the skills of a transformer one of a few shapes: all are evaluated,
and mixed, in a few products over stacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from polylab.poly.combining import AverageFactors
from polylab.poly.layers import PolyLayer
from polylab.poly.mixing import Mixing
from polylab.poly.routers import Router
from polylab.poly.routing import Routing
from polylab.poly.weighing import evaluate

__all__ = ["Plan"]


class Plan:
    """How the layers of one adapter are routed and mixed.

    It holds for the devices and dtypes that the model has when it is made.

    Args:
        layers: The adapter's layers, named as in the base model.
        adapter_name: Its name.
    """

    def __init__(self, layers: Mapping[str, PolyLayer], adapter_name: str) -> None:
        self._layers, self._name = dict(layers), adapter_name
        places: dict[int, int] = {}
        self._routers: list[Router] = []
        self._indexes: list[int] = []  # of each router: the first layer, whose noise it draws
        self._rows: dict[str, int] = {}
        for name, layer in layers.items():
            router = layer.router(adapter_name)
            if id(router) not in places:
                places[id(router)] = len(places)
                self._routers.append(router)
                self._indexes.append(layer.index)
            self._rows[name] = places[id(router)]
        self._revisions = _revisions(layers)
        self._mixing = Mixing(self._layers, adapter_name, self._rows)
        self._blocks: dict[str, Mixing] = {}

    @property
    def is_current(self) -> bool:
        """Whether no layer has got another adapter by itself since."""
        return self._revisions == _revisions(self._layers)

    @property
    def shares_routers(self) -> bool:
        """Whether layers do."""
        return len(self._routers) < len(self._layers)

    @property
    def can_mix(self) -> bool:
        """Whether the skills are averaged."""
        layer = next(iter(self._layers.values()))
        return type(layer.combine[self._name]) is AverageFactors and not self._routers[0].is_hard

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the skills."""
        layer = next(iter(self._layers.values()))
        return type(layer.poly_lora_A[self._name].data) is not Tensor

    def weigh(self, routing: Routing, hidden: Float[Tensor, "batch *seq d"] | None = None) -> None:
        """Evaluate all routers, each once, into `routing.weights`.

        Args:
            routing: Of the call.
            hidden: The pooled embeddings, where the routers read them.
        """
        bank = next(iter(self._layers.values())).poly_lora_A[self._name]
        routing.rows = self._rows
        routing.weights = evaluate(
            self._routers, routing, hidden=hidden, indexes=self._indexes, device=bank.device
        )

    def mix(self, routing: Routing) -> None:
        """Mix the skills of all layers by `routing.weights` into `routing.factors`."""
        self._mixing.mix(routing)

    def mix_block(self, routing: Routing, names: Sequence[str]) -> None:
        """The same for some layers, those of one block."""
        known = self._blocks.get(names[0])
        if known is None:
            own = {name: self._layers[name] for name in names}
            known = self._blocks[names[0]] = Mixing(own, self._name, self._rows)
        known.mix(routing)


def _revisions(layers: Mapping[str, PolyLayer]) -> int:
    return sum(layer.revision for layer in layers.values())
