"""A finished run made ready to be asked about a split, under one routing after another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.targets import build
from polylab.evaluating.identity import adapter_digest, config_digest, examples_digest
from polylab.evaluating.scores import Asked
from polylab.parts import ReadTasks, build_data, build_optim, build_trainer

if TYPE_CHECKING:
    from polylab import PolyModel
    from polylab.backbones import Backbone
    from polylab.training import PolyModule
    from polylab.training.journal import Journal

__all__ = ["Evaluation", "evaluation_config", "prepare"]


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
        with self.model.routing(routing):
            trainer = self.module.trainer
            ask = trainer.test if self._passed == "test" else trainer.validate
            ask(self.module, dataloaders=self.loader, verbose=False)

    def check_routing(self, routing: str) -> None:
        """Refuse what cannot be asked.

        Raises:
            ConfigError: If `routing` is unknown, or does not fit the batches.
        """
        with user_mistakes(""), self.model.routing(routing):
            pass
        if routing == "shuffled" and self.model.is_input_routed:
            alone = [batch for batch in self.loader.batch_sampler if len(batch) < 2]
            if alone:
                raise ConfigError(
                    "routing=shuffled: a router by input exchanges the weights of a batch's rows, "
                    f"and {len(alone)} of {len(self.loader)} batches have one row · give "
                    "batch_size=2 or more, and 2 examples or more"
                )

    @cached_property
    def asked(self) -> list[Asked]:
        """What is known of the batches before they are answered."""
        return [Asked.of(batch) for batch in self.loader]

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


def evaluation_config(
    config: DictConfig,
    *,
    split: str,
    examples_per_task: int | None = None,
    batch_size: int | None = None,
    **trainer: Any,
) -> DictConfig:
    """A run's configuration on one device, with all predictions.

    Args:
        config: The run's.
        split: `test`, `validation` or `train`.
        examples_per_task: Bounds the split; None is as in the run.
        batch_size: None is the run's.
        trainer: What else is changed of it; None leaves a value.
    """
    changes: dict[str, Any] = {
        "trainer": {"devices": 1, "num_nodes": 1, "strategy": "auto", "compile": False}
        | {name: value for name, value in trainer.items() if value is not None},
        "module": {"predictions_per_task": None},
        "data": {},
    }
    if batch_size is not None:
        changes["data"]["eval_batch_size"] = batch_size
    if examples_per_task is not None:
        key = "test_examples_per_task" if split == "test" else "eval_examples_per_task"
        changes["data"][key] = examples_per_task
    merged = OmegaConf.merge(config, changes)
    assert isinstance(merged, DictConfig)
    return merged


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
        config: Of `evaluation_config`, with the run's tasks in `data.known_tasks`.
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
