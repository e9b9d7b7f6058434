"""The part of the LightningModule that evaluates: asks, scores, and logs what was found."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from polylab.training.evaluation import TEXT_METRICS, Metrics, Prediction, SplitEvaluation
from polylab.training.generation import generate_texts
from polylab.training.journal import Answers, Journal
from polylab.training.losses import ExampleLosses, reusable
from polylab.training.ranking import Choices, RankOptions, check_rank_options, option_scores

if TYPE_CHECKING:
    from polylab.poly import PolyModel

__all__ = ["EvaluatedModule"]

log = logging.getLogger(__name__)


class EvaluatedModule(LightningModule):
    """Evaluates a `PolyModel` on `val` and `test`; see `PolyModule` for the arguments and the keys.

    Only the first `max_logged_tasks` tasks, and as many categories, have keys of their own: with
    the 64 of the default and the default callbacks a run of any size has fewer than 2,000 keys.

    Attributes:
        results: Of the latest pass over each split (`val`, `test`), in the form of metrics.json.
        predictions: Of the latest pass over each split, bounded by `predictions_per_task`.
        journal: Keeps the answers to evaluation batches, so that a killed evaluation can go on.
        generates: Whether the present pass asks for answers, or for losses only.
        losses_only: Whether the passes outside of a training ask for losses only.
    """

    text_metrics: Metrics = TEXT_METRICS  # of the answers; a subclass has its own

    def __init__(
        self,
        model: PolyModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task_names: Sequence[str],
        generation: Mapping[str, Any],
        max_logged_tasks: int,
        predictions_per_task: int | None,
        categories: Mapping[str, Sequence[str]] | None,
        generate_every_n_validations: int,
        rank_options: RankOptions | None,
    ) -> None:
        super().__init__()
        check_rank_options(rank_options)
        self.model = model
        self.tokenizer = tokenizer
        self.task_names = list(task_names)
        self.results: dict[str, dict[str, Any]] = {}
        self.predictions: dict[str, list[Prediction]] = {}
        self.journal: Journal | None = None
        self.generates, self.losses_only = True, False
        self._generate_every, self._validations = generate_every_n_validations, 0
        self._rank_options = rank_options
        self._evaluations = nn.ModuleDict(
            {
                split: SplitEvaluation(
                    task_names,
                    predictions_per_task=predictions_per_task,
                    metrics=self.text_metrics,
                    categories=categories,
                    intervals=split == "test",
                )
                for split in ("val", "test")
            }
        )
        self._generation = {**generation, "do_sample": False, "use_cache": True}
        self._logged_tasks = self.task_names[:max_logged_tasks]
        self._max_logged_categories = max_logged_tasks
        self._n_categories = len({name for own in (categories or {}).values() for name in own})

    def generate_texts(self, batch: dict[str, Any], *, encoded: Tensor | None = None) -> list[str]:
        """The answers to a batch of the data module, greedy or by beams; see `generation`."""
        return generate_texts(
            self.model,
            self.tokenizer,
            batch,
            encoded=reusable(self.model, encoded),
            **self._generation,
        )

    @property
    def ranks_options(self) -> bool:
        """Whether the options of examples are scored, where they have some."""
        return self._rank_options is not None

    def option_scores(
        self, batch: dict[str, Any], *, encoded: Tensor | None = None
    ) -> list[Choices]:
        """The scores of the options of each example of a batch; see `ranking`."""
        if self._rank_options is None:
            return [{} for _ in batch["references"]]
        return option_scores(
            self.model,
            batch,
            rank_options=self._rank_options,
            encoded=reusable(self.model, encoded),
            **self._special_tokens,
        )

    def setup(self, stage: str) -> None:
        """Say once which keys there will not be."""
        if stage != "fit" or not self.trainer.is_global_zero:
            return
        most = self._max_logged_categories
        for what, n in (("tasks", len(self.task_names)), ("categories", self._n_categories)):
            if n > most:
                log.info(
                    "the first %d of %d %s have keys of their own in the logs "
                    "(module.max_logged_tasks); metrics.json holds all",
                    most,
                    n,
                    what,
                )

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "test", batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Decide whether this validation generates."""
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            self.generates = not self.losses_only
            return
        self._validations += 1
        every = self._generate_every
        is_due = every > 0 and self._validations % every == 0
        self.generates = is_due or self.trainer.global_step == self.trainer.max_steps

    def on_test_epoch_start(self) -> None:
        self.generates = not self.losses_only

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _evaluate(self, batch: dict[str, Any], split: str, index: int) -> None:
        if "filler" in batch:  # asked only because the other ranks are asking too
            self._ask(batch)
            return
        answers = None if self.journal is None else self.journal.find(index)
        if answers is None:
            answers = self._ask(batch)
            if self.journal is not None:
                self.journal.add(index, answers)
        evaluation, ids = self._evaluation(split), batch["task_ids"]
        evaluation.add_losses(ids, answers.losses.to(ids.device), answers.tokens.to(ids.device))
        if not self.generates:
            return
        evaluation.add_texts(
            ids,
            batch["inputs"],
            answers.texts,
            batch["references"],
            batch["rows"].tolist(),
            answers.choices,
        )

    def _ask(self, batch: dict[str, Any]) -> Answers:
        found = self.example_losses(batch)
        if not self.generates:
            return Answers(found.losses, found.tokens, [], [])
        texts = self.generate_texts(batch, encoded=found.encoded)
        choices = self.option_scores(batch, encoded=found.encoded)
        return Answers(found.losses.cpu(), found.tokens.cpu(), texts, choices)

    def _finish(self, split: str) -> None:
        result, predictions = self._evaluation(split).finish(answered=self.generates)
        if self.trainer.sanity_checking:
            return
        self.results[split], self.predictions[split] = result, predictions
        overall = {f"{split}/{name}": value for name, value in result["macro"].items()}
        overall |= {f"{split}/loss": result["loss"]}
        overall = {key: value for key, value in overall.items() if value is not None}
        # for callbacks; equal on all ranks already, said again only to satisfy Lightning
        self.log_dict(overall, prog_bar=True, logger=False, sync_dist=True)
        parts = {task: result["tasks"].get(task, {}) for task in self._logged_tasks}
        named = [*result.get("categories", {}).items()][: self._max_logged_categories]
        parts |= {f"category/{name}": scores for name, scores in named}
        for part, scores in parts.items():
            overall |= {f"{split}/{part}/{name}": value for name, value in scores.items()}
        self._send(overall)

    def _evaluation(self, split: str) -> SplitEvaluation:
        evaluation = self._evaluations[split]
        assert isinstance(evaluation, SplitEvaluation)
        return evaluation

    @property
    def _special_tokens(self) -> dict[str, Any]:
        config = self.model.config
        start = config.decoder_start_token_id if config.is_encoder_decoder else None
        return {"start": start, "pad": config.pad_token_id}

    def example_losses(self, batch: dict[str, Any]) -> ExampleLosses:
        """Of a batch, in evaluation or in training."""
        raise NotImplementedError

    def _send(self, metrics: dict[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)
