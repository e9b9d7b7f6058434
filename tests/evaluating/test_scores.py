"""Scores of the same examples under several routings: means, paired intervals, what is said."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from polylab.evaluating.findings import Verdict, judge, verdict
from polylab.evaluating.preparation import Evaluation
from polylab.evaluating.scores import LOSS, Asked, Effects, Estimate, Scores, effects, metric_names
from polylab.evaluating.study import Allocation, Study, dropped_skills
from polylab.training.intervals import bootstrap_intervals, resampled_sums
from polylab.training.journal import Answers
from polylab.training.metrics import exact_match

NAMES = ["a", "b", "unseen", "c"]
TASKS = np.array([0] * 5 + [1] * 7 + [3] * 4)


@pytest.fixture(scope="module")
def scores():
    """Three routings; the score of options belongs to some examples of two tasks."""
    rng = np.random.default_rng(0)
    counts = np.ones((3, len(TASKS)))
    counts[0] = rng.integers(1, 9, len(TASKS))
    counts[2] = TASKS == 1
    counts[2, :2] = 1
    sums = rng.random((3, 3, len(TASKS))) * counts
    return Scores(
        ["learned", "uniform", "drop:2"], [LOSS, "m", "options"], sums, counts, TASKS, NAMES
    )


def _by_task(scores, routing, metric):
    rows = {n: (i == TASKS) & (scores.counts[metric] > 0) for i, n in enumerate(NAMES)}
    return {n: scores.sums[routing, metric, own].tolist() for n, own in rows.items() if own.any()}


def test_means_and_their_intervals_are_those_of_an_evaluation(scores):
    found = effects(scores)
    assert found.tasks == ["a", "b", "c"]
    for metric in (1, 2):
        by_task = _by_task(scores, 1, metric)
        wanted = bootstrap_intervals({"m": by_task})["macro"]["m"]
        assert found.macro.value[1, metric] == pytest.approx(
            np.mean([np.mean(own) for own in by_task.values()])
        )
        bounds = found.macro.low[1, metric], found.macro.high[1, metric]
        assert bounds == pytest.approx(wanted, abs=1e-12)


def test_changes_are_paired_by_example(scores):
    found = effects(scores)
    before, after = _by_task(scores, 0, 1), _by_task(scores, 2, 1)
    moved = {n: np.subtract(after[n], before[n]).tolist() for n in before}
    wanted = bootstrap_intervals({"m": moved})
    change = found.change
    bounds = change.low[2, 1], change.high[2, 1]
    assert bounds == pytest.approx(wanted["macro"]["m"], abs=1e-12)
    assert change.value[2, 1] == pytest.approx(np.mean([np.mean(x) for x in moved.values()]))
    for t, name in enumerate(found.tasks):
        bounds = found.task_change.low[t, 2, 1], found.task_change.high[t, 2, 1]
        assert bounds == pytest.approx(wanted["tasks"][name]["m"], abs=1e-12)
    for numbers in (*change.numbers, *found.task_change.numbers):
        assert np.nanmax(np.abs(numbers[..., 0, :])) == 0  # of learned itself


def test_the_loss_is_a_mean_over_tokens(scores):
    found = effects(scores)
    means = []
    for task, name in ((0, "a"), (1, "b"), (3, "c")):
        own = task == TASKS
        means.append(scores.sums[1, 0, own].sum() / scores.counts[0, own].sum())
        sums = np.stack([scores.sums[1, 0, own], scores.counts[0, own]], axis=1)
        drawn = resampled_sums(sums, name)
        assert drawn.shape == (1000, 2)
        assert abs((drawn[:, 0] / drawn[:, 1]).mean() - means[-1]) < 0.05
    assert found.macro.value[1, 0] == pytest.approx(np.mean(means))
    assert np.isnan(found.task_change.value[2, :, 2]).all()  # task c has no options


def test_columns_are_summed_over_the_same_draws():
    values = np.random.default_rng(3).random((6, 2))
    drawn = resampled_sums(np.concatenate([values, values[:, :1] - values[:, 1:]], axis=1), "t")
    np.testing.assert_allclose(drawn[:, 2], drawn[:, 0] - drawn[:, 1], atol=1e-12)


def _answers(texts, choices):
    n = len(texts)
    return Answers(torch.arange(1.0, n + 1), torch.full((n,), 2), texts, choices)


def test_answers_are_scored_in_the_order_of_the_rows():
    asked = [
        Asked([1, 0], [2, 0], [["x"], ["y"]], True),
        Asked([0], [1], [["z"]], False),
    ]
    answers = [_answers(["x", "no"], [{"x": 0.1, "u": 0.0}, {}]), _answers(["z"], [{}])]
    found = Scores.of(
        asked, {"learned": answers.__getitem__}, metrics={"m": exact_match}, names=["p", "q"]
    )
    assert found.metrics == [LOSS, "m", "rank_accuracy"]
    assert found.tasks.tolist() == [0, 0, 1]
    assert found.sums[0].tolist() == [[2, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert found.counts.tolist() == [[2, 2, 2], [1, 1, 1], [0, 0, 1]]
    assert metric_names(asked, []) == [LOSS]
    losses = [Answers(a.losses, a.tokens, [], []) for a in answers]
    found = Scores.of(asked, {"learned": losses.__getitem__}, metrics={}, names=["p", "q"])
    assert found.sums[0].tolist() == [[2, 1, 1]]


@pytest.mark.parametrize("ranks", [True, False])
def test_options_that_are_not_ranked_are_no_metric(ranks):
    """`module.rank_options=null`: the batches have the options all the same."""
    ids = torch.tensor([0, 1])
    batch = {"task_ids": ids, "rows": ids, "references": [["x"], ["y"]], "ranked": {}}
    module = SimpleNamespace(ranks_options=ranks)
    asked = Evaluation(module, None, [batch], "test", OmegaConf.create()).asked
    assert metric_names(asked, ["m"]) == [LOSS, "m", *(["rank_accuracy"] if ranks else [])]


def _study(routings, *, change, learned=(1.0, 0.8), metric="m", **more):
    """Of two metrics; `change` is `[value, low, high]` of each routing and metric."""
    numbers = np.concatenate([np.zeros((3, 1, 2)), np.array(change, dtype=float)], axis=1)
    macro = np.array(learned) + numbers[0]
    tasks = np.broadcast_to(numbers[:, None], (3, 2, *numbers.shape[1:]))
    found = Effects(
        Estimate(macro, macro, macro), Estimate(*numbers), Estimate(*tasks.copy()), ["a", "b"]
    )
    return Study(found, ["learned", *routings], [LOSS, "m"], metric, LOSS, 30, **more)


@pytest.mark.parametrize(
    ("m", "wanted"),
    [
        ((-0.002, -0.009, 0.004), Verdict.SAME),
        ((-0.002, -0.011, 0.004), Verdict.OPEN),
        ((-0.005, -0.009, -0.001), Verdict.SAME),  # surely lower, and by nothing
        ((-0.3, -0.4, -0.2), Verdict.WORSE),
        ((0.3, 0.2, 0.4), Verdict.BETTER),
    ],
)
def test_verdicts(m, wanted):
    """The loss has the other sign, and a margin of 5 % of the learned one."""
    for metric, sign, scale in (("m", 1, 1), (LOSS, -1, 5)):
        value, low, high = (sign * scale * x for x in m)
        numbers = [value, *sorted([low, high])]
        study = _study(["shuffled"], change=[[[x, x]] for x in numbers], metric=metric)
        assert verdict(study, "shuffled", metric) is wanted


@pytest.mark.parametrize(
    ("score", "loss", "wanted"),
    [
        ([0.0, -0.001, 0.001], [0.0, -0.01, 0.01], (Verdict.SAME, False)),
        ([0.0, 0.0, 0.0], [0.3, 0.2, 0.4], (Verdict.WORSE, True)),  # a score that stays at 0
        ([0.0, -0.1, 0.1], [-0.3, -0.4, -0.2], (Verdict.BETTER, True)),
        ([0.0, 0.0, 0.0], [0.0, -0.2, 0.2], (Verdict.OPEN, False)),
        ([0.0, -0.1, 0.1], [0.0, -0.01, 0.01], (Verdict.OPEN, False)),
        ([-0.3, -0.4, -0.2], [0.0, -0.2, 0.2], (Verdict.WORSE, False)),
    ],
)
def test_the_loss_speaks_where_the_score_is_silent(score, loss, wanted):
    study = _study(["uniform"], change=[[pair] for pair in zip(loss, score, strict=True)])
    assert judge(study, "uniform") == wanted
    assert ("worse" in study.findings()[0]) == (wanted[0] is Verdict.WORSE)
    assert (", by the loss alone: m" in study.findings()[0]) == wanted[1]


def test_few_examples_are_said():
    study = _study(["uniform"], change=np.zeros((3, 1, 2)))
    assert len(study.findings()) == 1
    few = dataclasses.replace(study, n_examples=3)
    assert "too narrow" in few.findings()[0]
    assert "of which there are 1.5 on average; 5 or more" in few.findings()[0]


def test_findings():
    nothing, worse = [[0.0, 0.0]] * 3, [[0.5, -0.2], [0.4, -0.3], [0.6, -0.1]]
    study = _study(["shuffled"], change=[[x] for x in nothing])
    (said,) = study.findings()
    assert said.startswith("The routing is not used: with another task's allocation")
    assert "m +0.000 (+0.000 to +0.000), loss +0.000" in said
    study = _study(["shuffled"], change=[[x] for x in worse], by_input=True, note="it has none")
    said, note = study.findings()
    assert said.startswith("The routing is used: with another example's allocation")
    assert "m -0.200 (-0.300 to -0.100), loss +0.500 (+0.400 to +0.600)" in said
    assert note == "No knock-out: it has none"
    with pytest.raises(ValueError, match="there is no knock-out: it has none"):
        _ = study.knockout
    with pytest.raises(ValueError, match="no knock-out to draw: it has none"):
        study.figure()


def test_the_map_and_the_knock_out_are_compared():
    relative = np.array([[1.5, 0.1, 0.4], [0.5, 0.2, 2.3]])
    allocation = Allocation(relative, 0.9, [1, 0])
    drops = ["drop:2", "drop:0"]  # skill 1 stays
    change = np.zeros((3, 2, 2))
    study = _study(drops, change=change, allocation=allocation)
    study.effects.task_change.value[:, 1:, 0] = relative[:, [2, 0]] * 0.2 + 0.01
    assert study.skills == [2, 0]
    assert study.correlations() == (pytest.approx(1), pytest.approx(1), 4)
    assert "Pearson 1.00, Spearman 1.00 over 4 cells" in study.findings()[-1]
    assert study.findings()[-1].startswith("No skill is missed over all tasks: allocation against")
    change = np.array([[[0.5, 0], [0, 0]], [[0.4, 0], [0, 0]], [[0.6, 0], [0, 0]]])
    missed = _study(drops, change=change, allocation=allocation)
    missed.effects.task_change.value[:, 1:, 0] = relative[:, [2, 0]]
    assert missed.findings()[-1].startswith("Tasks miss the skills that they weigh most: ")
    assert "1 (2) of 2 are missed and 1 (0) are not" in missed.findings()[0]
    missed.effects.task_change.value[:, 1:, 0] *= -1
    assert missed.findings()[-1].startswith("Tasks do not miss more the skills that they weigh")
    table = study.knockout.query("metric == 'loss'")
    assert table.task.tolist() == ["a", "a", "b", "b"]
    assert table.allocation.tolist() == [0.4, 1.5, 2.3, 0.5]
    assert table.change.tolist() == pytest.approx([0.09, 0.31, 0.47, 0.11])
    assert (study.gain() == -study.effects.task_change.value[:, 1:, 0]).all()
    assert "2 (2, 0) of 2 are missed" not in study.findings()[0]
    assert "none of 2 are missed and 2 (2, 0) are not" in study.findings()[0]
    study.effects.task_change.value[:, 1:, 0] = 0.5
    assert np.isnan(study.correlations()[0])
    assert "one is the same everywhere" in study.findings()[-1]


def test_dropped_skills():
    assert dropped_skills(["learned", "drop:3", "drop:a.b/1", "drop:0"]) == [3, 0]
