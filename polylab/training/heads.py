"""A classification head for each task, in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["HEAD", "TaskHeads", "add_heads"]

HEAD = "task_heads"


class TaskHeads(nn.Module):
    """`logits = W[task] pool(x) + b[task]`, with `pool` the mean over attended tokens.

    Args:
        n_labels: Of each task.
        d: Width of the encoder.
        std: Of the normal weights; biases are 0, as in transformers' heads.
        dropout: Of the pooled vector.
    """

    real: Tensor

    def __init__(self, n_labels: Sequence[int], *, d: int, std: float, dropout: float) -> None:
        super().__init__()
        width = max(n_labels)
        self.weight = nn.Parameter(torch.randn(len(n_labels), width, d) * std)
        self.bias = nn.Parameter(torch.zeros(len(n_labels), width))
        self.dropout = nn.Dropout(dropout)
        real = torch.arange(width) < torch.tensor(list(n_labels))[:, None]
        self.register_buffer("real", real, persistent=False)

    def forward(
        self,
        hidden: Float[Tensor, "batch seq d"],
        attention_mask: Int[Tensor, "batch seq"],
        task_ids: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch labels"]:
        """Logits of each row's task, `-inf` beyond its labels; float32."""
        mask = attention_mask[..., None].to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        pooled = self.dropout(pooled).to(self.weight.dtype)
        logits = torch.einsum("bd,bld->bl", pooled, self.weight[task_ids]) + self.bias[task_ids]
        return logits.float().masked_fill(~self.real[task_ids], float("-inf"))


def add_heads(model: PreTrainedModel, n_labels: Sequence[int]) -> None:
    """Put fresh heads into an encoder, as its module `HEAD`; its own forward does not call them."""
    config = model.config
    dropout = next(
        (
            float(value)
            for name in ("classifier_dropout", "hidden_dropout_prob")
            if (value := getattr(config, name, None)) is not None
        ),
        0.0,
    )
    heads = TaskHeads(
        n_labels,
        d=config.hidden_size,
        std=getattr(config, "initializer_range", 0.02),
        dropout=dropout,
    )
    model.add_module(HEAD, heads.to(model.device))
