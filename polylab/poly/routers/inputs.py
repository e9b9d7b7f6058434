"""The router by input (`mope`): skills are chosen from the prompt, or token by token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polylab.poly.routers.base import Ids, Router, Weights, normalise

__all__ = ["InputRouter"]


class InputRouter(Router):
    """`w = g(W LayerNorm(h) / temperature)` per head, g a softmax or a normalised sigmoid.

    h is the mean prompt token, pooled by whoever calls, so that no target token can reach the
    weights; or (`reads="tokens"`) each token of the layer's input, which in a causal model knows of
    no later one. Soft merging by the input: https://arxiv.org/abs/2306.03745; top-k:
    https://arxiv.org/abs/1701.06538, Eq. 3 to 5.

    Args:
        d_in: Width of h.
        n_skills: Number of skills.
        n_splits: Heads.
        temperature: Divides the logits.
        gating: `softmax` or `sigmoid`.
        top_k: Keep only so many skills of each head, and normalise their weights again.
        per_token: Route every token by itself.
    """

    needs_task_ids = False

    def __init__(
        self,
        d_in: int,
        n_skills: int,
        *,
        n_splits: int,
        temperature: float = 1.0,
        gating: str = "softmax",
        top_k: int | None = None,
        per_token: bool = False,
    ) -> None:
        super().__init__()
        self.n_skills, self.n_splits, self.temperature = n_skills, n_splits, temperature
        self.gating, self.top_k = gating, top_k
        self.reads = "tokens" if per_token else "prompt"
        self.norm = nn.LayerNorm(d_in)
        self.proj = nn.Linear(d_in, n_splits * n_skills, bias=False)

    def reset(self) -> None:
        """W = 0: uniform weights. With top-k W ~ N(0, 0.02): ties would all fall to one skill."""
        self.norm.reset_parameters()
        if self.top_k is None:
            nn.init.zeros_(self.proj.weight)
        else:
            nn.init.normal_(self.proj.weight, std=0.02)

    def forward(
        self,
        task_ids: Ids | None = None,  # noqa: ARG002
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,
        *,
        uniform: Float[Tensor, "*batch splits gates"] | None = None,  # noqa: ARG002
        sample: bool | None = None,  # noqa: ARG002
    ) -> Weights:
        """Weights of each row (and token) of the input.

        Raises:
            ValueError: If there is no input.
        """
        if input_ids is None:
            raise ValueError("input_ids=None: a router of the input needs the layer's input.")
        logits = self.proj(self.norm(input_ids.to(self.proj.weight.dtype)))
        logits = logits.unflatten(-1, (self.n_splits, self.n_skills))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        if self.gating == "sigmoid":
            return normalise(self._keep_top(torch.sigmoid(logits)))
        weights = torch.softmax(logits, dim=-1)
        return weights if self.top_k is None else normalise(self._keep_top(weights))

    def copy_from(self, old: Router) -> None:
        """The weights, where only the tasks have changed.

        Raises:
            ValueError: If the number of skills has changed too.
        """
        if old.n_skills != self.n_skills:
            raise ValueError(
                f"a router by input with {old.n_skills} skills cannot grow to {self.n_skills}: any "
                "weight of a new skill changes all old outputs."
            )
        self.load_state_dict(old.state_dict())

    def _keep_top(self, weights: Weights) -> Weights:
        if self.top_k is None:
            return weights
        best = weights.topk(self.top_k, dim=-1).indices
        return weights * torch.zeros_like(weights).scatter(-1, best, 1.0)
