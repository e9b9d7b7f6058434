"""`Mixing`: the skills of many layers, averaged in a few products over stacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from polylab.poly.fused import Group
from polylab.poly.layers import PolyLayer
from polylab.poly.linears import float_dtype_of
from polylab.poly.merged import mixed_of
from polylab.poly.routing import Routing
from polylab.poly.stacks import Layout, mix
from polylab.poly.together import read_together
from polylab.poly.weighing import layer_weights

__all__ = ["Mixing"]

_SMALL = 2**22
"""Weights in a group of layers up to which a GPU waits for launches, and arithmetic is free."""


class Mixing:
    """How the skills of some layers are mixed by weights that are known.

    Args:
        layers: All of an adapter, or those of one block.
        adapter_name: Its name.
        rows: Of each layer of the adapter: the place of its router in `Routing.weights`.
    """

    def __init__(
        self, layers: Mapping[str, PolyLayer], adapter_name: str, rows: Mapping[str, int]
    ) -> None:
        self._layers = dict(layers)
        together = _together(layers, adapter_name)
        self._mixers = _mixers(together, adapter_name, {name: rows[name] for name in layers})
        self._groups = [  # B* is scaled already
            (Group([layer.base_layer for layer in layers], 1.0), [layer.name for layer in layers])
            for layers in together
        ]

    def mix(self, routing: Routing) -> None:
        """Mix the skills of the layers by `routing.weights` into `routing.factors`."""
        change = routing.intervention
        weights = routing.weights
        assert weights is not None
        by_layer = routing.records is not None or bool(change is not None and change.reweigh)
        if by_layer:
            weights = torch.stack([layer_weights(x, None, routing) for x in self._layers.values()])
        a, b = {}, {}
        for mixer in self._mixers:
            own_a, own_b = mixer.mix(weights, by_layer=by_layer)
            a |= own_a
            b |= own_b
        if routing.factors is None:
            routing.factors = {}
        for group, names in self._groups:
            bs = [b[name] for name in names if name in b]  # one for all, or of each
            mixed = mixed_of(routing, group, a[names[0]], bs)
            for place, name in enumerate(names):
                routing.factors[name] = mixed, place


@dataclass(frozen=True)
class _Mixer:
    """The banks on one device.

    Args:
        adapter_name: Of the adapter.
        stacks: Banks of one shape: how they are to lie, where they are, and the name of the first
            layer of each group in the stack.
        rows: The rows of the layers' routers, through all stacks.
        positions: The places of the layers among those of the adapter.
    """

    adapter_name: str
    stacks: list[tuple[Layout, list[nn.ParameterDict], list[str]]]
    rows: Int64[Tensor, " layers"]
    positions: Int64[Tensor, " layers"]

    def mix(
        self, weights: Float[Tensor, "rows batch splits skills"], *, by_layer: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A* of each group and B* of each layer, by the name of the (first) layer.

        Args:
            weights: Of each router, or of each layer.
            by_layer: Which.
        """
        device, name = self.rows.device, self.adapter_name
        is_cast = torch.is_autocast_enabled(device.type)
        given: list[tuple[Layout, list[Any]]] = []
        for layout, holders, _ in self.stacks:
            if is_cast:
                layout = replace(layout, dtype=torch.get_autocast_dtype(device.type))
            given.append((layout, [holder._parameters[name] for holder in holders]))
        # in the banks' own precision, whatever autocast says
        with torch.autocast(device.type, enabled=False) if is_cast else nullcontext():
            index = self.positions if by_layer else self.rows
            mixed = mix(weights.to(device), index, given)
        a, b = {}, {}
        for (layout, _, names), factors in zip(self.stacks, mixed, strict=True):
            (a if layout.is_a else b).update(zip(names, factors, strict=True))
        return a, b


def _together(layers: Mapping[str, PolyLayer], adapter_name: str) -> list[tuple[PolyLayer, ...]]:
    """The layers in groups that read one input, and whose A's have one shape."""
    together = []
    for names in read_together(layers):
        alike: dict[tuple, list[PolyLayer]] = {}
        for layer in (layers[name] for name in names):
            bank, kind = layer.poly_lora_A[adapter_name], type(layer.base_layer)
            key = (bank.shape, bank.device, kind)
            alike.setdefault(key, []).append(layer)
        together += [tuple(group) for group in alike.values()]
    return together


def _mixers(
    together: Sequence[tuple[PolyLayer, ...]], adapter_name: str, rows: Mapping[str, int]
) -> list[_Mixer]:
    alike: dict[torch.device, dict[tuple, list[tuple[PolyLayer, ...]]]] = {}
    blocks = [part for group in together for part in _parts(group, adapter_name)]
    for side, groups in (("poly_lora_A", together), ("poly_lora_B", blocks)):
        for group in groups:
            bank, weight = getattr(group[0], side)[adapter_name], group[0].weight
            # a layer's input has the dtype of its weight; what enters a quantised one is not known
            is_plain = float_dtype_of(group[0].base_layer) == weight.dtype
            dtype = weight.dtype if is_plain else bank.dtype
            scale = 1.0 if side == "poly_lora_A" else group[0].scaling[adapter_name]
            key = (side, len(group), bank.shape, bank.dtype, dtype, scale)
            alike.setdefault(bank.device, {}).setdefault(key, []).append(group)
    position = {name: place for place, name in enumerate(rows)}
    mixers = []
    for device, found in alike.items():
        stacks, names = [], []
        for (side, members, _, _, dtype, scale), groups in found.items():
            layers = [layer for group in groups for layer in group]
            layout = Layout(len(layers), members, side == "poly_lora_A", dtype, scale)
            firsts = [group[0].name for group in groups]
            stacks.append((layout, [getattr(layer, side) for layer in layers], firsts))
            names += [layer.name for layer in layers]
        index = torch.tensor([rows[name] for name in names], device=device)
        positions = torch.tensor([position[name] for name in names], device=device)
        mixers.append(_Mixer(adapter_name, stacks, index, positions))
    return mixers


def _parts(group: tuple[PolyLayer, ...], adapter_name: str) -> list[tuple[PolyLayer, ...]]:
    """The group if its B*s are to be the blocks of one, else its layers."""
    banks = [layer.poly_lora_B[adapter_name] for layer in group]
    weights = [layer.weight for layer in group]
    is_alike = len({(bank.shape, bank.device, bank.dtype) for bank in banks}) == 1
    is_alike = is_alike and len({layer.scaling[adapter_name] for layer in group}) == 1
    is_small = sum(weight.numel() for weight in weights) <= _SMALL and weights[0].is_cuda
    if len(group) > 1 and is_alike and is_small and all(layer.bias is None for layer in group):
        return [group]
    return [(layer,) for layer in group]
