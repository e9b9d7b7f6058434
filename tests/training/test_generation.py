"""An evaluation batch is encoded once, and its answers are those of a call of its own."""

import pytest
import torch

from polylab.training.generation import generate_texts

MOPE = {"poly_type": "mope", "noise": "none"}
ADAPTERS = {
    "poly": {},
    "by the layer's input": MOPE,
    "by token": {**MOPE, "router_level": "token"},
    "by the embeddings": {**MOPE, "router_input": "embeddings"},
}


class Numbers:
    """A tokenizer that loses nothing: most ids of a random model are no text."""

    def batch_decode(self, tokens, **_):
        return [str(row.tolist()) for row in tokens]


def _scattered(module):
    """Weights at which skills, tasks and inputs matter to the answers."""
    module.tokenizer = Numbers()
    draw = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if "poly_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw)
    return module.eval()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_one_encoding_serves_loss_and_answers(poly_module, make_batch, adapter, num_beams):
    module = _scattered(poly_module(poly=ADAPTERS[adapter], num_beams=num_beams))
    batch, calls = make_batch(9), []
    expected = module.generate_texts(batch)
    encoder = module.model.get_base_model().get_encoder()
    encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        module.validation_step(batch, 0)
    predictions = module._evaluation("val").finish()[1]
    by_task = sorted(zip(batch["task_ids"].tolist(), expected, strict=True), key=lambda x: x[0])
    assert [p["prediction"] for p in predictions] == [text for _, text in by_task]
    assert len({*expected}) > 1
    assert len(calls) == (2 if adapter == "by the embeddings" else 1)


def test_what_was_encoded_is_what_answers_are_made_from(poly_module, make_batch):
    module = _scattered(poly_module())
    batch = make_batch(5)
    with torch.no_grad():
        encoded = module.example_losses(batch).encoded
        answers = [
            generate_texts(module.model, module.tokenizer, batch, encoded=e, max_new_tokens=4)
            for e in (None, encoded, encoded.flip(0))
        ]
    assert answers[0] == answers[1] != answers[2]


def test_a_causal_model_has_no_encoding_to_reuse(poly_module, make_batch):
    module = poly_module("gpt2").eval()
    assert module.example_losses(make_batch(2, is_encoder_decoder=False)).encoded is None
