"""Priors: their values by hand, their gradients, and their way into the loss."""

import math

import pytest
import torch

from polylab.poly.priors import Entropy, IndianBuffet, LoadBalance, MutualInformation
from tests.poly.tiny import inputs_of, poly, task_ids

ROWS, SPLITS, SKILLS = 6, 2, 4


def equal(n):
    return torch.full((n,), 1 / n, dtype=torch.float64)


def random_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, SPLITS, SKILLS, dtype=torch.float64, generator=generator)
    return logits.softmax(-1).requires_grad_()


def slow_ibp(active):
    """-log P of one head's binary matrix, up to constants without a gradient."""
    n_tasks, columns = len(active), [tuple(column) for column in zip(*active, strict=True)]
    total = 0.0
    for history in {c for c in columns if any(c)}:
        total += math.lgamma(columns.count(history) + 1)
    for column in columns:
        m = sum(column)
        if m > 0:
            total -= math.lgamma(n_tasks - m + 1) + math.lgamma(m)
    return total


def test_the_indian_buffet_by_hand():
    patterns = [
        [[1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0]],
    ]
    gates = torch.tensor(patterns, dtype=torch.float64).transpose(0, 1) * 0.8 + 0.1  # t q s
    value = IndianBuffet()(gates, gates, equal(ROWS))
    wanted = sum(slow_ibp(pattern) for pattern in patterns) / SPLITS
    assert float(value) == pytest.approx(wanted)


def test_the_indian_buffet_has_no_gradient_where_nothing_is_open():
    gates = torch.full((ROWS, SPLITS, SKILLS), 0.3, dtype=torch.float64, requires_grad=True)
    IndianBuffet()(gates, gates, equal(ROWS)).backward()
    assert gates.grad.abs().max() == 0
    more = torch.full((ROWS, 1, SKILLS), 0.3, dtype=torch.float64)
    more[:4, 0, 1] = 0.9
    more.requires_grad_()
    IndianBuffet()(more, more, equal(ROWS)).backward()
    # d/dm [-(lgamma(T - m + 1) + lgamma(m))] at T = 6, m = 4, straight through to each gate
    digamma = torch.digamma(torch.tensor([3.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(
        more.grad[:, 0, 1], (digamma[0] - digamma[1]).expand(ROWS).contiguous()
    )
    assert more.grad[:, 0, [0, 2, 3]].abs().max() == 0


def test_entropy_by_hand():
    w = random_weights()
    wanted = -(w * w.log()).sum() / ROWS / SPLITS / math.log(SKILLS)
    torch.testing.assert_close(Entropy()(w, None, equal(ROWS)), wanted)


def test_load_balance_by_hand_and_at_its_ends():
    w = random_weights()
    wanted = 0.0
    for q in range(SPLITS):
        for s in range(SKILLS):
            share = sum(int(row[q].argmax()) == s for row in w) / ROWS
            wanted += SKILLS * share * w[:, q, s].mean() / SPLITS
    torch.testing.assert_close(LoadBalance()(w, None, equal(ROWS)), wanted)
    one = torch.zeros(ROWS, SPLITS, SKILLS, dtype=torch.float64)
    one[..., 2] = 1
    assert float(LoadBalance()(one, None, equal(ROWS))) == pytest.approx(SKILLS)
    even = torch.eye(SKILLS, dtype=torch.float64)[:, None].expand(-1, SPLITS, -1)
    assert float(LoadBalance()(even, None, equal(SKILLS))) == pytest.approx(1)


def test_mutual_information_by_hand_and_at_its_ends():
    w = random_weights()
    mean = w.mean(0)
    conditional = -(w * w.log()).sum() / ROWS / SPLITS
    marginal = -(mean * mean.log()).sum() / SPLITS
    torch.testing.assert_close(MutualInformation()(w, None, equal(ROWS)), conditional - marginal)
    even = torch.eye(SKILLS, dtype=torch.float64)[:, None].expand(-1, SPLITS, -1)
    value = float(MutualInformation()(even, None, equal(SKILLS)))
    assert value == pytest.approx(-math.log(SKILLS))


@pytest.mark.parametrize("prior", [Entropy(), LoadBalance(), MutualInformation()])
def test_rows_without_a_share_do_not_count(prior):
    w = random_weights()
    some = torch.tensor([0.25, 0.25, 0, 0.25, 0, 0.25], dtype=torch.float64)
    kept = w[[0, 1, 3, 5]]
    torch.testing.assert_close(prior(w, None, some), prior(kept, None, equal(4)))
    one_hot = torch.eye(SKILLS, dtype=torch.float64)[:, None].repeat(1, SPLITS, 1).requires_grad_()
    prior(one_hot, None, equal(SKILLS)).backward()
    assert torch.isfinite(one_hot.grad).all()


PRIORS = {"ibp": 0.03, "entropy": 0.2, "load_balance": 0.1, "mutual_information": 0.5}


@pytest.mark.parametrize("poly_type", ["poly", "c-poly"])
def test_they_are_added_to_the_loss_in_training(poly_type):
    model = poly("t5", poly_type=poly_type, noise="none", priors=PRIORS).double()
    plain = model(**inputs_of("t5"), task_ids=task_ids())
    assert getattr(plain, "prior_loss", None) is None
    output = model.train()(**inputs_of("t5"), task_ids=task_ids())
    weights, gates = model.eval().task_weights(), model.task_gates()
    kinds = {
        "ibp": IndianBuffet(),
        "entropy": Entropy(),
        "load_balance": LoadBalance(),
        "mutual_information": MutualInformation(),
    }
    wanted = sum(
        PRIORS[name] * prior(weights[layer], gates[layer], equal(6)) / len(weights)
        for name, prior in kinds.items()
        for layer in weights
    )
    torch.testing.assert_close(output.prior_loss, wanted, check_dtype=False)
    torch.testing.assert_close(output.loss - plain.loss, wanted, check_dtype=False)
    output.prior_loss.backward()
    layer = next(iter(model.poly_layers().values()))
    assert layer.poly_router["default"].module_logits.grad.abs().max() > 0
    assert layer.poly_lora_A["default"].grad is None


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_they_work_on_the_examples_of_a_router_by_input(kind, level):
    priors = {"load_balance": 0.1, "mutual_information": 1.0}
    model = poly(kind, poly_type="mope", router_level=level, priors=priors).double().train()
    inputs = inputs_of(kind)
    mask = torch.ones_like(inputs["input_ids"])
    mask[:, -2:] = 0
    output = model(**inputs, attention_mask=mask)
    weights = model.mixing_weights(**inputs, attention_mask=mask)
    wanted = 0.0
    for w in weights.values():
        rows = w
        if level == "token":
            rows = w[mask.bool()] if w.shape[1] == mask.shape[1] else w.flatten(0, 1)
        value = 0.1 * LoadBalance()(rows, None, equal(len(rows)))
        value = value + MutualInformation()(rows, None, equal(len(rows)))
        wanted = wanted + value / len(weights)
    torch.testing.assert_close(output.prior_loss, wanted, check_dtype=False)


def test_their_gradient_survives_checkpointing_or_they_say_so():
    def run(**kwargs):
        priors = {"mutual_information": 1.0}
        model = poly("llama", poly_type="mope", priors=priors).double().train()
        if kwargs:
            model.gradient_checkpointing_enable(kwargs)
            model.enable_input_require_grads()
        output = model(**inputs_of("llama"))
        output.loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    wanted, found = run(), run(use_reentrant=False)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, msg=name)
    with pytest.raises(ValueError, match="reentrant checkpointing cuts"):
        run(use_reentrant=True)


def test_an_output_without_names_is_refused():
    model = poly("llama", priors={"ibp": 1.0}).train()
    with pytest.raises(ValueError, match="not a tuple: call it with return_dict=True"):
        model(**inputs_of("llama"), task_ids=task_ids(), return_dict=False)
