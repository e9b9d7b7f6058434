"""`Plan`: route and mix all layers of an adapter at once, before the base model runs.

Each by itself, the layers would launch dozens of small operations. But the routers of an adapter
have tables of one shape, and the skills of a transformer one of a few shapes: all are evaluated,
and mixed, in a few products over stacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from polylab.poly.combining import AverageFactors
from polylab.poly.fused import Group, Mixed
from polylab.poly.layers import PolyLayer
from polylab.poly.routers import Router
from polylab.poly.routing import Routing
from polylab.poly.stacks import Layout, mix
from polylab.poly.together import read_together
from polylab.poly.weighing import evaluate, layer_weights

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
        together = _together(layers, adapter_name)
        self._revisions = _revisions(layers)
        self._together = together
        self._stacks_a = _stacks(together, "poly_lora_A", adapter_name, self._rows)
        singles = [(layer,) for layer in layers.values()]
        self._stacks_b = _stacks(singles, "poly_lora_B", adapter_name, self._rows)

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
        """Whether the skills are averaged, in plain parameters (none sharded over ranks)."""
        layer = next(iter(self._layers.values()))
        return (
            type(layer.combine[self._name]) is AverageFactors
            and not self._routers[0].is_hard
            and type(layer.poly_lora_A[self._name].data) is Tensor
        )

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
        change = routing.intervention
        weights = routing.weights
        assert weights is not None
        by_layer = routing.records is not None or (change is not None and change.reweigh)
        if by_layer:
            weights = torch.stack([layer_weights(x, None, routing) for x in self._layers.values()])
        a, b = {}, {}
        for stack in self._stacks_a:
            a |= stack.mixed(weights, by_layer=bool(by_layer))
        for stack in self._stacks_b:
            b |= stack.mixed(weights, by_layer=bool(by_layer))
        routing.factors = {}
        for layers in self._together:
            bases = [layer._modules["base_layer"] for layer in layers]
            group = Group(bases, layers[0].scaling[self._name])  # type: ignore[arg-type]
            mixed = Mixed(group, a[layers[0].name], [b[layer.name] for layer in layers])
            for place, layer in enumerate(layers):
                routing.factors[layer.name] = mixed, place


@dataclass(frozen=True)
class _Stack:
    """Banks that are mixed in one product: of one shape, dtype and device.

    Args:
        side: Whose they are, `poly_lora_A` or `poly_lora_B`.
        adapter_name: Of the adapter.
        names: The first layer of each group of `members` layers.
        banks: Where the banks of the layers are.
        members: Layers in each group.
        positions: Of the layers, among those of the adapter.
        index: The rows of the layers' routers.
        dtype: Of the result.
    """

    side: str
    adapter_name: str
    names: list[str]
    banks: list[nn.ParameterDict]
    members: int
    positions: list[int]
    index: Int64[Tensor, " layers"]
    dtype: torch.dtype

    def mixed(
        self, weights: Float[Tensor, "rows batch splits skills"], *, by_layer: bool
    ) -> dict[str, Tensor]:
        """The mixed banks of each group, side by side, by the name of its first layer.

        Args:
            weights: Of each router, or of each layer.
            by_layer: Which.
        """
        banks: list[Any] = [bank._parameters[self.adapter_name] for bank in self.banks]
        device = self.index.device
        if by_layer:
            chosen = torch.stack([weights[position] for position in self.positions])
        else:
            chosen = weights.index_select(0, self.index.to(weights.device))
        is_cast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if is_cast else self.dtype
        # in the banks' own precision, whatever autocast says
        with torch.autocast(device.type, enabled=False) if is_cast else nullcontext():
            layout = Layout(self.members, self.side == "poly_lora_A", dtype)
            factors = mix(chosen.to(device), banks, layout)
        return dict(zip(self.names, factors, strict=True))


def _revisions(layers: Mapping[str, PolyLayer]) -> int:
    return sum(layer.revision for layer in layers.values())


def _together(layers: Mapping[str, PolyLayer], adapter_name: str) -> list[tuple[PolyLayer, ...]]:
    """The layers in groups that read one input, and whose A's have one shape."""
    together = []
    for names in read_together(layers):
        alike: dict[tuple, list[PolyLayer]] = {}
        for layer in (layers[name] for name in names):
            bank, kind = layer.poly_lora_A[adapter_name], type(layer.base_layer)
            key = (bank.shape, bank.device, layer.scaling[adapter_name], kind)
            alike.setdefault(key, []).append(layer)
        together += [tuple(group) for group in alike.values()]
    return together


def _stacks(
    groups: Sequence[tuple[PolyLayer, ...]], side: str, adapter_name: str, rows: Mapping[str, int]
) -> list[_Stack]:
    alike: dict[tuple, list[tuple[PolyLayer, ...]]] = {}
    for group in groups:
        bank = getattr(group[0], side)[adapter_name]
        weight = group[0].weight
        # the layer's input has the dtype of its weight; what enters a quantised layer is not known
        dtype = weight.dtype if weight.is_floating_point() else bank.dtype
        alike.setdefault((len(group), bank.shape, bank.dtype, bank.device, dtype), []).append(group)
    position = {name: place for place, name in enumerate(rows)}
    stacks = []
    for (members, _, _, device, dtype), found in alike.items():
        layers = [layer for group in found for layer in group]
        stack = _Stack(
            side=side,
            adapter_name=adapter_name,
            names=[group[0].name for group in found],
            banks=[getattr(layer, side) for layer in layers],
            members=members,
            positions=[position[layer.name] for layer in layers],
            index=torch.tensor([rows[layer.name] for layer in layers], device=device),
            dtype=dtype,
        )
        stacks.append(stack)
    return stacks
