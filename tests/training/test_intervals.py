"""Bootstrap intervals, and means over categories."""

import numpy as np
import pytest
import torch

from polylab.training.evaluation import SplitEvaluation
from polylab.training.intervals import bootstrap_intervals


def test_they_are_those_of_a_normal_mean():
    """For many examples: the mean plus and minus 1.96 standard errors."""
    rng = np.random.default_rng(0)
    scores = {"a": rng.random(2000).tolist(), "b": (rng.random(3000) < 0.3).astype(float).tolist()}
    found = bootstrap_intervals({"m": scores})
    for task, own in scores.items():
        low, high = found["tasks"][task]["m"]
        error = np.std(own) / np.sqrt(len(own))
        assert (low + high) / 2 == pytest.approx(np.mean(own), abs=0.2 * error)
        assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    low, high = found["macro"]["m"]
    error = np.sqrt(sum(np.var(own) / len(own) for own in scores.values())) / 2
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_they_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        sample = rng.normal(0.5, 0.2, size=40).tolist()
        low, high = bootstrap_intervals({"m": {"a": sample}}, seed=seed)["tasks"]["a"]["m"]
        hits += low <= 0.5 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_tasks_interval_does_not_depend_on_others():
    own, other = [0.0, 1.0, 1.0, 0.5], [0.1] * 7
    alone = bootstrap_intervals({"m": {"a": own}})["tasks"]["a"]
    assert bootstrap_intervals({"m": {"b": other, "a": own}})["tasks"]["a"] == alone
    assert bootstrap_intervals({"m": {"a": [1.0]}})["macro"]["m"] == [1.0, 1.0]
    assert bootstrap_intervals({"m": {}})["macro"] == {}


def test_drawing_in_parts_is_drawing_at_once(monkeypatch):
    scores = {"m": {"a": np.random.default_rng(2).random(50).tolist()}}
    whole = bootstrap_intervals(scores)
    monkeypatch.setattr("polylab.training.intervals._CELLS", 50 * 7)
    assert bootstrap_intervals(scores) == whole


def _evaluated(order):
    tasks = ["a", "b", "c"]
    evaluation = SplitEvaluation(
        tasks,
        predictions_per_task=1,
        categories={"a": ("X", "Y"), "b": ("X",)},
        intervals=True,
    )
    texts = ["1", "2", "3", "4", "5"]
    answers = ["1", "x", "3", "4", "x"]
    ids = [0, 0, 1, 1, 2]
    for batch in order:
        evaluation.add_losses(
            torch.tensor([ids[i] for i in batch]), torch.ones(len(batch)), torch.ones(len(batch))
        )
        evaluation.add_texts(
            torch.tensor([ids[i] for i in batch]),
            ["" for _ in batch],
            [answers[i] for i in batch],
            [[texts[i]] for i in batch],
            list(batch),
            [{} for _ in batch],
        )
    return evaluation.finish()[0]


def test_categories_are_means_over_their_tasks():
    result = _evaluated([[0, 1, 2], [3, 4]])
    assert result["categories"]["X"]["exact_match"] == pytest.approx((0.5 + 1) / 2)
    assert result["categories"]["Y"]["exact_match"] == pytest.approx(0.5)
    assert set(result["categories"]) == {"X", "Y"}


def test_the_order_of_batches_does_not_matter():
    first = _evaluated([[0, 1, 2], [3, 4]])["intervals"]
    assert first["tasks"]["b"]["exact_match"] == [1.0, 1.0]
    assert first["tasks"]["c"]["exact_match"] == [0.0, 0.0]
    assert _evaluated([[4], [3, 1], [0, 2]])["intervals"] == first
