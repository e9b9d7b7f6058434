"""Skills of different layers and heads in one order."""

import numpy as np
import pytest
import torch

from polylab.poly.alignment import (
    N_COMPARED,
    agreement,
    align_skills,
    aligned_mean,
    apply_alignment,
    match_columns,
)

T, S = 7, 4


def permuted_layers(n_layers, *, heads=1, noise=0.0, seed=0, n_tasks=T, n_skills=S):
    """One base map, its skills in a random order of their own in every layer and head."""
    g = torch.Generator().manual_seed(seed)
    base = torch.softmax(3 * torch.randn(n_tasks, n_skills, generator=g), -1)
    layers = {}
    for i in range(n_layers):
        maps = [base[:, torch.randperm(n_skills, generator=g)] for _ in range(heads)]
        w = torch.stack(maps, 1)
        layers[f"l{i}"] = w + noise * torch.randn(w.shape, generator=g)
    return base, layers


def test_undoes_permutations_of_layers_and_heads():
    _, layers = permuted_layers(5, heads=3)
    aligned = apply_alignment(layers, align_skills(layers))
    for w in aligned.values():
        for q in range(3):
            torch.testing.assert_close(w[:, q], aligned["l0"][:, 0])
    assert agreement(aligned) == pytest.approx(1.0)


def test_orders_are_permutations_of_each_head():
    layers = {**permuted_layers(2, heads=3)[1], "one": permuted_layers(1, seed=5)[1]["l0"]}
    perms = align_skills(layers)
    assert {name: tuple(p.shape) for name, p in perms.items()} == {
        "l0": (3, S),
        "l1": (3, S),
        "one": (1, S),
    }
    for p in perms.values():
        assert p.dtype == torch.int64
        assert p.sort(-1)[0].tolist() == [list(range(S))] * len(p)


def test_reference_keeps_its_own_order():
    # two layers agree, the third is noise: the reference is the first of those that agree
    base, _ = permuted_layers(1)
    noise = torch.rand(T, S, generator=torch.Generator().manual_seed(3))
    layers = {"noise": noise[:, None], "x": base[:, None], "y": base[:, [3, 1, 0, 2]][:, None]}
    perms = align_skills(layers)
    assert perms["x"].tolist() == [[0, 1, 2, 3]]
    assert perms["y"].tolist() == [[2, 1, 3, 0]]


def test_matching_ignores_scale_and_level_of_columns():
    base, _ = permuted_layers(1)
    faint = 0.25 + 0.001 * base[:, [2, 3, 1, 0]]
    perms = align_skills({"strong": base[:, None], "faint": faint[:, None]})
    assert perms["faint"].tolist() == [[3, 2, 0, 1]]


def test_a_plain_mean_blurs_what_an_aligned_mean_keeps():
    """A row's range shrinks from 1 to about 0.14 over 48 permuted layers."""
    base = torch.eye(8).repeat(3, 1)  # 24 tasks, each with one of 8 skills
    g = torch.Generator().manual_seed(0)
    layers = {f"l{i}": base[:, torch.randperm(8, generator=g)][:, None] for i in range(48)}
    plain = torch.cat(list(layers.values()), 1).mean(1)
    mean, agrees = aligned_mean(layers)
    assert (plain.amax(1) - plain.amin(1)).mean() < 0.2
    assert (mean.amax(1) - mean.amin(1)).tolist() == pytest.approx([1.0] * 24)
    assert agrees == pytest.approx(1.0)


def test_mean_survives_noise():
    base, layers = permuted_layers(30, noise=0.05, n_tasks=20)
    mean, agrees = aligned_mean(layers)
    order = [k for _, k in match_columns((base.T @ mean).numpy())]
    torch.testing.assert_close(mean[:, order], base, atol=0.04, rtol=0)  # noise / sqrt(30) = 0.01
    assert 0.8 < agrees < 1


def test_agreement_of_unrelated_layers_is_small():
    g = torch.Generator().manual_seed(0)
    layers = {f"l{i}": torch.rand(40, 2, S, generator=g) for i in range(10)}
    assert abs(agreement(layers)) < 0.05
    assert agreement(apply_alignment(layers, align_skills(layers))) < 0.2


def test_agreement_of_one_map_is_undefined():
    assert np.isnan(agreement({"a": torch.rand(T, 1, S)}))


def test_constant_columns_agree_with_nothing():
    flat = torch.full((T, 1, S), 0.25)
    assert agreement({"a": flat, "b": flat.clone()}) == 0.0
    assert align_skills({"a": flat})["a"].shape == (1, S)


def test_many_layers_are_aligned_to_one_of_a_sample():
    _, layers = permuted_layers(2 * N_COMPARED + 3, n_tasks=T)
    mean, agrees = aligned_mean(layers)
    assert agrees == pytest.approx(1.0)
    assert mean.shape == (T, S)


def test_a_layer_without_an_order_is_refused():
    with pytest.raises(ValueError, match=r"no skill order for layer 'b'.*\['a'\]"):
        apply_alignment({"b": torch.rand(T, 1, S)}, {"a": torch.zeros(1, S, dtype=torch.long)})


def test_rectangular_matching_takes_the_best_sum():
    scores = np.array([[5.0, 4.0], [4.0, 0.0], [0.0, 1.0]])
    assert match_columns(scores) == [(0, 1), (1, 0)]
