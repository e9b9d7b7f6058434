"""Which layers can be adapted, and their sizes."""

from __future__ import annotations

import math

from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["check_splits", "features_of"]


def features_of(base_layer: nn.Module) -> tuple[int, int]:
    """`(d_in, d_out)` of a layer that can be adapted.

    Raises:
        TypeError: If it cannot.
    """
    if isinstance(base_layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise TypeError(
            "the out_proj of nn.MultiheadAttention cannot be adapted: its forward is never called."
        )
    if isinstance(base_layer, nn.Linear):
        return base_layer.in_features, base_layer.out_features
    if isinstance(base_layer, Conv1D):
        d_in, d_out = base_layer.weight.shape
        return d_in, d_out
    raise TypeError(
        f"a layer of type {type(base_layer).__name__} cannot be adapted. Valid types: nn.Linear "
        "and transformers' Conv1D."
    )


def check_splits(name: str, base_layer: nn.Module, *, n_splits: int) -> None:
    """Refuse heads that do not divide a layer.

    Raises:
        ValueError: Naming the layer.
    """
    d_in, d_out = features_of(base_layer)
    if d_in % n_splits or d_out % n_splits:
        common = math.gcd(d_in, d_out)
        valid = [n for n in range(1, common + 1) if common % n == 0]
        raise ValueError(
            f"n_splits={n_splits} does not divide layer {name!r}, which has in_features={d_in} "
            f"and out_features={d_out}. Valid for it: {valid}."
        )
