"""How fast the training is, and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from polylab.training.distributed import gather_tensors

__all__ = ["Throughput"]

_KEPT = 2**20  # places in batches that are kept to be counted together: at most 8 MiB, or a batch
_NEVER = -1  # no token id


class Throughput(Callback):
    """Logs `throughput/tokens_per_second`, `throughput/padding` and `memory/peak_mb`.

    All beside the training loss.

    Tokens are the attended inputs plus, for encoder-decoder models, the labels that count; all
    ranks together. Padding is the share of the places in the batches that hold none. The time of
    validations is left out. They are counted on the device, those of many batches at once, and read
    every `trainer.log_every_n_steps` steps and at the last one. Memory is the peak of PyTorch's
    allocator on a CUDA device, else that of the whole process, of the largest rank, in MiB.

    Batches must be mappings with `attention_mask` or `input_ids`; others give no token rate and no
    padding. What they hold must not be overwritten after their step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tokens = torch.zeros((), dtype=torch.long, device=pl_module.device)
        self._places = 0  # for tokens; known on the host, from shapes
        self._kept: dict[int, list[Tensor]] = {}  # by the value of a place that holds no token
        self._kept_places = 0
        self._has_tokens = True
        self._logged_step = trainer.global_step
        self._since = time.perf_counter()
        self._paused = 0.0
        self._is_encoder_decoder = _is_encoder_decoder(pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        marks = _marks(batch, with_labels=self._is_encoder_decoder)
        self._has_tokens = self._has_tokens and bool(marks)
        for tensor, blank in marks:
            self._places += tensor.numel()
            self._kept_places += tensor.numel()
            self._kept.setdefault(blank, []).append(tensor)
        if self._kept_places >= _KEPT:
            self._count()
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = step == trainer.max_steps or (every > 0 and step % every == 0)
        if due and step != self._logged_step:
            self._log(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._pause_began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if hasattr(self, "_paused"):  # not for a validation outside of the training
            self._paused += time.perf_counter() - self._pause_began

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._logged_step:
            self._log(trainer, pl_module)

    def _count(self) -> None:
        """Launch the counting of all kept batches together: batch by batch it takes longer."""
        for blank, tensors in self._kept.items():
            self._tokens += (torch.cat([t.flatten() for t in tensors]) != blank).sum()
        self._kept.clear()
        self._kept_places = 0

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count()
        known = self._tokens.new_tensor([self._places, _peak_bytes(pl_module.device)])
        own = torch.stack([self._tokens, *known])
        ranks = gather_tensors(own[None], trainer.world_size).tolist()  # waits for the device
        seconds = time.perf_counter() - self._since - self._paused
        tokens, places, peaks = zip(*ranks, strict=True)
        metrics = {"memory/peak_mb": max(peaks) / 2**20}
        if self._has_tokens:
            metrics["throughput/tokens_per_second"] = sum(tokens) / max(seconds, 1e-9)
            metrics["throughput/padding"] = 1 - sum(tokens) / max(sum(places), 1)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        self._tokens.zero_()
        self._places = 0
        self._since, self._paused = time.perf_counter(), 0.0
        self._logged_step = trainer.global_step


def _marks(batch: Any, *, with_labels: bool) -> list[tuple[Tensor, int]]:
    """Of a batch: each tensor of places for tokens, and the value of one that holds none."""
    if not isinstance(batch, Mapping):
        return []
    mask, inputs, labels = (batch.get(k) for k in ("attention_mask", "input_ids", "labels"))
    if mask is not None:
        marks = [(mask, 0)]
    elif inputs is not None:
        marks = [(inputs, _NEVER)]
    else:
        return []
    return [*marks, (labels, -100)] if with_labels and labels is not None else marks


def _is_encoder_decoder(module: LightningModule) -> bool:
    configs = (getattr(part, "config", None) for part in module.modules())
    return any(getattr(config, "is_encoder_decoder", False) for config in configs)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 2**10  # bytes there, KiB elsewhere
