"""Frozen linear layers that read one input, grouped, and what is mixed for them in a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from polylab.poly.combining import add_update
from polylab.poly.products import routed_linears

__all__ = ["Group", "Mixed"]


class Group:
    """Base layers that (should) read one input, and the scale of their updates.

    Args:
        bases: The layers, of one kind and input width.
        scale: Of the updates.
    """

    def __init__(self, bases: Sequence[nn.Module], scale: float) -> None:
        self.bases, self.scale = tuple(bases), scale
        self.is_transposed = type(bases[0]) is Conv1D

    def can_fuse(self, x: Tensor) -> bool:
        """Whether `outputs` computes what calling each of the bases would.

        Only plain frozen layers in the dtype of x do: not quantised, sharded, hooked or patched
        ones, nor layers that autocast would cast.
        """
        device = x.device.type
        if not x.numel():
            return False
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != x.dtype:
            return False
        kind = type(self.bases[0])
        if kind is not nn.Linear and kind is not Conv1D:
            return False
        has_bias = self.bases[0]._parameters["bias"] is not None
        for base in self.bases:
            weight, bias = base._parameters["weight"], base._parameters["bias"]
            if (
                type(base) is not kind
                or type(weight) is not nn.Parameter
                or weight.dtype != x.dtype
                or weight.device != x.device
                or weight.requires_grad
                or (bias is not None) != has_bias
                or (bias is not None and bias.requires_grad)
                or base._forward_hooks
                or base._forward_pre_hooks
                or base._backward_hooks
                or "forward" in base.__dict__
            ):
                return False
        return True

    def outputs(
        self,
        x: Float[Tensor, "*rows d_in"],
        a: Float[Tensor, "groups_a d_in mk"],
        bs: Sequence[Float[Tensor, "groups k d_out"]],
    ) -> Sequence[Tensor]:
        """`base(x) + scale * (x A*) B*` of each base; group n owns the n-th equal run of x's rows.

        Args:
            x: Input of all bases, which `can_fuse` accepts.
            a: A* of each base side by side; one group for all, or as many as the B*'s have.
            bs: B* of each base; or one for all, whose blocks they are: see `Layout`.

        Raises:
            ValueError: If the rows of x do not divide into the groups.
        """
        dtype = x.dtype
        if a.dtype != dtype or bs[0].dtype != dtype:
            a, bs = a.to(dtype), [b.to(dtype) for b in bs]
        rows, n = x.numel() // x.shape[-1], bs[0].shape[0]
        if not n or rows % n:
            raise ValueError(
                f"{rows} rows of a layer's input cannot be split among task_ids of length {n}: the "
                "layer must see the same number of rows for every example."
            )
        weights: list[Any] = [base._parameters["weight"] for base in self.bases]
        biases: list[Any] = [base._parameters["bias"] for base in self.bases]
        if biases[0] is None:
            biases = []
        return routed_linears(x, weights, biases, a, bs, self.scale, self.is_transposed)


class Mixed:
    """The mixed skills of a group of layers in one call.

    The first of the layers to be called computes the outputs of all. A layer that is then called
    with another input gets an output of its own: groups are a guess at what a model will do.
    """

    def __init__(self, group: Group, a: Tensor, bs: Sequence[Tensor]) -> None:
        self.group, self.a, self.bs = group, a, bs
        self._x: Tensor | None = None
        self._left: list[Tensor | None] = []

    def output(self, place: int, x: Float[Tensor, "*rows d_in"]) -> Tensor | None:
        """Of the layer at `place` in the group; None where the group cannot be fused."""
        if self._x is not x or self._left[place] is None:
            if not self.group.can_fuse(x):
                return None
            self._left = [*self.group.outputs(x, self.a, self.bs)]
            self._x = x
        y, self._left[place] = self._left[place], None
        if len(self._left) == 1 or not any(left is not None for left in self._left):
            self._x = None
        return y

    def add(
        self, place: int, y: Float[Tensor, "*rows d_out"], x: Float[Tensor, "*rows d_in"]
    ) -> Float[Tensor, "*rows d_out"]:
        """The layer's output y and its update, where `output` gives None."""
        return add_update(y, x, factors=self.factors(place), scale=self.group.scale)

    def factors(self, place: int) -> tuple[Tensor, Tensor]:
        """A* and B* of the layer at `place`."""
        count = len(self.group.bases)
        rank = self.a.shape[-1] // count
        a = self.a.narrow(-1, place * rank, rank)
        if len(self.bs) == count:
            return a, self.bs[place]
        width = self.bs[0].shape[2] // count
        own_rows = self.bs[0].narrow(1, place * rank, rank)
        return a, own_rows.narrow(2, place * width, width)
