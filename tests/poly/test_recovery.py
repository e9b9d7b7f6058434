"""Recovery of a planted tasks x skills matrix."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from polylab.poly.recovery import match_to_truth, recovery, unidentifiable_skills
from polylab.poly.statistics import task_similarity

T, K = 18, 5


@pytest.fixture
def truth():
    g = torch.Generator().manual_seed(1)
    m = torch.rand(T, K, generator=g) < 0.4
    m[:K] |= torch.eye(K, dtype=torch.bool)  # every task has a skill, every skill a task
    m[m.sum(1) == 0, 0] = True
    return m


def planted(truth, *, n_skills, n_layers=4, heads=2, noise=0.0, seed=0):
    """The true matrix, row-normalised, skills in another order in every layer and head."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.pad(truth.float(), (0, max(0, n_skills - truth.shape[1])))
    layers = {}
    for i in range(n_layers):
        maps = []
        for _ in range(heads):
            order = torch.randperm(rows.shape[1], generator=g)[:n_skills]
            w = rows[:, order] + noise * torch.rand(len(rows), n_skills, generator=g) + 1e-6
            maps.append(w / w.sum(-1, keepdim=True))
        layers[f"l{i}"] = torch.stack(maps, 1)
    return layers


@pytest.mark.parametrize("n_skills", [K, K + 3])
def test_a_planted_matrix_is_recovered(truth, n_skills):
    found = recovery(planted(truth, n_skills=n_skills), truth, n_permutations=50)
    for key in ("aligned", "mean", "best"):
        assert found[key] == pytest.approx(1.0)
        assert 0.5 < found[f"{key}_baseline"] < 0.8
    assert found["similarity"] > 0.8
    assert abs(found["similarity_baseline"]) < 0.1
    assert found["unidentifiable"] == []
    assert found["n_permutations"] == 50


def test_random_weights_are_as_good_as_their_baseline(truth):
    g = torch.Generator().manual_seed(4)
    scores = []
    for _ in range(20):
        w = {f"l{i}": torch.rand(T, 1, K, generator=g).softmax(-1) for i in range(6)}
        scores.append(recovery(w, truth, n_permutations=20))
    for key in ("aligned", "mean", "best", "similarity"):
        gaps = [s[key] - s[f"{key}_baseline"] for s in scores]
        assert abs(sum(gaps) / len(gaps)) < 0.06


def test_uniform_weights_are_chance(truth):
    found = recovery({"a": torch.full((T, 2, K), 1 / K)}, truth, n_permutations=3)
    assert found["aligned"] == found["mean"] == found["best_baseline"] == 0.5
    assert math.isnan(found["similarity"])


def test_fewer_skills_than_true_ones_cannot_recover_all(truth):
    found = recovery(planted(truth, n_skills=3, n_layers=1, heads=1), truth, n_permutations=0)
    assert 0.6 < found["best"] < 0.95
    assert "best_baseline" not in found


def test_a_true_skill_without_a_partner_counts_as_uniform():
    truth = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 1, 1], [0, 1, 0]]).bool()
    first = torch.tensor([0.9, 0.8, 0.1, 0.2])
    w = torch.stack([first, 1 - first], 1)[:, None]
    # four high cells that are 1 beat all 6; two of 1/2 beat 4 and tie with 2
    found = recovery({"a": w}, truth, n_permutations=0)
    assert found["best"] == pytest.approx((4 * 6 + 2 * 5) / 36)


def test_best_layer_is_named(truth):
    layers = {**planted(truth, n_skills=K, n_layers=3, noise=5.0)}
    layers["good"] = planted(truth, n_skills=K, n_layers=1, seed=9)["l0"]
    found = recovery(layers, truth, n_permutations=0)
    assert found["best_layer"] == "good"
    assert found["best"] == pytest.approx(1.0)
    assert found["mean"] < found["best"]


def test_score_in_closed_form():
    truth = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 1]]).bool()
    w = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.6, 0.4], [0.2, 0.8]])[:, None]
    # cells of M that are 1: .9 .5 .6 .4 .8, that are 0: .1 .5 .2; ties count half
    # .9 .6 .8 beat all 3; .5 beats .1 .2 and ties with .5: 2.5; .4 beats .1 .2: 2
    found = recovery({"a": w}, truth, n_permutations=0)
    assert found["aligned"] == pytest.approx((3 * 3 + 2.5 + 2) / 15)


def test_similarity_is_spearmans_over_pairs_of_tasks(truth):
    w = planted(truth, n_skills=K, noise=1.0)
    rows = (truth.double() / truth.sum(1, keepdim=True))[:, None]
    upper = torch.triu_indices(T, T, 1)
    pairs = [task_similarity(x).round(decimals=9)[tuple(upper)] for x in (w, {"m": rows})]
    expected = spearmanr(*[p.numpy() for p in pairs]).statistic
    assert recovery(w, truth, n_permutations=0)["similarity"] == pytest.approx(expected)


def test_baseline_is_seeded(truth):
    w = planted(truth, n_skills=K, noise=2.0)
    first, again, other = (recovery(w, truth, n_permutations=5, seed=s) for s in (3, 3, 4))
    assert first == again
    assert first["mean_baseline"] != other["mean_baseline"]
    assert first["mean"] == other["mean"]


def test_skills_that_only_occur_together_are_named_and_count_once():
    truth = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 0]])
    names = ["add", "carry", "read", "always", "never"]
    assert unidentifiable_skills(truth.bool(), names) == [["add", "carry"], ["always"], ["never"]]
    w = planted(truth[:, [0, 2]].bool(), n_skills=2, n_layers=1, heads=1)
    found = recovery(w, truth.bool(), names=names, n_permutations=0)
    assert found["best"] == pytest.approx(1.0)
    assert found["unidentifiable"] == [["add", "carry"], ["always"], ["never"]]


def test_true_skills_are_matched_one_to_one(truth):
    mean = truth.float()[:, [3, 0, 4, 1, 2]]
    assert match_to_truth(mean, truth) == [1, 3, 4, 0, 2]
    assert match_to_truth(mean[:, :2], truth) == [1, None, None, 0, None]


@pytest.mark.parametrize(
    ("matrix", "names", "words"),
    [
        (torch.ones(4, K).bool(), None, "true matrix has 4 tasks, the weights have 18"),
        (torch.ones(T, K).bool(), None, r"no column of the true matrix \[18, 5\] varies"),
        (torch.eye(T, K).bool(), ["a", "b"], "2 skill names for 5 columns"),
    ],
)
def test_what_does_not_fit_is_refused(truth, matrix, names, words):
    with pytest.raises(ValueError, match=words):
        recovery(planted(truth, n_skills=K), matrix, names=names)
