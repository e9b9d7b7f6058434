"""Pretraining of the embedded backbone on `PretrainingCorpus`."""

from collections import defaultdict
from copy import deepcopy
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from transformers import PreTrainedModel

from polylab.pretraining.corpus import EOS, LineSampler, encode


class PretrainModule(L.LightningModule):
    """Trains all weights of a sequence-to-sequence model over ByT5's tokens.

    Args:
        model: The backbone, with fresh weights.
        folder: The run's folder; the weights go to `backbone/` in it, as bfloat16.
        lr: Peak learning rate of AdamW: linear warm-up, then a linear decay to zero.
        warmup_steps: Length of the warm-up.
        total_steps: Length of the whole schedule.
        weight_decay: Of all weights.
        compile_mode: torch.compile's mode for the training step, none by default. The model is so
            small that a GPU waits for launches: `reduce-overhead` (CUDA graphs) removes the wait.
        n_probe: Lines that each validation generates for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        folder: Path,
        lr: float,
        warmup_steps: int,
        total_steps: int,
        weight_decay: float = 0.01,
        compile_mode: str | None = None,
        n_probe: int = 2048,
    ) -> None:
        super().__init__()
        self.model = model.train().requires_grad_(True)
        self.folder = folder
        self.lr, self.warmup_steps, self.total_steps = lr, warmup_steps, total_steps
        self.weight_decay = weight_decay
        self.n_probe = n_probe
        # in a list, so that the weights are registered once; generation keeps the plain model
        self._forward = [torch.compile(model, mode=compile_mode) if compile_mode else model]
        self._uses_graphs = compile_mode == "reduce-overhead"

    def training_step(self, batch: dict[str, torch.Tensor], _index: int) -> torch.Tensor:
        """Token-mean cross entropy."""
        if self._uses_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._forward[0](**batch, use_cache=False).loss
        self.log("train/loss", loss.detach().clone())  # a graph's next replay overwrites it
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Loss on fresh text, and once a pass the exact match of the lines with each operation."""
        self.log("val/loss", self.model(**batch, use_cache=False).loss)
        if index == 0:
            self.log_dict({f"val/{name}": value for name, value in self.probe().items()})

    def on_validation_end(self) -> None:
        """Save the weights in the format of `from_pretrained`; a killed run keeps the last ones."""
        if self.trainer.is_global_zero and self.trainer.state.fn == "fit":
            copy = deepcopy(self.model).bfloat16()
            copy.save_pretrained(self.folder / "backbone")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, linear warm-up and decay."""
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.98),
            fused=self.device.type == "cuda",
        )

        def scale(step: int) -> float:
            rise = (step + 1) / max(1, self.warmup_steps)
            fall = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
            return max(0.0, min(rise, fall))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @torch.no_grad()
    def probe(self) -> dict[str, float]:
        """Exact match by greedy generation: `exact_match` of all lines, and by operation."""
        sampler = LineSampler("probe")
        lines = [sampler() for _ in range(self.n_probe)]
        right: dict[str, list[float]] = defaultdict(list)
        for start in range(0, len(lines), 512):
            part = lines[start : start + 512]
            for line, ids in zip(part, self._generate([encode(x)[0] for x in part]), strict=True):
                hit = float(ids == encode(line)[1][:-1])
                for name in ("exact_match", *line.drill.operations):
                    right[name].append(hit)
        return {name: sum(hits) / len(hits) for name, hits in right.items()}

    def _generate(self, sources: list[list[int]]) -> list[list[int]]:
        width = max(map(len, sources))
        ids = torch.tensor([s + [0] * (width - len(s)) for s in sources], device=self.device)
        mask = (ids != 0).long()
        out = self.model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids, attention_mask=mask, max_new_tokens=16, do_sample=False
        )
        rows = out[:, 1:].tolist()
        return [row[: row.index(EOS)] if EOS in row else row for row in rows]
