"""What one pass over a split yields: losses, text metrics per task, and some predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polylab.training.distributed import gather_objects
from polylab.training.intervals import bootstrap_intervals
from polylab.training.metrics import (
    PerTaskMacroF1,
    PerTaskMean,
    exact_match,
    rouge_l,
    token_f1,
)
from polylab.training.ranking import Choices, is_right

Metrics = Mapping[str, Callable[[str, Iterable[str]], float]]
TEXT_METRICS: Metrics = {"exact_match": exact_match, "rouge_l": rouge_l, "token_f1": token_f1}
CLASS_METRICS: Metrics = {"accuracy": exact_match, "exact_match": exact_match}
RANKED = "rank_accuracy"  # of the examples that have options
MACRO_F1 = "macro_f1"  # of classification


class _Answer(TypedDict):
    task: str
    input: str
    prediction: str
    references: list[str]


class Prediction(_Answer, total=False):
    """A line of `predictions.jsonl`; with the scores of its options if the example has some."""

    options: Choices


class SplitEvaluation(nn.Module):
    """Accumulates one split over batches and ranks; `finish` says what it was and starts anew."""

    def __init__(
        self,
        task_names: Sequence[str],
        *,
        predictions_per_task: int | None,
        metrics: Metrics = TEXT_METRICS,
        categories: Mapping[str, Sequence[str]] | None = None,
        intervals: bool = False,
    ) -> None:
        """Wait for batches.

        Args:
            task_names: By id.
            predictions_per_task: Keep at most so many of each task, all of them if None.
            metrics: Of answers.
            categories: Of tasks, to average over those of one.
            intervals: Whether the result says how sure its means are.
        """
        super().__init__()
        self._metrics = metrics
        self._means = nn.ModuleDict(
            {name: PerTaskMean(len(task_names)) for name in ("loss", *metrics, RANKED)}
        )
        self._task_names = list(task_names)
        self._limit = predictions_per_task
        self._predictions: list[tuple[int, int, Prediction]] = []  # task, batch
        self._batches = 0
        self._kept: Counter[int] = Counter()
        self._categories = categories or {}
        self._intervals = intervals
        self._scores: list[tuple[int, int, dict[str, float]]] = []  # row, task, by metric
        self._f1: PerTaskMacroF1 | None = None

    def count_classes(self, label_sets: Sequence[Sequence[str]]) -> None:
        """Have `macro_f1` too. No mean over examples: `micro` and the intervals leave it out.

        Args:
            label_sets: Each task's labels; the answers are among them.
        """
        self._f1 = PerTaskMacroF1(label_sets)

    def add_losses(
        self,
        task_ids: Int[Tensor, " batch"],
        losses: Float[Tensor, " batch"],
        tokens: Int[Tensor, " batch"],
    ) -> None:
        self._mean("loss").update(task_ids, losses, tokens)

    def add_texts(
        self,
        task_ids: Int[Tensor, " batch"],
        inputs: Sequence[str],
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        numbers: Sequence[int],
        choices: Sequence[Choices],
    ) -> None:
        """Score answers; `numbers` are those of the examples in the split."""
        device = task_ids.device
        pairs = list(zip(predictions, references, strict=True))
        found = {name: [score(*pair) for pair in pairs] for name, score in self._metrics.items()}
        for name, scores in found.items():
            self._mean(name).update(task_ids, torch.tensor(scores, device=device))
        own = [{name: scores[i] for name, scores in found.items()} for i in range(len(pairs))]
        ranked = [i for i, options in enumerate(choices) if options]
        for i in ranked:
            own[i][RANKED] = is_right(choices[i], references[i])
        values = torch.tensor([own[i][RANKED] for i in ranked], device=device)
        self._mean(RANKED).update(task_ids[ranked], values)
        if self._f1 is not None:
            self._f1.update(task_ids.tolist(), predictions, references)
        if self._intervals:
            self._scores.extend(zip(numbers, task_ids.tolist(), own, strict=True))
        self._batches += 1
        rows = zip(task_ids.tolist(), inputs, predictions, references, choices, strict=True)
        for task, text, prediction, valid, options in rows:
            line = Prediction(
                task=self._task_names[task],
                input=text,
                prediction=prediction,
                references=list(valid),
            )
            if options:
                line["options"] = options
            self._keep(task, line)

    def finish(self, *, answered: bool = True) -> tuple[dict[str, Any], list[Prediction]]:
        """The split's result in the form of metrics.json, and its predictions ordered by task.

        Args:
            answered: Whether there were texts, on any rank; else the result has losses only.
        """
        asked = [*self._metrics, RANKED] if answered else []
        means = {name: self._mean(name).compute() for name in ("loss", *asked)}
        metrics = [name for name in asked if name != RANKED or bool(means[name].counts.any())]
        per_example = [*metrics]
        if answered and self._f1 is not None:
            means[MACRO_F1] = self._f1.compute()
            metrics.append(MACRO_F1)
        by_task = {name: mean.by_task(self._task_names) for name, mean in means.items()}
        result = {
            "loss": means["loss"].micro(),
            "macro": {name: means[name].macro() for name in metrics},
            "micro": {name: means[name].micro() for name in per_example},
            "tasks": {
                task: {name: values[task] for name, values in by_task.items() if task in values}
                for task in self._task_names
                if any(task in values for values in by_task.values())
            },
        }
        if self._categories and answered:
            result["categories"] = self._by_category(by_task)
        if self._intervals and answered:
            result["intervals"] = bootstrap_intervals(self._gather_scores())
        predictions = self._gather()
        self._start_anew()
        return result, predictions

    def _by_category(
        self, by_task: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, float]]:
        """Means over the tasks of a category, each of which weighs the same."""
        found: dict[str, dict[str, float]] = {}
        for category in sorted({name for own in self._categories.values() for name in own}):
            tasks = [task for task, own in self._categories.items() if category in own]
            for metric in sorted({*by_task} - {"loss"}):
                seen = [by_task[metric][task] for task in tasks if task in by_task[metric]]
                if seen:
                    found.setdefault(category, {})[metric] = sum(seen) / len(seen)
        return found

    def _gather_scores(self) -> dict[str, dict[str, list[float]]]:
        """By metric and task, in the order of the examples, over all ranks."""
        rows = sorted(
            (row for part in gather_objects(self._scores) for row in part), key=lambda row: row[:2]
        )
        found: dict[str, dict[str, list[float]]] = {name: {} for name in (*self._metrics, RANKED)}
        for _, task, scores in rows:
            for name, score in scores.items():
                found[name].setdefault(self._task_names[task], []).append(score)
        return found

    def _mean(self, name: str) -> PerTaskMean:
        mean = self._means[name]
        assert isinstance(mean, PerTaskMean)
        return mean

    def _keep(self, task: int, prediction: Prediction) -> None:
        if self._limit is None or self._kept[task] < self._limit:
            self._kept[task] += 1
            self._predictions.append((task, self._batches, prediction))

    def _gather(self) -> list[Prediction]:
        found = [item for part in gather_objects(self._predictions) for item in part]
        found.sort(key=lambda item: item[:2])  # within a batch by rank, as one would have it
        kept: Counter[int] = Counter()
        predictions = []
        for task, _, prediction in found:
            kept[task] += 1
            if self._limit is None or kept[task] <= self._limit:
                predictions.append(prediction)
        return predictions

    def _start_anew(self) -> None:
        for name in self._means:
            self._mean(name).reset()
        if self._f1 is not None:
            self._f1.reset()
        self._predictions, self._scores, self._batches = [], [], 0
        self._kept.clear()
