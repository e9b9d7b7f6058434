"""Which layers can be adapted, and their sizes."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["check_splits", "features_of", "float_dtype_of", "keep_differentiable"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def features_of(base_layer: nn.Module) -> tuple[int, int]:
    """`(d_in, d_out)` of a layer that can be adapted; bitsandbytes' linears are `nn.Linear`s.

    Raises:
        TypeError: If it cannot.
    """
    kind = type(base_layer).__name__
    if isinstance(base_layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise TypeError(
            "the out_proj of nn.MultiheadAttention cannot be adapted: its forward is never called. "
            "Name the whole attention in modules_to_save to train a copy of it."
        )
    if isinstance(base_layer, nn.Linear):
        return base_layer.in_features, base_layer.out_features
    if isinstance(base_layer, Conv1D):
        d_in, d_out = base_layer.weight.shape
        return d_in, d_out
    fused = [name for name, p in base_layer.named_parameters(recurse=False) if p.ndim == 3]
    if fused and not isinstance(base_layer, nn.modules.conv._ConvNd):
        raise TypeError(
            f"{kind} holds the fused weights of several experts ({fused}), which see tokens "
            "gathered from many examples, so task_ids cannot be matched to them. Adapt the "
            "attention, or name it in modules_to_save to train a copy of it."
        )
    raise TypeError(
        f"a layer of type {kind} cannot be adapted. Valid types: nn.Linear and transformers' "
        "Conv1D. To train a copy of a module of any other type, such as nn.Embedding, name it in "
        "modules_to_save."
    )


def float_dtype_of(base_layer: nn.Module) -> torch.dtype:
    """The dtype that a layer computes in, which is its weight's unless that is quantised."""
    weight = base_layer.get_parameter("weight")
    for dtype in (weight.dtype, getattr(base_layer, "compute_dtype", None)):
        if dtype in _FLOATS:
            return dtype
    return torch.float32


def keep_differentiable(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking the 4-bit weights of `model` in evaluations on newer CPUs.

    The packed form, which would stay, is for a kernel without a gradient: layers before it would
    learn nothing more, without a word. What is packed already is unpacked.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False
            module.state_dict()  # unpacks


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
