"""Macro F1 against torchmetrics, and on several ranks."""

import os
import random

import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from polylab.training.evaluation import CLASS_METRICS, SplitEvaluation
from polylab.training.metrics import PerTaskMacroF1

LABELS = [["a", "b"], ["no", "so", "yes", "z"], ["b", "c", "d"]]
NAMES = ["s", "t", "u"]


def _rows(n=41):
    """Task, answer and references of examples; a target in ten is none of the task's labels."""
    draw = random.Random(0)
    for _ in range(n):
        task = draw.randrange(2)  # the last task has no examples
        target = "strange" if draw.random() < 0.1 else draw.choice(LABELS[task][:3])
        yield task, draw.choice(LABELS[task][:3]), [target]


def _theirs(rows, task):
    """A class of its own for all strange targets, which is not averaged over."""
    labels = LABELS[task]
    index = {label: i for i, label in enumerate(labels)}
    own = [row for row in rows if row[0] == task]
    by_class = multiclass_f1_score(
        torch.tensor([index[answer] for _, answer, _ in own]),
        torch.tensor([index.get(valid[0], len(labels)) for *_, valid in own]),
        num_classes=len(labels) + 1,
        average="none",
        zero_division=0,
    )
    return by_class[: len(labels)].mean().item()


def test_macro_f1_is_torchmetrics_in_any_batches():
    rows = [*_rows()]
    assert any(valid == ["strange"] for *_, valid in rows)
    for size in (1, 7, 41):
        metric = PerTaskMacroF1(LABELS)
        for first in range(0, len(rows), size):
            metric.update(*zip(*rows[first : first + size], strict=True))
        means = metric.compute()
        found = means.by_task(NAMES)
        assert found == {
            name: pytest.approx(_theirs(rows, task), abs=1e-6)
            for task, name in enumerate(NAMES[:2])
        }
        assert means.macro() == pytest.approx(sum(found.values()) / 2)


def test_absent_labels_strange_targets_and_several_references():
    metric = PerTaskMacroF1([["a", "b", "c"]])
    metric.update([0, 0], ["a", "b"], [["a"], ["strange"]])
    # a: 1; b: one wrong answer; c: neither answer nor target
    assert metric.compute().by_task(["s"]) == {"s": pytest.approx(1 / 3)}
    metric.update([0, 0], ["b", "c"], [["a", "b"], ["a", "b"]])
    # a: tp 1, fn 1; b: tp 1, fp 1; c: fp 1
    assert metric.compute().by_task(["s"]) == {"s": pytest.approx(4 / 9)}


def _evaluated(_folder):
    rank = int(torch.distributed.get_rank()) if torch.distributed.is_initialized() else None
    evaluation = SplitEvaluation(
        NAMES,
        predictions_per_task=2,
        metrics=CLASS_METRICS,
        categories={"s": ("X", "Y"), "t": ("X",)},
        intervals=True,
    )
    evaluation.count_classes(LABELS)
    rows = [*enumerate(_rows())]
    shares = {None: rows, 0: rows[30:], 1: [*reversed(rows[:30])]}
    result = {}
    for part in (shares[rank][:3], shares[rank]):  # a second pass knows nothing of the first
        for i, (task, answer, valid) in part:
            ids = torch.tensor([task])
            evaluation.add_losses(ids, torch.tensor([i / 8]), torch.tensor([1]))
            evaluation.add_texts(ids, ["x"], [answer], [valid], [i], [{}])
        result = evaluation.finish()[0]
    return result


def _on_a_rank(folder):
    torch.distributed.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    return _evaluated(folder)


def test_macro_f1_is_that_of_one_rank(on_two_ranks, free_port, tmp_path):
    alone, rows = _evaluated(None), [*_rows()]
    expected = [_theirs(rows, task) for task in range(2)]
    found = {name: scores["macro_f1"] for name, scores in alone["tasks"].items()}
    assert found == {"s": pytest.approx(expected[0]), "t": pytest.approx(expected[1])}
    assert alone["macro"]["macro_f1"] == pytest.approx(sum(expected) / 2)
    assert alone["macro"]["macro_f1"] == alone["categories"]["X"]["macro_f1"]
    assert alone["categories"]["Y"]["macro_f1"] == found["s"]
    for part in (alone["micro"], alone["intervals"]["macro"]):
        assert {*part} == {"accuracy", "exact_match"}
    first, second = on_two_ranks(_on_a_rank, free_port, tmp_path)
    assert first == alone
    assert second == alone


def test_without_answers_there_is_no_macro_f1():
    evaluation = SplitEvaluation(NAMES, predictions_per_task=2, metrics=CLASS_METRICS)
    evaluation.count_classes(LABELS)
    evaluation.add_losses(torch.tensor([1]), torch.tensor([2.0]), torch.tensor([1]))
    result = evaluation.finish(answered=False)[0]
    assert result["tasks"] == {"t": {"loss": 2.0}}
    assert result["macro"] == {}
