"""Text metrics per sample, and their per-task means over any number of ranks.

Scores are computed per sample where the sample is, and only sums and counts travel between ranks
(of F1, which is no mean over samples, the counts that it is made of):
uneven shards and tasks that a rank never saw are then right by construction.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torchmetrics import Metric

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_LONGEST_NUMBER = 28  # digits that Decimal keeps
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")


def normalise(text: str) -> str:
    """The form in which two answers are compared by `exact_match`.

    Unicode NFC; white space stripped at both ends and every run of it one space; a plain decimal
    number in its shortest form (`15.0` is `15`, but `007` stays). Case and punctuation count.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return text
    number = Decimal(text).normalize()
    return f"{number:f}" if number else "0"


def exact_match(prediction: str, references: Iterable[str]) -> float:
    """1.0 if the prediction equals any reference after `normalise`, else 0.0."""
    answer = normalise(prediction)
    return float(any(answer == normalise(reference) for reference in references))


def token_f1(prediction: str, references: Iterable[str]) -> float:
    """The best F1 of common words over the references, as SQuAD scores answers.

    Lower case, without ASCII punctuation and the words a, an and the; words may occur several
    times. Two texts without words are equal (https://arxiv.org/abs/1606.05250).
    """
    answer = _words(prediction)
    return max((_words_f1(answer, _words(text)) for text in references), default=0.0)


def _words(text: str) -> list[str]:
    bare = text.lower().translate(_NO_PUNCTUATION)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def _words_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def rouge_l(prediction: str, references: Iterable[str]) -> float:
    """The best ROUGE-L F1 over the references, as Google's `rouge_score` without stemming.

    Tokens are runs of a-z and 0-9 of the lower-cased text, so a text in another script scores 0
    (https://aclanthology.org/W04-1013).
    """
    answer = _rouge_tokens(prediction)
    return max((_rouge_f1(answer, _rouge_tokens(text)) for text in references), default=0.0)


def _rouge_tokens(text: str) -> list[str]:
    return _NOT_ALPHANUMERIC.sub(" ", text.lower()).split()


def _rouge_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    common = _longest_common_subsequence(answer, reference)
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    previous = [0] * (len(b) + 1)
    for token in a:
        current = [0]
        for j, other in enumerate(b):
            current.append(previous[j] + 1 if token == other else max(previous[j + 1], current[j]))
        previous = current
    return previous[-1]


class TaskMeans(NamedTuple):
    """Means per task; `values` is 0 where `counts` is 0, so that no NaN can spread from there."""

    values: Float[Tensor, " tasks"]
    counts: Float[Tensor, " tasks"]

    def by_task(self, task_names: Sequence[str]) -> dict[str, float]:
        """Name to mean, for the tasks that were seen."""
        # torchmetrics makes scalars of the results for one task
        values, counts = self.values.reshape(-1).tolist(), self.counts.reshape(-1).tolist()
        pairs = zip(task_names, values, counts, strict=True)
        return {name: value for name, value, count in pairs if count > 0}

    def macro(self) -> float | None:
        """Every seen task weighs the same; None if none was seen."""
        seen = self.counts > 0
        return self.values[seen].mean().item() if bool(seen.any()) else None

    def micro(self) -> float | None:
        """Every counted unit (example, token) weighs the same; None if there was none."""
        total = self.counts.sum()
        return ((self.values * self.counts).sum() / total).item() if total > 0 else None


class PerTaskMean(Metric):
    """Sum and count per task, added over ranks; `compute` gives `TaskMeans`."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, n_tasks: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if n_tasks < 1:
            raise ValueError(f"n_tasks={n_tasks} must be at least 1.")
        # Apple's accelerator has no float64
        dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("total", torch.zeros(n_tasks, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(n_tasks, dtype=dtype), dist_reduce_fx="sum")

    def update(
        self,
        task_ids: Int[Tensor, " batch"],
        values: Shaped[Tensor, " batch"],
        counts: Shaped[Tensor, " batch"] | None = None,
    ) -> None:
        """Add `values`, each the *sum* over `counts` units (one by default)."""
        if counts is None:
            counts = torch.ones_like(values)
        self.total.index_add_(0, task_ids, values.to(self.total))
        self.count.index_add_(0, task_ids, counts.to(self.count))

    def compute(self) -> TaskMeans:
        """Means over everything all ranks have seen."""
        return TaskMeans(self.total / self.count.clamp(min=1), self.count)


class PerTaskMacroF1(Metric):
    """Macro F1 of each task: the mean over its labels of `2 tp / (2 tp + fp + fn)`.

    As scikit-learn's `f1_score(labels=LABELS, average="macro", zero_division=0)`: a label that is
    neither an answer nor a target counts as 0. Counts per task and label are added over ranks.

    Args:
        label_sets: Each task's labels.
    """

    full_state_update = False
    right: Tensor
    answers: Tensor
    targets: Tensor
    count: Tensor

    def __init__(self, label_sets: Sequence[Sequence[str]], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._classes = [{label: i for i, label in enumerate(labels)} for labels in label_sets]
        shape = len(self._classes), max(map(len, self._classes))
        for name in ("right", "answers", "targets"):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(shape[:1], dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, task_ids: Sequence[int], answers: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Count answers. An answer among the `references` is its own target, else the first is."""
        pairs = zip(answers, references, strict=True)
        targets = [answer if answer in valid else valid[0] for answer, valid in pairs]
        rows = [*zip(task_ids, answers, targets, strict=True)]
        self._add(self.answers, [(task, answer) for task, answer, _ in rows])
        self._add(self.targets, [(task, target) for task, _, target in rows])
        self._add(self.right, [(task, answer) for task, answer, target in rows if answer == target])
        self.count += torch.bincount(
            torch.tensor(list(task_ids), device=self.count.device), minlength=len(self.count)
        )

    def _add(self, counts: Tensor, texts: Iterable[tuple[int, str]]) -> None:
        """Add 1 to the label of each text; a target that is no label has none."""
        cells = [(t, self._classes[t][text]) for t, text in texts if text in self._classes[t]]
        rows, columns = torch.tensor(cells, device=counts.device).long().reshape(-1, 2).T
        counts.index_put_((rows, columns), torch.ones_like(rows), accumulate=True)

    def compute(self) -> TaskMeans:
        """Macro F1 over everything all ranks have seen, and how many examples that were."""
        # on the CPU: Apple's accelerator has no float64
        right, both = self.right.cpu().double(), (self.answers + self.targets).cpu()
        by_label = 2 * right / both.clamp(min=1)
        sizes = torch.tensor([len(of) for of in self._classes])
        return TaskMeans(by_label.sum(1) / sizes, self.count.cpu())
