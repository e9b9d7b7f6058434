"""Keyed noise: uniform, independent of slicing, different wherever it should be."""

import pytest
import torch

from polylab.poly import noise
from polylab.poly.noise import KeyedNoise, NoiseKey, layer_keys
from tests.poly.tiny import BATCH, inputs_of, output_of, poly, task_ids

CPU = torch.device("cpu")


def draw(seed=0, step=0, rows=None, layer=0, *, n_layers=3, n_splits=2, n_gates=5):
    rows = torch.arange(8) if rows is None else rows
    key = NoiseKey(layer_keys(seed, step, n_layers=n_layers), rows)
    return key.uniform(layer, n_splits, n_gates=n_gates, device=CPU)


def test_it_is_uniform():
    u = draw(rows=torch.arange(2000), n_layers=1, n_splits=4, n_gates=25).flatten().double()
    assert 0 < u.min() < 1e-5
    assert 1 - 1e-5 < u.max() < 1
    n = len(u)
    counts = torch.histc(u, 100, 0, 1)
    chi2 = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert 60 < chi2 < 150  # 99 degrees of freedom: outside once in 1000 draws
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5


@pytest.mark.parametrize("axis", ["seed", "step", "row", "layer", "cell"])
def test_neighbours_are_uncorrelated(axis):
    rows = torch.arange(4000)
    big = {"rows": rows, "n_splits": 2, "n_gates": 5}
    one = draw(**big)
    other = {
        "seed": draw(seed=1, **big),
        "step": draw(step=1, **big),
        "row": one.roll(1, dims=0),
        "layer": draw(layer=1, **big),
        "cell": one.flatten(1).roll(1, dims=1).view_as(one),
    }[axis]
    pairs = torch.stack([one.flatten(), other.flatten()]).double()
    assert abs(torch.corrcoef(pairs)[0, 1]) < 4 / pairs.shape[1] ** 0.5
    low, high = pairs < 0.5
    assert abs((low == high).double().mean() - 0.5) < 0.02


def test_any_slice_of_the_batch_sees_the_same():
    whole = draw(seed=-5, step=10**12, rows=torch.arange(12))
    for start, stop in ((0, 4), (4, 5), (5, 12)):
        assert torch.equal(draw(-5, 10**12, torch.arange(start, stop)), whole[start:stop])
    strided = torch.tensor([1, 5, 9])
    assert torch.equal(draw(-5, 10**12, strided), whole[strided])


def test_the_number_of_layers_does_not_matter():
    assert torch.equal(draw(layer=2, n_layers=3), draw(layer=2, n_layers=7))


def test_values_are_pinned():
    """A resumed run of an older version must draw the same."""
    u = draw(seed=42, step=7, rows=torch.tensor([3, 1000]), layer=1)
    assert [round(x, 6) for x in u[:, 1, :2].flatten().tolist()] == PINNED


PINNED = [0.299784, 0.340647, 0.640863, 0.169523]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_training_forward_does_not_depend_on_the_slicing(kind):
    model = poly(kind, noise_source="keyed").double().train()
    inputs, ids = inputs_of(kind), task_ids()
    state = torch.get_rng_state()
    model.set_noise_key(5, 6)
    whole = model(**inputs, task_ids=ids).logits
    assert torch.equal(torch.get_rng_state(), state)
    for start, stop in ((0, 1), (1, 4)):
        part = {name: value[start:stop] for name, value in inputs.items()}
        model.set_noise_key(5, 6, start)
        logits = model(**part, task_ids=ids[start:stop]).logits
        torch.testing.assert_close(logits, whole[start:stop])  # double: 1e-7
    rows = torch.tensor([0, 2])
    model.set_noise_key(5, 6, rows=rows)
    part = {name: value[rows] for name, value in inputs.items()}
    torch.testing.assert_close(model(**part, task_ids=ids[rows]).logits, whole[rows])


def test_steps_and_seeds_differ_and_evaluation_has_no_noise():
    model = poly("llama", noise_source="keyed").train()
    outputs = []
    for key in ((0, 0), (0, 1), (1, 0)):
        model.set_noise_key(*key)
        outputs.append(output_of(model, "llama", task_ids=task_ids()))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3
    plain = output_of(poly("llama"), "llama", task_ids=task_ids())
    assert torch.equal(output_of(model.eval(), "llama", task_ids=task_ids()), plain)


def test_two_examples_of_one_task_get_their_own_noise():
    model = poly("llama", noise_source="keyed").train()
    layer, seen = next(iter(model.poly_layers().values())), []
    layer.poly_router["default"].register_forward_hook(lambda *args: seen.append(args[2]))
    model.set_noise_key(0, 0)
    output_of(model, "llama", task_ids=torch.full((BATCH,), 3))
    assert len(seen[0].unique(dim=0)) == BATCH


def test_products_stay_inside_int64():
    """Compiled code may do anything with a product that overflows, and did."""
    for factor in (noise._M1, noise._M2, noise._STEP):
        assert abs(factor) * (2**32 - 1) < 2**63
    words = torch.tensor([0, 1, 2**31, 2**32 - 1])
    mixed = noise._mix(words)
    assert mixed.min() >= 0
    assert mixed.max() < 2**32
    assert len(mixed.unique()) == 4


def test_a_missing_or_wrong_key_is_refused():
    model = poly("llama", noise_source="keyed")
    output_of(model, "llama", task_ids=task_ids())  # evaluation needs none
    with pytest.raises(ValueError, match=r"noise_source='keyed' needs set_noise_key\(seed, step"):
        output_of(model.train(), "llama", task_ids=task_ids())
    with model.routing("top1"):
        output_of(model, "llama", task_ids=task_ids())  # an intervention has no noise either
    private = poly("llama", noise_source="keyed", poly_type="private").train()
    output_of(private, "llama", task_ids=task_ids())
    model.set_noise_key(0, 0, rows=torch.arange(3))
    with pytest.raises(ValueError, match="set_noise_key got 3 rows, but the batch has 4"):
        output_of(model, "llama", task_ids=task_ids())
    keyed = KeyedNoise()
    keyed.set(0, 0, rows=2, n_layers=1)
    assert keyed.key(3).rows.tolist() == [2, 3, 4]
