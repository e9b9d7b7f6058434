"""Asks the same examples under one routing after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import OmegaConf

from polylab.config.errors import ConfigError
from polylab.config.suggest import hint
from polylab.evaluating.choices import CHANGES, LEARNED, STUDY
from polylab.evaluating.preparation import Evaluation
from polylab.evaluating.scores import LOSS, Asked, Scores, effects, metric_names
from polylab.evaluating.study import Allocation, Study, dropped_skills

if TYPE_CHECKING:
    from polylab.training.journal import Answers, Journal

__all__ = ["choose_metric", "study", "study_routings", "with_learned"]


def study_routings(evaluation: Evaluation) -> tuple[list[str], str | None]:
    """What a study compares, and why it takes no skills away, where it does not.

    Raises:
        ConfigError: If there is no routing to change.
    """
    model = evaluation.model
    config = model.config_of(model.active_adapter)
    if config.bank_size < 2:
        raise ConfigError(
            f"routing={STUDY}: this adapter has one skill, so there is no routing to change"
        )
    found = [LEARNED, *CHANGES]
    if config.n_tasks < 2 and not model.is_input_routed:
        found.remove("shuffled")
    drops = [f"drop:{k}" for k in range(config.bank_size)]
    try:
        with evaluation.routed(drops[0]):
            return [*found, *drops], None
    except ValueError as error:
        return found, str(error)


def with_learned(routings: Sequence[str]) -> list[str]:
    """The routings with `learned`, to which the others are compared, in front."""
    return [LEARNED, *(name for name in routings if name != LEARNED)]


def choose_metric(evaluation: Evaluation, metric: str | None) -> str:
    """The metric that a study is about: by default the one that the run's checkpoint was chosen by.

    Without answers, or if that is none of an evaluation, the loss or the first score.

    Raises:
        ConfigError: If there is no such one.
    """
    module = evaluation.module
    names = metric_names(evaluation.asked, [] if module.losses_only else module.text_metrics)
    if metric is None:
        monitor = OmegaConf.select(evaluation.config, "callbacks.checkpoint.monitor") or ""
        chosen = str(monitor).removeprefix("val/")
        return chosen if chosen in names else names[min(1, len(names) - 1)]
    if metric not in names:
        only = " · with answers=false there is the loss only" if module.losses_only else ""
        raise ConfigError(
            f"metric={metric} is none of this evaluation's{hint(metric, names)} · valid: "
            f"{', '.join(names)}{only}"
        )
    return metric


def study(
    evaluation: Evaluation,
    journals: Mapping[str, Journal],
    *,
    metric: str | None = None,
    note: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Study:
    """Ask the same examples under every routing.

    Args:
        evaluation: Of the run.
        journals: By routing, `learned` first; what they hold is not asked again.
        metric: See `choose_metric`; of the knock-out too, which is else by the loss: it says more
            of the few examples of a cell.
        note: Why no skill is taken away.
        say: Told how much there is to do, and after each routing.

    Raises:
        ConfigError: If a routing or the metric is unknown.
    """
    module, routings, asked = evaluation.module, [*journals], evaluation.asked
    chosen = choose_metric(evaluation, metric)
    n_examples = sum(len(batch.rows) for batch in asked)
    say(f"{len(routings)} routings x {n_examples:,} examples of {_count_tasks(asked):,} tasks")
    result, predictions = {}, []
    for number, (routing, journal) in enumerate(journals.items(), 1):
        started, known = time.perf_counter(), len(journal)
        evaluation.ask(routing, journal)
        if routing == LEARNED:
            result, predictions = evaluation.result, evaluation.predictions
        before = f" · {known} of {len(asked)} batches were known" if known else ""
        seconds = time.perf_counter() - started
        say(f"{number}/{len(routings)} {routing} · {seconds:.1f} s{before}")
    metrics = {} if module.losses_only else module.text_metrics
    answers = {routing: _finder(found) for routing, found in journals.items()}
    scores = Scores.of(asked, answers, metrics=metrics, names=module.task_names)
    return Study(
        effects(scores),
        [*routings],
        scores.metrics,
        chosen,
        LOSS if metric is None else chosen,
        n_examples,
        allocation=_allocation(evaluation, scores, dropped_skills(routings)),
        by_input=evaluation.model.is_input_routed,
        note=note,
        result=result,
        predictions=predictions,
    )


def _allocation(evaluation: Evaluation, scores: Scores, skills: Sequence[int]) -> Allocation | None:
    return Allocation.of(evaluation.allocations, np.unique(scores.tasks)) if skills else None


def _count_tasks(asked: Sequence[Asked]) -> int:
    return len({task for batch in asked for task in batch.task_ids})


def _finder(journal: Journal) -> Callable[[int], Answers]:
    def find(index: int) -> Answers:
        found = journal.find(index)
        assert found is not None
        return found

    return find
