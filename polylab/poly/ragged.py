"""Products of packed tokens with the factors of the example that each belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polylab.poly.fused import Group, Mixed
from polylab.poly.packing import Packed, Packing

__all__ = ["PackedMixed"]


class PackedMixed(Mixed):
    """The mixed skills of a group of layers in a call with packed rows.

    A row is multiplied with the factors of all its examples side by side; of the hidden numbers
    each token keeps those of its own example. That is more arithmetic than needed, a few ranks more
    beside the base layer's product, and none of it waits for the examples' lengths.
    """

    def __init__(self, group: Group, a: Tensor, bs: Sequence[Tensor], packed: Packed) -> None:
        super().__init__(group, a, bs)
        self._packed = packed
        self._hidden: Tensor | None = None

    def output(self, place: int, x: Float[Tensor, "*rows d_in"]) -> Tensor | None:
        """See `Mixed.output`; the update is added in place to what the base layer gives."""
        if not self.group.can_fuse(x):
            return None
        y = self.group.bases[place](x)
        hidden, b = self._factors(place, x)
        y.view(*hidden.shape[:2], -1).baddbmm_(hidden, b, alpha=self.group.scale)
        return y

    def add(
        self, place: int, y: Float[Tensor, "*rows d_out"], x: Float[Tensor, "*rows d_in"]
    ) -> Float[Tensor, "*rows d_out"]:
        """See `Mixed.add`."""
        hidden, b = self._factors(place, x)
        update = torch.bmm(hidden, b) * self.group.scale
        return y + update.to(y.dtype).reshape(y.shape)

    def _factors(
        self, place: int, x: Float[Tensor, "*rows d_in"]
    ) -> tuple[Float[Tensor, "rows seq mk"], Float[Tensor, "rows mk d_out"]]:
        """What each row's tokens keep of `x A*`, and the row's B*'s below each other."""
        packing, b = self._packed.of(x), self.factors(place)[1]
        if self._x is not x or self._hidden is None:
            self._x, rows = x, x.reshape(*packing.shape, -1)
            is_routed = len(b) > 1  # else one pair of factors is for all
            self._hidden = _enter(rows, self.a, packing) if is_routed else rows @ self.a[0]
        rank = self.a.shape[-1] // len(self.group.bases)
        hidden = self._hidden.narrow(-1, place * rank, rank).flatten(2)
        b = packing.arrange(b).flatten(1, 2) if len(b) > 1 else b.expand(len(hidden), -1, -1)
        return hidden, b.to(hidden.dtype)


def _enter(
    x: Float[Tensor, "rows seq d_in"], a: Float[Tensor, "groups_a d_in k"], packing: Packing
) -> Float[Tensor, "rows seq most k"]:
    """`x A*` of each token's own example, in the place that the example has in its row."""
    a = a.to(x.dtype)
    members = packing.members.transpose(1, 2)[..., None]  # rows seq most 1
    if len(a) == 1:
        return (x @ a[0])[:, :, None] * members
    side_by_side = packing.arrange(a).transpose(1, 2).flatten(2)  # rows d_in (most k)
    hidden = torch.bmm(x, side_by_side).unflatten(2, (-1, a.shape[2]))
    return hidden * members
