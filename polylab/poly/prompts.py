"""What an input router may read: the prompt, and no token of the target."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from polylab.poly.packing import Packing

__all__ = ["IGNORED", "check_prompts", "pool_prompt", "prompt_before_labels", "same_segment"]

IGNORED = -100  # the label of a token that is not a target


def prompt_before_labels(
    attended: Bool[Tensor, "batch seq"],
    labels: Int64[Tensor, "batch seq"] | None,
    segments: Int64[Tensor, "batch seq"] | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Attended tokens before a row's first label; all attended ones in a row without labels.

    Not every token with label -100: in a dialogue later user turns follow, and depend on, targets.

    Args:
        attended: Tokens that are no padding.
        labels: -100 where a token is no target.
        segments: In packed rows the prompt is that of each segment.
    """
    if labels is None:
        return attended
    is_target = labels != IGNORED
    if segments is None:
        return attended & (is_target.cumsum(-1) == 0)
    earlier = same_segment(segments).tril()  # b l l
    targets_so_far = torch.bmm(earlier.float(), is_target.float()[..., None])[..., 0]
    return attended & (targets_so_far == 0)


def check_prompts(prompt: Bool[Tensor, "batch seq"]) -> None:
    """Refuse rows without a prompt: their routing would be that of no input at all.

    On an accelerator, or while compiling, without waiting for the device.

    Raises:
        ValueError: Naming the first such row.
    """
    has_prompt = prompt.any(-1)
    if torch.compiler.is_compiling() or prompt.device.type not in ("cpu", "mps"):
        torch.ops.aten._assert_async.msg(
            has_prompt.all(), "a row of labels starts at its first token: no prompt to route by."
        )
    elif not has_prompt.all():
        row = int(has_prompt.int().argmin())
        raise ValueError(
            f"labels of row {row} start at its first token: there is no prompt to route by. Set "
            "the labels of the prompt to -100, or give prompt_mask [batch, seq]."
        )


def same_segment(segments: Int64[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq seq"]:
    """Which tokens of a packed row belong together."""
    return segments[:, :, None] == segments[:, None]


def pool_prompt(
    x: Float[Tensor, "*rows d_in"],
    prompt: Bool[Tensor, "batch seq"] | None,
    *,
    where: str,
    segments: Int64[Tensor, "batch seq"] | None = None,
    packing: Packing | None = None,
) -> Float[Tensor, "batch *seq d_in"]:
    """Mean of each row's prompt tokens; zeros for a row without any.

    In packed rows (`segments`) each token gets the mean of its own segment's prompt; or there is
    one mean for each example of the `packing`.

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
    mask = prompt.to(x.device)[:, None]  # b 1 l
    if segments is not None:
        mask = mask & same_segment(segments.to(x.device))  # b l l
    if packing is not None:
        mask = mask & packing.members  # b most l
    total = torch.bmm(mask.to(x.dtype), x.reshape(batch, seq, x.shape[-1]))  # b 1|l d
    count = mask.sum(-1, keepdim=True, dtype=torch.float32)
    mean = total / count.clamp(min=1)
    if packing is not None:
        return packing.take(mean)
    return mean if segments is not None else mean[:, 0]
