"""Activations that transformers spells as a chain of operations, as the one fused operation."""

from __future__ import annotations

from torch import nn
from transformers.activations import NewGELUActivation

__all__ = ["fuse_activations"]


def fuse_activations(model: nn.Module) -> None:
    """Replace every `gelu_new` (of T5 v1.1, FLAN-T5, GPT-2) by torch's GELU of the same formula.

    `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`: one kernel and one saved tensor in place of
    eight and seven. The difference is rounding; in 16 bits the fused one rounds once, not eight
    times. The configuration still says `gelu_new`, so a saved model loads as ever.
    """
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))
