"""`recovery` against a slow reference that goes cell by cell, permutation by permutation."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr

from polylab.poly.recovery import recovery
from polylab.poly.statistics import aligned_mean, task_similarity

T, K, HEADS, LAYERS, PERMUTATIONS = 9, 4, 2, 3, 6


def slow_auroc(w, m):
    n_skills = w.shape[1]
    scores = np.zeros((n_skills, K))
    for s in range(n_skills):
        for k in range(K):
            scores[s, k] = np.corrcoef(w[:, s], m[:, k])[0, 1]
    pairs = dict(zip(*reversed(linear_sum_assignment(scores, maximize=True)), strict=True))
    cells = {
        (t, k): w[t, pairs[k]] if k in pairs else 1 / n_skills for t in range(T) for k in range(K)
    }
    high = [value for cell, value in cells.items() if m[cell]]
    low = [value for cell, value in cells.items() if not m[cell]]
    wins = sum((h > value) + (h == value) / 2 for h in high for value in low)
    return wins / (len(high) * len(low))


def slow_scores(weights, m):
    per_layer = [
        np.mean([slow_auroc(w[:, q].double().numpy(), m) for q in range(HEADS)])
        for w in weights.values()
    ]
    rows = torch.from_numpy(m / np.maximum(m.sum(1, keepdims=True), 1))[:, None]
    upper = np.triu_indices(T, 1)
    pairs = [task_similarity(x).numpy().round(9)[upper] for x in (weights, {"m": rows})]
    return {
        "aligned": slow_auroc(aligned_mean(weights)[0].double().numpy(), m),
        "mean": np.mean(per_layer),
        "best": max(per_layer),
        "similarity": spearmanr(*pairs).statistic,
    }


@pytest.mark.parametrize("n_skills", [K - 1, K, K + 3])
def test_numbers_are_those_of_the_reference(n_skills):
    draw = torch.Generator().manual_seed(n_skills)
    truth = torch.rand(T, K, generator=draw) < 0.4
    truth[:K] |= torch.eye(K, dtype=torch.bool)
    weights = {
        f"l{i}": torch.rand(T, HEADS, n_skills, generator=draw).softmax(-1) for i in range(LAYERS)
    }
    m = truth.numpy().astype(float)
    found = recovery(weights, truth, n_permutations=PERMUTATIONS, seed=5)
    expected = slow_scores(weights, m)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    rng = np.random.default_rng(5)
    runs = [slow_scores(weights, m[rng.permutation(T)]) for _ in range(PERMUTATIONS)]
    for key in expected:
        mean = np.mean([run[key] for run in runs])
        assert found[f"{key}_baseline"] == pytest.approx(mean, abs=1e-12)
