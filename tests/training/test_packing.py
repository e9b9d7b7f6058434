"""A training step of packed rows is the step of the padded batch."""

import numpy as np
import pytest
import torch

from polylab.data.collate import Collator
from polylab.data.dataset import EncodedExample
from polylab.data.encoding import masked
from polylab.data.packing import PackingCollator
from tests.training.conftest import TASKS, VOCABULARY

# a row of 128 tokens is wider than the positions of the GPT-2, 64
SIZES = [(7, 3), (2, 5), (50, 2), (30, 1), (11, 8), (25, 4)]
ADAPTERS = {
    "poly": {},
    "mhr": {"n_splits": 2},
    "noise of tasks": {"noise_per": "task"},
    "c-poly": {"poly_type": "c-poly"},
    "private": {"poly_type": "private"},
    "lora": {"poly_type": "shared"},
    "mope": {"poly_type": "mope"},
    "mope of tokens": {"poly_type": "mope", "router_level": "token"},
    "balanced mope": {"poly_type": "mope", "priors": {"load_balance": 0.1}},
    "balanced poly": {"priors": {"load_balance": 0.1}},
}


def batches(kind, *, hidden=None):
    """The same examples, padded and packed; a token of the longer targets is not learnt."""
    draw = np.random.default_rng(0)
    items = [
        EncodedExample(
            row % len(TASKS),
            40 + row,
            *(draw.integers(3, VOCABULARY, size, dtype=np.int32) for size in sizes),
        )
        for row, sizes in enumerate(SIZES)
    ]
    for item in items:
        if hidden is not None and len(item.target_ids) > 2:
            item.target_ids[hidden] = masked(item.target_ids[hidden])
    settings = {"pad_id": 0, "n_tasks": len(TASKS), "is_encoder_decoder": kind == "t5"}
    return Collator(**settings)(items), PackingCollator(**settings)(items)


@pytest.fixture
def in_trainer(poly_module, make_trainer):
    """A module in float64 at the first step of a training."""

    def make(kind, **poly):
        module = poly_module(kind, dropout=0.0, poly=poly).double()
        module.trainer = make_trainer(max_steps=3)
        draw = torch.Generator().manual_seed(1)
        for name, parameter in module.named_parameters():
            if "lora_B" in name or "proj" in name:
                parameter.data.normal_(generator=draw)
        return module.train()

    return make


def step(module, batch):
    """Loss, gradients, and the sums of losses, tokens and examples of each task."""
    module.zero_grad()
    module._losses._pending.zero_()
    module._window.clear()
    loss = module.training_step(batch)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, module._losses._pending.clone()


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_loss_gradients_and_counts(in_trainer, kind, adapter):
    module = in_trainer(kind, **ADAPTERS[adapter])
    padded, packed = batches(kind)
    assert len(packed["input_ids"]) < len(padded["input_ids"])
    wanted, found = step(module, padded), step(module, packed)
    assert wanted[2][2].tolist() == [2, 2, 2]
    assert max(float(g.abs().max()) for g in wanted[1].values()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_later_turns_of_a_conversation_are_no_prompt(in_trainer):
    module = in_trainer("gpt2", poly_type="mope")
    padded, packed = batches("gpt2", hidden=1)
    torch.testing.assert_close(step(module, packed), step(module, padded), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_smoothed_labels(in_trainer, kind):
    module = in_trainer(kind)
    padded, packed = batches(kind)
    sharp = step(module, packed)[0]
    module._label_smoothing = 0.1
    wanted, found = step(module, padded), step(module, packed)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    assert abs(float(found[0] - sharp)) > 1e-3


def test_the_draws_are_those_of_the_examples(in_trainer):
    """With the noise of the rows in another order, the step is another one."""
    module = in_trainer("t5")
    _, packed = batches("t5")
    wanted = step(module, packed)[0]
    other = step(module, packed | {"rows": packed["rows"].flip(0)})[0]
    assert abs(float(other - wanted)) > 1e-6


def test_a_prior_on_tokens_beside_an_encoder_counts_padding(in_trainer):
    priors = {"poly_type": "mope", "router_level": "token", "priors": {"load_balance": 0.1}}
    padded, packed = batches("gpt2")
    module = in_trainer("gpt2", **priors)
    torch.testing.assert_close(step(module, packed), step(module, padded), rtol=1e-9, atol=1e-11)
    module, (_, packed) = in_trainer("t5", **priors), batches("t5")
    with pytest.raises(ValueError, match=r"priors on the tokens of a decoder.*packed"):
        step(module, packed)
