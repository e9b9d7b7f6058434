"""Token losses per example and their sums per task."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from polylab.training.losses import before_first_label, check_finite, shift_right

KINDS = ["t5", "gpt2"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_backbones_own(poly_module, make_batch, kind):
    module = poly_module(kind).eval()
    batch = make_batch(5, is_encoder_decoder=kind == "t5")
    losses, tokens = module.example_losses(batch)[:2]
    names = ("input_ids", "attention_mask", "labels", "task_ids")
    theirs = module.model(**{name: batch[name] for name in names}).loss
    torch.testing.assert_close(losses.sum() / tokens.sum(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_belongs_to_its_example(poly_module, make_batch, kind):
    module = poly_module(kind).eval()
    kw = {"is_encoder_decoder": kind == "t5"}
    losses, tokens = module.example_losses(make_batch(5, **kw))[:2]
    for i in range(5):
        alone, its_tokens = module.example_losses(make_batch(5, only=i, **kw))[:2]
        torch.testing.assert_close(losses[i : i + 1], alone, rtol=1e-5, atol=1e-5)  # padded width
        assert its_tokens.item() == tokens[i].item()


@pytest.mark.parametrize("kind", KINDS)
def test_label_smoothing_is_torchs(poly_module, make_batch, kind):
    module = poly_module(kind, dropout=0.0, poly={"noise": "none"}, label_smoothing=0.3)
    batch = make_batch(5, is_encoder_decoder=kind == "t5")
    names = ("input_ids", "attention_mask", "labels", "task_ids")
    with torch.no_grad():
        logits = module.model(**{name: batch[name] for name in names}).logits
    labels = batch["labels"]
    if kind == "gpt2":
        logits, labels = logits[:, :-1], labels[:, 1:]
    plain, smooth = (
        cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=share)
        for share in (0.0, 0.3)
    )
    assert abs(smooth - plain) > 1e-3
    for mode, expected in ((True, smooth), (False, plain)):
        found = module.train(mode).example_losses(batch)
        torch.testing.assert_close(found.losses.sum() / found.tokens.sum(), expected)
    assert found.losses.shape == (5,)


def test_reported_losses_are_not_smoothed(poly_module, make_data, make_trainer):
    found = []
    for share in (0.0, 0.3):
        module = poly_module(optim={"lr": 0.0, "router_lr": 0.0}, label_smoothing=share)
        trainer = make_trainer(max_steps=2, val_check_interval=2, log_every_n_steps=1)
        trainer.fit(module, make_data())
        trained = float(trainer.callback_metrics["train/loss"])
        trainer.test(module, make_data(), verbose=False)
        losses = [module.results[split]["loss"] for split in ("val", "test")]
        found.append((losses, trained))
    assert found[0][0] == found[1][0]
    assert abs(found[0][1] - found[1][1]) > 1e-3


def test_the_decoder_sees_the_label_before():
    labels = torch.tensor([[5, 6, 7, -100], [8, -100, -100, -100]])
    shifted = shift_right(labels, start=3, pad=0)
    assert shifted.tolist() == [[3, 5, 6, 7], [3, 8, 0, 0]]
    assert labels[0, 3] == -100


def test_the_prompt_ends_before_the_first_label():
    labels = torch.tensor([[-100, -100, 5, -100, 6], [-100, 7, 8, -100, -100]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
    assert before_first_label(labels, mask).tolist() == [
        [True, True, False, False, False],
        [False, False, False, False, False],
    ]


def test_task_losses_are_token_means(poly_module, make_batch):
    module = poly_module().eval()
    batch = make_batch(8)
    losses, tokens = module.example_losses(batch)[:2]
    module._losses.on(module.device)
    module._losses.add(batch["task_ids"], losses, tokens)
    interval = module._losses.drain(lambda tensor: tensor)
    assert interval.loss == pytest.approx((losses.sum() / tokens.sum()).item())
    for i, name in enumerate(module.task_names):
        mine = batch["task_ids"] == i
        expected = (losses[mine].sum() / tokens[mine].sum()).item()
        assert interval.task_losses[name] == pytest.approx(expected)
        assert interval.task_examples[name] == mine.sum().item()
    empty = module._losses.drain(lambda tensor: tensor)
    assert (empty.loss, empty.task_losses) == (None, {})
    assert empty.task_examples == interval.task_examples


def test_an_example_without_labels_adds_nothing(poly_module, make_batch):
    module = poly_module().eval()
    batch = make_batch(4)
    batch["labels"][:] = -100
    losses, tokens = module.example_losses(batch)[:2]
    assert losses.tolist() == [0.0] * 4
    assert tokens.tolist() == [0] * 4


def test_a_loss_that_is_no_number_ends_the_training():
    check_finite(None, step=3)
    check_finite(2.5, step=3)
    for loss in (float("nan"), float("inf")):
        with pytest.raises(
            FloatingPointError, match=rf"train/loss is {loss} at step 30.*optim\.lr"
        ):
            check_finite(loss, step=30)
