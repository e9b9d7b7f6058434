"""From logits and uniform noise to the gates of one training step."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["RelaxedBernoulli", "Sampler", "StraightThrough"]

_Cells = Float[Tensor, "*batch splits gates"]


class Sampler(ABC):
    """Draws gates in [0, 1] around `sigmoid(logits)`.

    A class of your own is named in the configuration, `noise: {_target_: my_lab.Mine, ...}`, and
    built from the other keys.
    """

    @abstractmethod
    def __call__(self, logits: _Cells, uniform: _Cells) -> _Cells:
        """Gates, differentiable in `logits`; `uniform` lies in (0, 1)."""


class RelaxedBernoulli(Sampler):
    """`sigmoid((logits + logit(u)) / temperature)`: the concrete distribution.

    Polytropon, https://arxiv.org/abs/2202.13914; Maddison et al.,
    https://arxiv.org/abs/1611.00712. In the order, and with the clamps, of torch.distributions,
    which PEFT samples from: the same to the last bit, without its checks of arguments, which wait
    for an accelerator.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def __call__(self, logits: _Cells, uniform: _Cells) -> _Cells:
        """See `Sampler`."""
        info = torch.finfo(logits.dtype)
        p = torch.sigmoid(logits).clamp(info.eps, 1 - info.eps)
        u = uniform.clamp(info.eps, 1 - info.eps)
        noisy = (u.log() - (-u).log1p() + p.log() - (-p).log1p()) / self.temperature
        return torch.sigmoid(noisy).clamp(info.tiny, 1 - info.eps)


class StraightThrough(Sampler):
    """Gates of 0 or 1 (`u < sigmoid(logits)`) with the gradient of `RelaxedBernoulli`.

    Jang et al., https://arxiv.org/abs/1611.01144. A head all of whose gates fell to 0
    opens its most probable one: an example always has a skill.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self._relaxed = RelaxedBernoulli(temperature)

    def __call__(self, logits: _Cells, uniform: _Cells) -> _Cells:
        """See `Sampler`."""
        soft = self._relaxed(logits, uniform)
        hard = (soft > 0.5).to(soft.dtype)
        best = torch.zeros_like(hard).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        hard = torch.where(hard.sum(-1, keepdim=True) > 0, hard, best)
        return hard + soft - soft.detach()
