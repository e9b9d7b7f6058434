"""Whether a trained routing is used: what another task's allocation, or the average, changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from polylab.callbacks.allocations import find_poly_model
from polylab.callbacks.base import Moment, log_metrics
from polylab.poly.model import PolyModel
from polylab.training.distributed import gather_objects
from polylab.training.evaluated import EvaluatedModule
from polylab.training.losses import ExampleLosses, example_losses

__all__ = ["RoutingUse"]

log = logging.getLogger(__name__)

ROUTINGS = ("learned", "shuffled", "uniform")
_READ = ("input_ids", "attention_mask", "labels", "task_ids")
_SIZE = 16  # of a batch, the same on any number of ranks: an input router exchanges its rows
# Of others (FSDP1, DeepSpeed), a part of the module cannot be called by itself.
_STRATEGIES = (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)

Losses = Callable[[dict[str, Any]], ExampleLosses]


class RoutingUse(Callback):
    """Logs at the end of the training the validation loss under three routings.

    `routing/learned_loss`, `routing/shuffled_loss` (every task with the allocation of another one;
    of an input router, every example with that of another), `routing/uniform_loss` (the average of
    all skills): nats per label token, on the same few validation examples, which are spread evenly
    over those that there are, and are the same on any number of ranks where the loader's batch
    sampler can say so (`sample_evenly`, as polylab's); of other loaders each rank takes its own.
    One line warns if shuffling changes nothing.

    Nothing is asked where there is no routing to train: with one skill, one task, or routers that
    are fixed. The training's state and random streams stay as they are.

    Args:
        examples_per_task: On average; 0 switches it off.
        max_examples: Of all tasks together.
        margin: The warning's bound on the change of the loss, as a share of it.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, *, examples_per_task: int = 8, max_examples: int = 512, margin: float = 0.01
    ) -> None:
        for name, value in {
            "examples_per_task": examples_per_task,
            "max_examples": max_examples,
            "margin": margin,
        }.items():
            if value < 0:
                raise ValueError(f"{name}={value} must be 0 or more.")
        self._examples_per_task = examples_per_task
        self._max_examples = max_examples
        self._margin = margin

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = find_poly_model(pl_module)
        rows = self._rows(model)
        if model is None or not rows:
            return
        if not isinstance(trainer.strategy, _STRATEGIES):
            name = type(trainer.strategy).__name__
            _say(f"RoutingUse asks nothing: a model under {name} is in parts.")
            return
        with torch.random.fork_rng(devices=[]):
            batches = _batches(trainer, rows)
        losses = _losses(pl_module, model, batches)
        if not batches or losses is None:
            _say(
                "RoutingUse asks nothing: there are no validation batches with "
                f"{', '.join(_READ)} to take a loss of."
            )
            return
        with _evaluating(pl_module):
            found = {name: _mean_loss(trainer, model, name, batches, losses) for name in ROUTINGS}
        metrics = {f"routing/{name}_loss": loss for name, loss in found.items()}
        log_metrics(trainer, pl_module, metrics, moment=Moment.END)
        if abs(found["shuffled"] - found["learned"]) < self._margin * found["learned"]:
            self._warn(model, found)

    def _rows(self, model: PolyModel | None) -> int:
        """How many examples to ask about; 0 where there is nothing to ask."""
        if model is None or not _has_a_choice(model):
            return 0
        n_tasks = model.config_of(model.active_adapter).n_tasks
        return min(self._examples_per_task * n_tasks, self._max_examples)

    @rank_zero_only
    def _warn(self, model: PolyModel, found: Mapping[str, float]) -> None:
        whose = "example" if model.is_input_routed else "task"
        log.warning(
            "The routing is not used: with the allocation of another %s the validation loss is "
            "%.4g instead of %.4g, and with the average of all skills %.4g. What was trained is "
            "one adapter for all; train longer, raise the learning rate of the router's parameter "
            "group, or take the simpler adapter=lora.",
            whose,
            found["shuffled"],
            found["learned"],
            found["uniform"],
        )


@rank_zero_only
def _say(message: str) -> None:
    log.info(message)


def _has_a_choice(model: PolyModel) -> bool:
    """Whether there are allocations that training could have made different."""
    config = model.config_of(model.active_adapter)
    trains = any(p.requires_grad for n, p in model.named_parameters() if "poly_router" in n)
    return trains and config.bank_size > 1 and (config.n_tasks > 1 or model.is_input_routed)


def _batches(trainer: Trainer, rows: int) -> list[dict[str, Any]]:
    """As many on every rank; without single rows, which an input router could not shuffle."""
    loaders = _list(trainer.val_dataloaders)
    each = -(-rows // max(1, len(loaders)))
    found = []
    for loader in loaders:
        sample = getattr(getattr(loader, "batch_sampler", None), "sample_evenly", None)
        if sample is None:
            found += _spread(loader, -(-each // trainer.world_size))
        else:
            found += _chosen(loader, sample(each, batch_size=_SIZE))
    found = [dict(b) for b in found if isinstance(b, Mapping) and len(b.get("labels", ())) > 1]
    return found[: min(gather_objects(len(found)))]


def _losses(
    pl_module: LightningModule, model: PolyModel, batches: list[dict[str, Any]]
) -> Losses | None:
    """How to take the losses of examples; None where that is not known."""
    if isinstance(pl_module, EvaluatedModule):
        return pl_module.example_losses
    config = model.config
    generates = getattr(model.get_base_model(), "can_generate", lambda: False)()
    if not generates or any(name not in batch for name in _READ for batch in batches):
        return None
    start = config.decoder_start_token_id if config.is_encoder_decoder else None
    pad = config.pad_token_id or 0

    def ask(batch: dict[str, Any]) -> ExampleLosses:
        return example_losses(model, batch, start=start, pad=pad)

    return ask


def _mean_loss(
    trainer: Trainer,
    model: PolyModel,
    routing: str,
    batches: Iterable[dict[str, Any]],
    losses: Losses,
) -> float:
    """Per label token, over all ranks."""
    total = torch.zeros(2, dtype=torch.float64)
    with model.routing(routing), trainer.precision_plugin.val_step_context():
        for batch in batches:
            found = losses(trainer.strategy.batch_to_device(batch))
            if batch.get("filler"):  # all ranks ask equally often
                continue
            total += torch.stack([found.losses.sum(), found.tokens.sum()]).double().cpu()
    loss, tokens = sum(gather_objects(total), torch.zeros(2, dtype=torch.float64)).tolist()
    return loss / max(tokens, 1)


@contextmanager
def _evaluating(pl_module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; every part is as it was afterwards."""
    modes = [(module, module.training) for module in pl_module.modules()]
    pl_module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _list(loaders: Any) -> list[Any]:
    if isinstance(loaders, Mapping):
        return [*loaders.values()]
    return [*loaders] if isinstance(loaders, list | tuple) else [loaders] * (loaders is not None)


def _spread(loader: Any, rows: int) -> list[Any]:
    """Batches of a loader with about so many rows together, evenly spaced where it says which."""
    keys = getattr(loader, "batch_sampler", None)
    if not isinstance(loader, DataLoader) or keys is None:
        return [*_first(loader, rows)]
    keys = [*keys]
    largest = max(map(len, keys), default=1)
    kept = min(len(keys), -(-rows // largest))
    return _chosen(loader, [keys[len(keys) * i // kept] for i in range(kept)])


def _chosen(loader: DataLoader[Any], keys: list[Any]) -> list[Any]:
    """The batches with these keys."""
    generator = torch.Generator()
    part = DataLoader(
        loader.dataset, batch_sampler=keys, collate_fn=loader.collate_fn, generator=generator
    )
    return [*part]


def _first(loader: Iterable[Any], rows: int) -> Iterator[Any]:
    batches = iter(loader)
    while rows > 0 and (batch := next(batches, None)) is not None:
        yield batch
        rows -= len(batch.get("labels", (0,))) if isinstance(batch, Mapping) else 1
