"""Statistics of routing: closed forms, and what they must not depend on."""

import math

import pytest
import torch

from polylab.poly import statistics as st
from polylab.poly.alignment import check_layers

T, Q, S = 5, 2, 3  # tasks, splits, skills


def random_weights(seed, *, shape=(T, Q, S), sharpness=1.0):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * sharpness
    return torch.softmax(logits, -1)


def one_hot(columns, n_skills):
    return torch.nn.functional.one_hot(torch.tensor(columns), n_skills).float()[:, None]


@pytest.fixture
def layers():
    return {"a": random_weights(0), "b": random_weights(1, sharpness=3.0)}


class TestEntropy:
    def test_uniform_is_one_and_one_hot_is_zero(self):
        uniform = torch.full((T, Q, S), 1 / S)
        assert st.entropy({"a": uniform}) == pytest.approx(1.0)
        assert st.entropy({"a": one_hot([0, 2, 1, 1, 0], S)}) == 0.0

    def test_two_of_four_skills_are_one_half(self):
        w = torch.tensor([0.5, 0.5, 0, 0]).expand(T, Q, 4)
        assert st.entropy({"a": w}) == pytest.approx(0.5)

    def test_is_taken_per_head_not_over_flattened_heads(self):
        w = torch.stack([torch.full((T, S), 1 / S), torch.eye(S)[torch.zeros(T).long()]], dim=1)
        assert st.entropy({"a": w}) == pytest.approx(0.5)

    def test_each_layer_counts_once_whatever_its_heads(self):
        layers = {"wide": torch.full((T, 4, S), 1 / S), "sharp": one_hot([0] * T, S)}
        assert st.layer_entropy(layers) == {"wide": pytest.approx(1.0), "sharp": 0.0}
        assert st.entropy(layers) == pytest.approx(0.5)

    def test_a_single_skill_is_uniform(self):
        assert st.entropy({"a": torch.ones(T, Q, 1)}) == 1.0


class TestGates:
    def test_halves_are_one_bit(self):
        z = torch.full((T, Q, S), 0.5)
        assert st.z_entropy_bits({"a": z}) == pytest.approx(1.0)
        assert st.discreteness({"a": z}) == pytest.approx(0.0)

    def test_on_or_off_is_discrete(self):
        z = torch.tensor([0.0, 1.0, 1.0]).expand(T, Q, S)
        assert st.z_entropy_bits({"a": z}) == 0.0
        assert st.discreteness({"a": z}) == 1.0
        assert st.density({"a": z}) == pytest.approx(2 / 3)

    def test_bits_in_closed_form(self):
        z = torch.full((T, Q, S), 0.25)
        expected = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
        assert st.z_entropy_bits({"a": z}) == pytest.approx(expected)

    def test_density_averages_layers(self):
        layers = {"on": torch.full((T, Q, S), 0.9), "off": torch.full((T, 1, S), 0.1)}
        assert st.density(layers) == 0.5

    @pytest.mark.parametrize(("bad", "words"), [(1.5, "0.5 to 1.5"), (-2.0, "-2 to 0.5")])
    def test_logits_are_refused(self, bad, words):
        z = torch.full((T, Q, S), 0.5)
        z[1, 0, 2] = bad
        with pytest.raises(ValueError, match=rf"layer 'a' lie in {words}.*sigmoid"):
            st.z_entropy_bits({"a": z})


class TestUsage:
    def test_is_the_share_of_each_skill(self):
        z = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.0, 0.1]])[:, None]  # t=2
        torch.testing.assert_close(
            st.skill_usage({"a": z})["a"], torch.tensor([[0.4, 0.2, 0.4]]).double()
        )

    def test_equal_use_by_different_tasks_counts_all_skills(self):
        w = {"a": one_hot([0, 1, 2], 3)}
        assert st.usage_entropy(w) == pytest.approx(1.0)
        assert st.effective_skills(w) == pytest.approx(3.0)

    def test_one_skill_for_all_tasks(self):
        w = {"a": one_hot([2, 2, 2, 2], 3)}
        assert st.usage_entropy(w) == 0.0
        assert st.effective_skills(w) == pytest.approx(1.0)

    def test_effective_skills_is_the_mean_over_layers(self):
        layers = {"all": one_hot([0, 1, 2], 3), "one": one_hot([1, 1, 1], 3)}
        assert st.effective_skills(layers) == pytest.approx(2.0)

    def test_gates_that_are_all_zero_give_zeros(self):
        assert st.usage_entropy({"a": torch.zeros(T, Q, S)}) == 0.0


class TestMutualInformation:
    def test_is_zero_where_rows_route_alike(self):
        w = random_weights(3, shape=(1, Q, S)).expand(T, -1, -1)
        assert st.routing_mutual_information({"a": w}) == pytest.approx(0.0, abs=1e-12)

    def test_is_log_s_for_disjoint_one_hot_rows(self):
        assert st.routing_mutual_information({"a": one_hot([0, 1, 2], 3)}) == pytest.approx(
            math.log(3)
        )


class TestSimilarity:
    def test_features_hold_every_layer_and_head(self, layers):
        features = st.task_features({**layers, "c": random_weights(2, shape=(T, 4, S))})
        assert features.shape == (T, (Q + Q + 4) * S)

    def test_closed_form(self):
        w = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.5, 0.5, 0]])[:, None]
        expected = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0.5, 0.5, 1]]).double()
        torch.testing.assert_close(st.task_similarity({"a": w}), expected)

    def test_does_not_depend_on_the_numbering_of_skills(self, layers):
        mixed = {
            "a": layers["a"][:, :, [2, 0, 1]],
            "b": torch.stack([layers["b"][:, 0], layers["b"][:, 1][:, [1, 2, 0]]], 1),
        }
        torch.testing.assert_close(st.task_similarity(mixed), st.task_similarity(layers))

    def test_change_is_the_share_of_weight_that_moved(self):
        before = {"a": torch.tensor([[0.5, 0.5, 0.0]] * T)[:, None]}
        now = {"a": torch.tensor([[0.25, 0.5, 0.25]] * T)[:, None]}
        assert st.allocation_change(now, before) == pytest.approx(0.25)
        assert st.allocation_change(now, now) == 0.0

    def test_change_refuses_other_layers(self, layers):
        with pytest.raises(ValueError, match=r"\{'a': \(5, 2, 3\)\} with .*'b'"):
            st.allocation_change({"a": layers["a"]}, layers)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no layer given"),
        ({"a": torch.ones(0, Q, S)}, r"'a' has weights of shape \[0, 2, 3\]"),
        (
            {"a": torch.ones(T, Q, S), "b": torch.ones(T, Q, 4)},
            r"'b' has shape \[5, 2, 4\] and layer 'a' \[5, 2, 3\]",
        ),
        (
            {"a": torch.ones(T, Q, S), "b": torch.ones(6, Q, S)},
            r"'b' has shape \[6, 2, 3\] and layer 'a' \[5, 2, 3\]",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(given, words):
    for statistic in (st.entropy, st.skill_usage, st.task_similarity, st.align_skills):
        with pytest.raises(ValueError, match=words):
            statistic(given)


def test_weights_of_other_axes_are_refused():
    with pytest.raises(ValueError, match=r"'a' has weights of shape \[5, 3\]; .*splits"):
        check_layers([("a", torch.ones(T, S))])


def test_similarity_of_very_many_cells_is_that_of_evenly_spaced_layers(monkeypatch):
    draw = torch.Generator().manual_seed(2)
    layers = {f"l{i}": torch.rand(5, 2, 3, generator=draw).softmax(-1) for i in range(7)}
    whole = st.task_similarity(layers)
    monkeypatch.setattr(st, "MOST_COMPARED", 3 * 5 * 30 + 149)  # room for three layers
    some = {name: layers[name] for name in ("l0", "l3", "l6")}
    assert torch.equal(st.task_similarity(layers), st.task_similarity(some))
    assert not torch.allclose(st.task_similarity(layers), whole)
