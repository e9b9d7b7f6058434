"""A finished run made ready to be asked about a split, under one routing after another."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from polylab.callbacks.allocations import AllocationSource
from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.targets import build
from polylab.evaluating.identity import adapter_digest, config_digest, examples_digest
from polylab.evaluating.scores import Asked
from polylab.parts import ReadTasks, build_data, build_optim
from polylab.trainers import build_trainer

if TYPE_CHECKING:
    from torch import Tensor

    from polylab import PolyModel
    from polylab.backbones import Backbone
    from polylab.callbacks.seen import Allocations
    from polylab.training import PolyModule
    from polylab.training.journal import Journal

__all__ = ["Evaluation", "prepare"]


@dataclass(frozen=True)
class Evaluation:
    """A run's module, and the batches that it is asked.

    Args:
        module: Around the run's model.
        data: Where the batches come from.
        loader: The batches.
        split: `test`, `validation` or `train`.
        config: The run's, with what this evaluation changes.
    """

    module: PolyModule
    data: Any
    loader: Any
    split: str
    config: DictConfig

    @property
    def model(self) -> PolyModel:
        return self.module.model

    def ask(self, routing: str, journal: Journal) -> None:
        """Answer the batches that the journal has no answers to.

        Raises:
            ConfigError: If `routing` is unknown, or does not fit the batches.
        """
        self.check_routing(routing)
        self.module.journal = journal
        with self.routed(routing):
            trainer = self.module.trainer
            ask = trainer.test if self._passed == "test" else trainer.validate
            ask(self.module, dataloaders=self.loader, verbose=False)

    def check_routing(self, routing: str) -> None:
        """Refuse what cannot be asked.

        Raises:
            ConfigError: If `routing` is unknown, or does not fit the batches.
        """
        with user_mistakes(""), self.routed(routing):
            pass
        if routing == "shuffled" and self.model.is_input_routed:
            alone = [batch for batch in self.loader.batch_sampler if len(batch) < 2]
            if alone:
                raise ConfigError(
                    "routing=shuffled: a router by input exchanges the weights of a batch's rows, "
                    f"and {len(alone)} of {len(self.loader)} batches have one row · give "
                    "batch_size=2 or more, and 2 examples or more"
                )

    def routed(self, routing: str) -> AbstractContextManager[PolyModel]:
        """The model under the routing; skills are matched by `allocations`."""
        return self.model.routing(routing, task_weights=self._matched_by(routing))

    def _matched_by(self, routing: str) -> dict[str, Tensor] | None:
        drops = routing.startswith("drop:") and "/" not in routing
        return self.allocations.weights if drops and self.model.is_input_routed else None

    @cached_property
    def allocations(self) -> Allocations:
        """What the tasks' skills weigh; of an input router means over the first examples.

        Of all tasks; of an input router, of those that have examples.
        """
        source, trainer = AllocationSource(self.model), self.module.trainer
        if self.model.is_input_routed:
            self.model.to(trainer.strategy.root_device).eval()
            for i, batch in enumerate(self.loader):
                source.observe(trainer.strategy.batch_to_device(batch), key=(0, i, 0))
        found = source.read()
        assert found is not None
        return found

    @cached_property
    def asked(self) -> list[Asked]:
        """What is known of the batches before they are answered."""
        ranks = self.module.ranks_options
        return [Asked.of(batch, ranks=ranks) for batch in self.loader]

    @property
    def result(self) -> dict[str, Any]:
        """Of the latest pass, in the form of metrics.json."""
        return self.module.results[self._passed]

    @property
    def predictions(self) -> list[Any]:
        """Of the latest pass."""
        return self.module.predictions[self._passed]

    def identity(self, run: Path) -> dict[str, Any]:
        """What the answers depend on, but for the routing."""
        return {
            "run": str(run.resolve()),
            "split": self.split,
            "tasks": self.module.task_names,
            "batches": len(self.loader),
            "config": config_digest(self.config),
            "adapter": adapter_digest(run / "adapter"),
            "examples": examples_digest(self.loader),
        }

    @property
    def _passed(self) -> str:
        """What the module calls the split."""
        return "test" if self.split == "test" else "val"


def prepare(
    config: DictConfig,
    model: PolyModel,
    backbone: Backbone,
    *,
    source: ReadTasks,
    labels: dict[str, list[str]] | None,
    split: str,
    folder: Path,
    asks_answers: bool = True,
) -> Evaluation:
    """Build the data, the module and the trainer around a run's model.

    Args:
        config: Of `choices.evaluation_config`, with the run's tasks in `data.known_tasks`.
        model: The run's.
        backbone: Under it.
        source: The tasks.
        labels: Of a run that classifies.
        split: `test`, `validation` or `train`.
        folder: For the trainer's files.
        asks_answers: Else losses only.

    Raises:
        ConfigError: If the data is not valid, or the split is empty.
    """
    data: Any = build_data(config, backbone, source=source, known_labels=labels)
    from polylab.callbacks import Progress

    trainer = build_trainer(config, callbacks=[Progress()], logger=None, folder=folder)
    data.trainer = trainer
    with user_mistakes("data"):
        names = list(data.task_names)
    parts = {
        "model": model,
        "tokenizer": backbone.tokenizer,
        "task_names": names,
        "label_sets": None if labels is None else [*labels.values()],
        "categories": data.categories,
        "optim": build_optim(config),
        "seed": config.seed,
    }
    module = build(config.module, key="module", parts=parts)
    module.trainer, module.losses_only = trainer, not asks_answers
    with user_mistakes("data"):
        loader = data.evaluation_dataloader(split)
    if not loader:
        raise ConfigError(f"split={split}: no task has such examples · give another split")
    return Evaluation(module, data, loader, split, config)
