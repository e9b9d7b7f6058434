"""One task for a whole generation: its update is added to the weights once, not to every token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from polylab.poly.fused import Group, Mixed
from polylab.poly.ragged import PackedMixed
from polylab.poly.routing import Routing

__all__ = ["merge_rows", "mixed_of"]

_EPSILON = 1e-6
"""The last bits of a function of equal numbers depend on where they lie in a tensor."""


class Merged(Mixed):
    """The mixed skills of a group of layers, alike in all rows.

    Each layer's `W + scale * A* B*` is made at its first call. It is a copy: other calls of the
    model, in other threads, see its own weights.
    """

    def __init__(self, group: Group, a: Tensor, bs: Sequence[Tensor]) -> None:
        super().__init__(group, a, bs)
        self._weights: list[Tensor | None] = [None] * len(group.bases)

    def output(self, place: int, x: Tensor) -> Tensor | None:
        """See `Mixed.output`."""
        weight = self._weights[place]
        if weight is None:
            if not self.group.can_fuse(x):
                return None
            weight = self._weights[place] = self._merge(place, x)
        return nn.functional.linear(x, weight, self.group.bases[place]._parameters["bias"])

    def _merge(self, place: int, x: Tensor) -> Tensor:
        a, b = (factor[0].to(x.dtype) for factor in self.factors(place))
        weight = self.group.bases[place]._parameters["weight"]
        assert weight is not None
        weight = weight.t() if self.group.is_transposed else weight
        return weight.addmm(b.t(), a.t(), alpha=self.group.scale)


def merge_rows(routing: Routing) -> None:
    """Route one row for all, and merge what is mixed, if all have the same weights.

    Those of one task may differ in their last bits.
    """
    weights = routing.weights
    if weights is None or bool(((weights - weights[:, :1]).abs() > _EPSILON).any()):
        return
    routing.weights = weights[:, :1]
    if routing.task_ids is not None:
        routing.task_ids = routing.task_ids[:1]
    routing.merges = True


def mixed_of(routing: Routing, group: Group, a: Tensor, bs: Sequence[Tensor]) -> Mixed:
    """What holds mixed skills in a call."""
    if routing.packed is not None:
        return PackedMixed(group, a, bs, routing.packed)
    return Merged(group, a, bs) if routing.merges else Mixed(group, a, bs)
