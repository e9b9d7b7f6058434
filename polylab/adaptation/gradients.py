"""A training that leaves a group of parameters where it was is an error, not a result."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from polylab.config.errors import ConfigError

__all__ = ["RequireGradients"]

_STEPS = 2  # where B = 0 at the start, A and the routers get theirs in the second step


class RequireGradients(Callback):
    """Ends a training whose first steps bring no gradient to a parameter group.

    Args:
        what: Is trained, in the error.

    Raises:
        ConfigError: Naming the groups (`skills`, `router`, `other`).
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._reached: set[str] = set()

    def on_before_optimizer_step(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        step = trainer.global_step + 1
        if step > _STEPS:
            return
        for group in optimizer.param_groups:
            if any(p.grad is not None and bool(p.grad.any()) for p in group["params"]):
                self._reached.add(group["name"])
        if step < min(_STEPS, trainer.max_steps):
            return
        missed = [g["name"] for g in optimizer.param_groups if g["name"] not in self._reached]
        if missed:
            raise ConfigError(
                f"{self.what}: no gradient reached the {' and the '.join(missed)} in {step} steps, "
                "so nothing would be learnt there (a run that was not trained has skills that are "
                "0) · give another method, adapt=lora for example, or another run"
            )
