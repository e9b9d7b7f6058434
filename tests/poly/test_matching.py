"""Ranking cells of paired columns: many maps and matrices at once, against one at a time."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from polylab.poly import matching
from polylab.poly.matching import Truths, paired_auroc, unit_columns

MAPS, TASKS, MATRICES = 5, 7, 6


def slow_auroc(w, truth):
    scores = unit_columns(w).T @ unit_columns(truth)
    rows, cols = linear_sum_assignment(scores, maximize=True)
    paired = np.full(truth.shape, 1 / w.shape[1])
    paired[:, cols] = w[:, rows]
    positive = int(truth.sum())
    above = rankdata(paired).reshape(truth.shape)[truth > 0].sum() - positive * (positive + 1) / 2
    return above / (positive * (truth.size - positive))


@pytest.mark.parametrize(("skills", "true"), [(8, 3), (3, 3), (2, 4), (1, 2)])
@pytest.mark.parametrize("largest", [0, 2**22], ids=["each pairing", "table"])
@pytest.mark.parametrize("digits", [1, 9], ids=["ties", "no ties"])
def test_all_at_once_is_each_by_itself(monkeypatch, skills, true, largest, digits):
    monkeypatch.setattr(matching, "_LARGEST_TABLE", largest)
    monkeypatch.setattr(matching, "_CELLS", 2 * TASKS * (skills + 1) ** 2)  # in parts of two maps
    draw = np.random.default_rng(3)
    maps = draw.dirichlet(np.ones(skills), (MAPS, TASKS)).round(digits)
    first = draw.permuted(np.arange(TASKS)[:, None] % 3 == np.arange(true) % 3, axis=0)
    columns = np.stack([draw.permutation(first) for _ in range(MATRICES)]).astype(float)
    found = paired_auroc(maps, Truths.of(columns))
    assert found.shape == (MAPS, MATRICES)
    slow = [[slow_auroc(w, truth) for truth in columns] for w in maps]
    np.testing.assert_allclose(found, slow, rtol=0, atol=1e-12)
    one = paired_auroc(maps, Truths.of(columns[:1]))
    np.testing.assert_allclose(one[:, 0], found[:, 0], rtol=0, atol=1e-12)
