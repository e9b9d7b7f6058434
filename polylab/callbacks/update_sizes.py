"""How large routers and skills are, and how far they move, side by side."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.utils import get_total_norm

from polylab.callbacks.base import Moment, log_metrics
from polylab.poly.sharding import local_part, whole
from polylab.training.optim import parameter_groups

__all__ = ["UpdateSizes"]

GROUPS = ("skills", "router")  # in one order on all ranks


class UpdateSizes(Callback):
    """Logs `norm/skills`, `norm/router`, `update/skills` and `update/router`.

    At the start (norms only), after every validation and at the end of the training. The norm is
    that of all trainable parameters of the group as one vector. The update is the length of its
    change since the previous look over the larger of its norms then and now: 0 = nothing moved, at
    most 2, and 1 for a group that began at nothing. Two groups that move at very different rates
    are the first thing to look at where a routing stays at its start, or skills do.

    Memory: a copy of the trainable skills and routers, on their device, and another one during a
    look. Between looks nothing is done. Leave the callback out (`callbacks.updates=null`) where
    that is too much.
    """

    def __init__(self) -> None:
        self._parameters: dict[str, list[Tensor]] = {}
        self._before: dict[str, list[Tensor]] = {}
        self._seen_step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before, self._seen_step = {}, None
        groups = parameter_groups(pl_module)
        self._parameters = {group: [*groups[group].values()] for group in GROUPS if group in groups}
        self._look(trainer, pl_module, Moment.START)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._look(trainer, pl_module, Moment.VALIDATION)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before and self._seen_step != trainer.global_step:
            self._look(trainer, pl_module, Moment.END)
        self._before, self._parameters = {}, {}

    @torch.no_grad()
    def _look(self, trainer: Trainer, pl_module: LightningModule, moment: Moment) -> None:
        self._seen_step = trainer.global_step
        found: dict[str, Tensor] = {}
        for group, parameters in self._parameters.items():
            now = [p.detach() for p in parameters]
            norm = found[f"norm/{group}"] = whole(get_total_norm(now))
            before = self._before.get(group)
            if before is None:
                self._before[group] = [p.clone() for p in now]
                continue
            larger = torch.maximum(norm, whole(get_total_norm(before)))
            step = torch._foreach_sub(now, before)  # pyright: ignore[reportPrivateImportUsage]
            moved = whole(get_total_norm(step))
            found[f"update/{group}"] = moved / larger.clamp_min(torch.finfo(larger.dtype).tiny)
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [*map(local_part, before)], [*map(local_part, now)]
            )
        if found:
            values = torch.stack([*found.values()]).tolist()  # one wait for all
            log_metrics(trainer, pl_module, dict(zip(found, values, strict=True)), moment=moment)
