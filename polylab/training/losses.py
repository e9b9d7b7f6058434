"""Token losses per example, and their sums per task between two log lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from polylab.poly.packing import Packing

if TYPE_CHECKING:
    from polylab.poly import PolyModel

IGNORED = -100


def shift_right(
    labels: Int[Tensor, "batch seq"], *, start: int, pad: int
) -> Int[Tensor, "batch seq"]:
    """The decoder's input under teacher forcing: `start`, then all labels but the last."""
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == IGNORED, pad)


def before_first_label(
    labels: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"]
) -> Bool[Tensor, "batch seq"]:
    """The prompt of a decoder-only example: attended tokens left of everything it is trained on."""
    return ((labels != IGNORED).cumsum(dim=1) == 0) & attention_mask.bool()


class ExampleLosses(NamedTuple):
    """Of one batch."""

    losses: Float[Tensor, " batch"]  # summed over the example's tokens
    tokens: Int[Tensor, " batch"]  # of its label
    prior: Float[Tensor, ""] | None  # of the adapter's priors, in training
    encoded: Float[Tensor, "batch seq d_model"] | None  # the encoder's output, where there is one


def example_losses(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    start: int | None,
    pad: int,
    encoded: Float[Tensor, "batch seq d_model"] | None = None,
    label_smoothing: float = 0.0,
) -> ExampleLosses:
    """Summed token losses and label tokens of each example.

    The loss is computed here, not by the model, because per-task losses need it per example.

    Args:
        model: Takes `task_ids` beside a transformers model's arguments, and returns `.logits`.
        batch: Of the data module; packed where it has `packed_lengths`.
        start: The decoder's first token for an encoder-decoder, None for a decoder-only model.
        pad: Pad token.
        encoded: The encoder's output for `input_ids`, where it is known (see `reusable`).
        label_smoothing: How much of each label token's probability goes to all tokens alike, as in
            `torch.nn.functional.cross_entropy`.
    """
    if "packed_lengths" in batch:
        return _packed_losses(model, batch, start=start, pad=pad, label_smoothing=label_smoothing)
    labels, mask = batch["labels"], batch["attention_mask"]
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": mask,
        "task_ids": batch["task_ids"],
        # a cache is of no use without generation, and makes compiled blocks recompile per layer
        "use_cache": False,
    }
    if encoded is not None:
        inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded)
    if start is not None:
        output = model(decoder_input_ids=shift_right(labels, start=start, pad=pad), **inputs)
        logits = output.logits
    else:
        output = model(prompt_mask=before_first_label(labels, mask), **inputs)
        logits, labels = output.logits[:, :-1], labels[:, 1:]
    losses = _token_losses(logits, labels, label_smoothing).sum(dim=1)
    tokens = (labels != IGNORED).sum(dim=1)
    prior, encoded = (getattr(output, k, None) for k in ("prior_loss", "encoder_last_hidden_state"))
    return ExampleLosses(losses, tokens, prior, encoded)


def _packed_losses(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    start: int | None,
    pad: int,
    label_smoothing: float,
) -> ExampleLosses:
    """The same of packed rows, example by example."""
    labels, lengths = batch["labels"], batch["packed_lengths"]
    inputs = {name: batch[name] for name in ("input_ids", "task_ids", "packed_lengths")}
    if start is not None:
        lengths = inputs["decoder_packed_lengths"] = batch["decoder_packed_lengths"]
    packing = Packing(lengths, width=labels.shape[1], device=labels.device)
    if start is not None:
        shifted = shift_right(labels, start=start, pad=pad)
        inputs["decoder_input_ids"] = shifted.masked_fill(packing.positions == 0, start)
        output = model(**inputs)
        losses = _token_losses(output.logits, labels, label_smoothing)
    else:
        seen = (labels != IGNORED).cumsum(dim=1)
        starts = torch.arange(labels.shape[1], device=labels.device) - packing.positions
        # an example starts with its prompt, before which the labels are those of others
        prompt = packing.attended & (seen == seen.gather(1, starts))
        output = model(prompt_mask=prompt, **inputs)
        losses = _token_losses(output.logits[:, :-1], labels[:, 1:], label_smoothing)
        losses = F.pad(losses, (1, 0))
    tokens = packing.sum((labels != IGNORED).to(torch.float32)).long()
    return ExampleLosses(packing.sum(losses), tokens, getattr(output, "prior_loss", None), None)


def _token_losses(
    logits: Float[Tensor, "rows seq vocabulary"],
    labels: Int[Tensor, "rows seq"],
    label_smoothing: float,
) -> Float[Tensor, "rows seq"]:
    precise = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(
        logits.transpose(1, 2).to(precise),
        labels,
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    )


def reusable(model: PolyModel, encoded: Tensor | None) -> Tensor | None:
    """The encoder's output of one call if another may start from it, else None.

    Routers of the embeddings need a whole call.
    """
    reads_embeddings = model.config_of(model.active_adapter).router_input == "embeddings"
    return None if reads_embeddings or not model.config.is_encoder_decoder else encoded


@dataclass(frozen=True)
class Interval:
    """What happened since the previous log line, over all ranks, without the absent tasks."""

    loss: float | None
    task_losses: dict[str, float]
    task_examples: dict[str, int]
    """Examples of each task seen since the start of the run."""

    def metrics(self, task_names: Iterable[str]) -> dict[str, float]:
        """By their keys in the logs, for the tasks in `task_names`."""
        metrics: dict[str, float] = {} if self.loss is None else {"train/loss": self.loss}
        for task in task_names:
            if task in self.task_losses:
                metrics[f"train/{task}/loss"] = self.task_losses[task]
            if task in self.task_examples:
                metrics[f"train/{task}/examples"] = self.task_examples[task]
        return metrics


def check_finite(loss: float | None, *, step: int) -> None:
    """Refuse to go on with a loss that is no number: every weight that it moves is lost.

    Raises:
        FloatingPointError: If the mean loss since the previous log line is not finite.
    """
    if loss is not None and not math.isfinite(loss):
        raise FloatingPointError(
            f"train/loss is {loss} at step {step}: the training has diverged, or a kernel computes "
            "what is no number · lower optim.lr and optim.router_lr, or set optim.clip; "
            "trainer.precision=32-true or backbone.attn_implementation=eager tell whether it is "
            "the precision · go on from a checkpoint of before with ckpt_path="
        )


class TaskLosses:
    """Accumulates losses per task on the device; the host sees them only when they are drained."""

    def __init__(self, task_names: list[str]) -> None:
        self._names = task_names
        self._seen = torch.zeros(len(task_names), dtype=torch.int64)
        # loss, tokens, examples; float64, so that counts stay exact
        self._pending = torch.zeros(3, len(task_names), dtype=torch.float64)

    def on(self, device: torch.device) -> None:
        """Move the sums to where the losses will be."""
        # Apple's accelerator has no float64
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._pending = self._pending.to(device=device, dtype=dtype)

    def add(
        self,
        task_ids: Int[Tensor, " batch"],
        losses: Float[Tensor, " batch"],
        tokens: Int[Tensor, " batch"],
    ) -> None:
        rows = torch.stack([losses.detach(), tokens, torch.ones_like(tokens)])
        self._pending.index_add_(1, task_ids, rows.to(self._pending.dtype))

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> Interval:
        """Add up over ranks with `reduce`, empty the sums, and say what they were."""
        sums = reduce(self._pending.clone()).cpu()
        self._pending.zero_()
        losses, tokens, examples = sums
        self._seen += examples.long()
        present = [i for i, count in enumerate(tokens.tolist()) if count > 0]
        total = tokens.sum().item()
        return Interval(
            loss=losses.sum().item() / total if total else None,
            task_losses={self._names[i]: (losses[i] / tokens[i]).item() for i in present},
            task_examples={self._names[i]: int(n) for i, n in enumerate(self._seen) if n > 0},
        )

    def seen(self) -> dict[str, int]:
        """Examples of each task since the start of the run.

        Those since the previous `drain` are this rank's own and those of the state it loaded.
        """
        counts = self._seen + self._pending[2].cpu().long()
        return dict(zip(self._names, counts.tolist(), strict=True))

    def state_dict(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {"seen": self._seen.clone(), "pending": reduce(self._pending.clone()).cpu()}

    def load_state_dict(self, state: dict[str, Tensor], *, keep_pending: bool) -> None:
        """Continue from `state`; the sums of all ranks go to the one with `keep_pending`."""
        self._seen = state["seen"].clone().cpu()
        pending = state["pending"].to(self._pending)
        self._pending = pending.clone() if keep_pending else torch.zeros_like(pending)
