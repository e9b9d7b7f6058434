"""Routers: from a task id, or from the prompt, to the weights of a layer's skills.

A router is one layer's, and has two methods: `reset` and `forward`. The weights of one example and
head sum to 1 (up to `EPS`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = [
    "EPS",
    "InputRouter",
    "PrivateRouter",
    "Router",
    "SharedRouter",
    "TaskRouter",
    "normalise",
    "relax",
]

EPS = 1e-12

_Weights = Float[Tensor, "*batch splits skills"]


class Router(nn.Module, ABC):
    """Chooses the weights of a layer's skills for each example."""

    needs_task_ids = True
    """False: `forward` reads no `task_ids`."""
    needs_prompt = False
    """True: `forward` reads the pooled prompt as `input_ids`."""
    draws_noise = False
    """True: weights are random in training."""
    is_hard = False
    """True: the weights are one-hot, so a skill may be indexed instead of mixed."""

    @abstractmethod
    def reset(self) -> None:
        """Draw the initial parameters."""

    @abstractmethod
    def forward(
        self,
        task_ids: Int64[Tensor, "*batch"] | None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,
        *,
        uniform: Float[Tensor, "*batch splits skills"] | None = None,
        sample: bool | None = None,
    ) -> _Weights:
        """`weights[b, q, s]`, normalised over the skills `s` of each head `q`.

        Args:
            task_ids: One id per example, or per token of packed rows.
            input_ids: The layer's input (the argument's name is PEFT's).
            uniform: Noise in (0, 1) to use; None draws it from torch's global generator.
            sample: Whether to add noise; None means in training only.
        """

    def gates(self, task_ids: Int64[Tensor, "*batch"]) -> _Weights | None:  # noqa: ARG002
        """`z = sigmoid(logits)` where the weights are normalised gates, else None."""
        return None


class TaskRouter(Router):
    """`w = z / sum_s z` with a learned logit for each task, head and skill.

    In evaluation `z = sigmoid(Z)`; in training z is drawn for each example from a relaxed
    Bernoulli around it: `sigmoid((Z + logit(u)) / temperature)`, u uniform. Polytropon
    (https://arxiv.org/abs/2202.13914, section 2.2); heads as in MHR
    (https://arxiv.org/abs/2211.03831).
    """

    def __init__(
        self, n_tasks: int, n_skills: int, *, n_splits: int, noise: bool, temperature: float
    ) -> None:
        super().__init__()
        self.n_tasks, self.n_skills, self.n_splits = n_tasks, n_skills, n_splits
        self.draws_noise, self.temperature = noise, temperature
        self.module_logits = nn.Parameter(torch.empty(n_tasks, n_splits * n_skills))

    def reset(self) -> None:
        """`Z ~ U(-1e-3, 1e-3)`: almost uniform weights."""
        nn.init.uniform_(self.module_logits, -1e-3, 1e-3)

    def forward(
        self,
        task_ids: Int64[Tensor, "*batch"] | None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,  # noqa: ARG002
        *,
        uniform: Float[Tensor, "*batch splits skills"] | None = None,
        sample: bool | None = None,
    ) -> _Weights:
        """See `Router.forward`.

        Raises:
            ValueError: If there are no task ids.
        """
        logits = self._logits(_required(task_ids))
        sample = self.training if sample is None else sample
        if not (sample and self.draws_noise):
            return normalise(torch.sigmoid(logits))
        if uniform is None:
            uniform = self._draw(logits, _required(task_ids))
        return normalise(relax(logits, uniform.to(logits.dtype), temperature=self.temperature))

    def gates(self, task_ids: Int64[Tensor, "*batch"]) -> _Weights:
        """`sigmoid(Z)` of the given tasks."""
        return torch.sigmoid(self._logits(task_ids))

    def _logits(self, task_ids: Tensor) -> Tensor:
        logits = self.module_logits[task_ids].unflatten(-1, (self.n_splits, self.n_skills))
        # A sum of 16-bit gates underflows where one of fp32 does not.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _draw(self, logits: Tensor, task_ids: Tensor) -> Tensor:
        if task_ids.ndim == 1:
            return torch.rand_like(logits)
        # Packed rows: the tokens of one row and task are one example, and share its noise.
        n_rows = len(task_ids)
        shape = (n_rows, self.n_tasks, self.n_splits, self.n_skills)
        drawn = torch.rand(shape, dtype=logits.dtype, device=logits.device)
        return drawn[torch.arange(n_rows, device=logits.device)[:, None], task_ids]


class SharedRouter(Router):
    """One skill with weight 1: a plain LoRA for all tasks."""

    needs_task_ids = False

    def __init__(self, n_splits: int) -> None:
        super().__init__()
        self.register_buffer("ones", torch.ones(1, n_splits, 1), persistent=False)

    def reset(self) -> None:
        """Nothing to draw."""

    def forward(
        self,
        task_ids: Int64[Tensor, "*batch"] | None = None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,  # noqa: ARG002
        *,
        uniform: Float[Tensor, "*batch splits skills"] | None = None,  # noqa: ARG002
        sample: bool | None = None,  # noqa: ARG002
    ) -> _Weights:
        """Ones; a single row of them without `task_ids`."""
        ones = self.get_buffer("ones")
        return ones if task_ids is None else ones[0].expand(*task_ids.shape, -1, -1)


class PrivateRouter(Router):
    """One skill for each task, chosen by its id."""

    is_hard = True

    def __init__(self, n_tasks: int, n_splits: int) -> None:
        super().__init__()
        self.n_tasks, self.n_splits = n_tasks, n_splits

    def reset(self) -> None:
        """Nothing to draw."""

    def forward(
        self,
        task_ids: Int64[Tensor, "*batch"] | None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,  # noqa: ARG002
        *,
        uniform: Float[Tensor, "*batch splits skills"] | None = None,  # noqa: ARG002
        sample: bool | None = None,  # noqa: ARG002
    ) -> _Weights:
        """One-hot rows, the same in every head.

        Raises:
            ValueError: If there are no task ids.
        """
        rows = nn.functional.one_hot(_required(task_ids), self.n_tasks).float()
        return rows[..., None, :].expand(*rows.shape[:-1], self.n_splits, -1)


class InputRouter(Router):
    """`w = softmax(W LayerNorm(h) / temperature)` per head; h is the mean prompt token.

    The prompt is pooled by whoever calls, so that no target token can reach the weights. W starts
    at zero: uniform weights.
    """

    needs_task_ids = False
    needs_prompt = True

    def __init__(self, d_in: int, n_skills: int, *, n_splits: int, temperature: float) -> None:
        super().__init__()
        self.n_skills, self.n_splits, self.temperature = n_skills, n_splits, temperature
        self.norm = nn.LayerNorm(d_in)
        self.proj = nn.Linear(d_in, n_splits * n_skills, bias=False)

    def reset(self) -> None:
        """Uniform weights for every input."""
        self.norm.reset_parameters()
        nn.init.zeros_(self.proj.weight)

    def forward(
        self,
        task_ids: Int64[Tensor, "*batch"] | None = None,  # noqa: ARG002
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,
        *,
        uniform: Float[Tensor, "*batch splits skills"] | None = None,  # noqa: ARG002
        sample: bool | None = None,  # noqa: ARG002
    ) -> _Weights:
        """See `Router.forward`; inputs with a sequence axis are averaged over it.

        Raises:
            ValueError: If there is no input.
        """
        if input_ids is None:
            raise ValueError("input_ids=None: a router of the input needs the layer's input.")
        hidden = input_ids.flatten(1, -2).mean(1) if input_ids.ndim > 2 else input_ids
        logits = self.proj(self.norm(hidden.to(self.proj.weight.dtype)))
        logits = logits.unflatten(-1, (self.n_splits, self.n_skills))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.softmax(logits / self.temperature, dim=-1)


def relax(logits: _Weights, uniform: _Weights, *, temperature: float) -> _Weights:
    """`sigmoid((logits + logit(uniform)) / temperature)`, a sample of the relaxed Bernoulli.

    In the order, and with the clamps, of torch.distributions, which PEFT samples from: the same
    to the last bit, without its checks of arguments, which wait for an accelerator.
    """
    info = torch.finfo(logits.dtype)
    p = torch.sigmoid(logits).clamp(info.eps, 1 - info.eps)
    u = uniform.clamp(info.eps, 1 - info.eps)
    noisy = (u.log() - (-u).log1p() + p.log() - (-p).log1p()) / temperature
    return torch.sigmoid(noisy).clamp(info.tiny, 1 - info.eps)


def normalise(gates: _Weights) -> _Weights:
    """`gates / (sum_s gates + EPS)`; a head whose gates are all 0 keeps zeros."""
    return gates / (gates.sum(-1, keepdim=True) + EPS)


def _required(task_ids: Tensor | None) -> Tensor:
    if task_ids is None:
        raise ValueError(
            "task_ids=None: this adapter is routed by task. Pass an int64 tensor [batch]."
        )
    return task_ids
