"""Short and long rows apart: the same losses and gradients from fewer tokens."""

import pytest
import torch
from torch.nn.functional import pad

from polylab.training import lengths
from polylab.training.lengths import length_parts, take_rows


def _mask(*row_lengths):
    return (torch.arange(max(row_lengths)) < torch.tensor(row_lengths)[:, None]).long()


@pytest.fixture
def _any_size(monkeypatch):
    monkeypatch.setattr(lengths, "_LEAST_TOKENS", 1)


@pytest.mark.usefixtures("_any_size")
def test_the_cut_needs_the_fewest_tokens():
    short, long = length_parts(_mask(9, 3, 10, 2, 3))
    assert {*short.tolist()} == {1, 3, 4}
    assert {*long.tolist()} == {0, 2}


@pytest.mark.usefixtures("_any_size")
@pytest.mark.parametrize("row_lengths", [(7, 7, 7), (7, 7, 6, 7), (5,)])
def test_rows_that_are_alike_stay_together(row_lengths):
    assert length_parts(_mask(*row_lengths)) is None


@pytest.mark.usefixtures("_any_size")
def test_padding_on_the_left_is_not_cut():
    left = _mask(9, 3, 10, 2).flip(1)
    assert length_parts(left) is None
    batch = {"input_ids": left, "attention_mask": left, "labels": left}
    assert take_rows(batch, torch.tensor([1, 3]))["input_ids"].shape == (2, 10)


def test_a_small_batch_stays_whole():
    assert length_parts(_mask(50, 2, 2, 2)) is None
    assert length_parts(_mask(50, 2, 2, 2).repeat(11, 1)) is not None


def test_columns_of_nothing_but_padding_go():
    mask = _mask(3, 8, 5)
    seq2seq = {
        "input_ids": mask * 7,
        "attention_mask": mask,
        "labels": torch.tensor([[4, -100, -100, -100], [4, 4, 4, 4], [4, 4, -100, -100]]),
        "rows": torch.tensor([5, 6, 7]),
        "inputs": ["a", "b", "c"],
    }
    part = take_rows(seq2seq, torch.tensor([2, 0]))
    assert {name: list(value.shape) for name, value in part.items()} == {
        "input_ids": [2, 5], "attention_mask": [2, 5], "labels": [2, 2], "rows": [2],
    }  # fmt: skip
    assert part["rows"].tolist() == [7, 5]
    causal = seq2seq | {"labels": torch.where(mask > 0, mask * 7, -100)}
    assert take_rows(causal, torch.tensor([2, 0]))["labels"].shape == (2, 5)


def _step(module, batch):
    """A training step's loss, gradients and accumulated task losses."""
    module.zero_grad()
    module._losses._pending.zero_()
    module._window.clear()
    loss = module.training_step(batch)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, module._losses._pending.clone()


@pytest.fixture
def seen(monkeypatch):
    """The rows of every call of the model in training."""
    calls, losses = [], lengths.ExampleLosses
    from polylab.training import module

    def spy(model, batch, **options):
        calls.append(batch["rows"].tolist())
        return inner(model, batch, **options)

    inner = module.example_losses
    monkeypatch.setattr(module, "example_losses", spy)
    assert losses is module.ExampleLosses
    return calls


@pytest.fixture
def in_trainer(poly_module, make_trainer):
    """A module at the first step of a training."""

    def make(kind="t5", **poly):
        module = poly_module(kind, dropout=0.0, poly=poly)
        module.trainer = make_trainer(max_steps=3)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(1))
        return module.train()

    return make


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
@pytest.mark.parametrize("poly", [{}, {"noise_per": "task"}, {"poly_type": "mope"}])
def test_a_step_in_parts_is_the_same_step(in_trainer, make_batch, seen, monkeypatch, kind, poly):
    module = in_trainer(kind, **poly)
    batch = make_batch(12, is_encoder_decoder=kind == "t5")
    whole = _step(module, batch)
    monkeypatch.setattr(lengths, "_LEAST_TOKENS", 1)
    parts = _step(module, batch)
    assert len(seen) == 3
    assert sorted(seen[1] + seen[2]) == seen[0]
    # sums in another order
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("poly", [{"noise_source": "global"}, {"priors": {"load_balance": 0.1}}])
def test_a_batch_whose_examples_hang_together_stays_whole(
    in_trainer, make_batch, seen, monkeypatch, poly
):
    monkeypatch.setattr(lengths, "_LEAST_TOKENS", 1)
    _step(in_trainer(**poly), make_batch(12))
    assert len(seen) == 1


def test_wider_padding_changes_nothing(in_trainer, make_batch):
    module, batch = in_trainer(), make_batch(5)
    wider = batch | {k: pad(batch[k], (0, 3)) for k in ("input_ids", "attention_mask")}
    torch.testing.assert_close(_step(module, wider), _step(module, batch), rtol=1e-4, atol=1e-6)
