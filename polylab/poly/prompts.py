"""What an input router may read: the prompt, and no token of the target."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["IGNORED", "pool_prompt", "prompt_before_labels"]

IGNORED = -100  # the label of a token that is not a target


def prompt_before_labels(
    attended: Bool[Tensor, "batch seq"], labels: Int64[Tensor, "batch seq"] | None
) -> Bool[Tensor, "batch seq"]:
    """Attended tokens before a row's first label; all attended ones in a row without labels.

    Not every token with label -100: in a dialogue later user turns follow, and depend on, targets.
    """
    if labels is None:
        return attended
    targets_so_far = (labels != IGNORED).cumsum(-1)
    return attended & (targets_so_far == 0)


def pool_prompt(
    x: Float[Tensor, "*rows d_in"], prompt: Bool[Tensor, "batch seq"] | None, *, where: str
) -> Float[Tensor, "batch d_in"]:
    """Mean of each row's prompt tokens; zeros for a row without any.

    Raises:
        ValueError: If there is no prompt mask, or it does not fit `x`.
    """
    if prompt is None:
        raise ValueError(
            f"layer {where!r} is routed by the prompt and none is known. Call the PolyModel, with "
            "attention_mask or prompt_mask of shape [batch, seq]."
        )
    batch, seq = prompt.shape
    if x.numel() != batch * seq * x.shape[-1]:
        raise ValueError(
            f"the prompt mask has shape {[batch, seq]}, but layer {where!r} sees an input of shape "
            f"{[*x.shape]}. Give prompt_mask with one entry per token of the layer's input."
        )
    mask = prompt.to(x.device, x.dtype)[:, None]  # b 1 l
    total = torch.bmm(mask, x.reshape(batch, seq, x.shape[-1]))[:, 0]
    count = prompt.to(x.device).sum(-1, keepdim=True, dtype=torch.float32)
    return total / count.clamp(min=1)
