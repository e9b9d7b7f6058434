"""Packed rows: an id for every token."""

import pytest
import torch

from polylab.poly.routing import Routing, entered
from tests.poly.tiny import BATCH, SEQ, gradients, inputs_of, output_of, poly, task_ids

KINDS = ["llama", "gpt2", "encoder"]


def segments():
    ids = task_ids()[:, None].repeat(1, SEQ)
    ids[0, 3:], ids[2, 5:] = 4, 1
    return ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poly_type", ["poly", "private"])
def test_one_id_per_row_spread_over_its_tokens_changes_nothing(kind, poly_type, logits_tolerance):
    model = poly(kind, poly_type=poly_type)
    runs = []
    for ids in (task_ids(), task_ids()[:, None].repeat(1, SEQ)):
        model.zero_grad()
        output = output_of(model, kind, task_ids=ids)
        output.square().sum().backward()
        runs.append((output, gradients(model)))
    (rows, rows_grads), (tokens, tokens_grads) = runs
    torch.testing.assert_close(tokens, rows, **logits_tolerance)
    for name, grad in rows_grads.items():
        # sums of products in another order
        torch.testing.assert_close(tokens_grads[name], grad, rtol=1e-4, atol=1e-4)


def test_every_token_gets_the_update_of_its_own_task(tolerance):
    model = poly("llama")
    layer = next(iter(model.poly_layers().values()))
    x, ids = torch.randn(BATCH, SEQ, 16), segments()
    with entered(Routing(task_ids=ids)):
        packed = layer(x)
    for row in range(BATCH):
        for token in range(SEQ):
            with entered(Routing(task_ids=ids[row, token][None])):
                alone = layer(x[row, token][None, None])[0, 0]
            torch.testing.assert_close(packed[row, token], alone, **tolerance)


def test_a_later_segment_does_not_change_an_earlier_one(tolerance):
    model = poly("llama")
    packed = output_of(model, "llama", task_ids=segments())
    rows = output_of(model, "llama", task_ids=task_ids())
    torch.testing.assert_close(packed[0, :3], rows[0, :3], **tolerance)
    assert (packed[0, 3:] - rows[0, 3:]).abs().max() > 1e-3


@pytest.mark.parametrize("noise_source", ["global", "keyed"])
def test_tokens_of_one_row_and_task_share_their_noise(noise_source):
    model = poly("llama", noise_source=noise_source).train()
    model.set_noise_key(0, 1)
    layer, seen = next(iter(model.poly_layers().values())), []
    layer.poly_router["default"].register_forward_hook(lambda *args: seen.append(args[2]))
    output_of(model, "llama", task_ids=segments())
    weights = seen[0]
    assert weights.shape == (BATCH, SEQ, 2, 5)
    assert torch.equal(weights[0, 0], weights[0, 2])
    assert torch.equal(weights[0, 3], weights[0, 6])
    assert not torch.equal(weights[0, 2], weights[0, 3])
    assert not torch.equal(weights[1, 0], weights[3, 0])  # one task, two rows


def test_mixing_weights_are_per_token():
    weights = poly("llama").mixing_weights(**inputs_of("llama"), task_ids=segments())
    assert all(w.shape == (BATCH, SEQ, 2, 5) for w in weights.values())


@pytest.mark.parametrize("spec", ["uniform", "rounded", "top1", "shuffled", "task:3", "drop:1"])
def test_interventions(spec):
    model = poly("llama")
    learned = output_of(model, "llama", task_ids=segments())
    with model.routing(spec):
        assert (output_of(model, "llama", task_ids=segments()) - learned).abs().max() > 1e-4


def test_where_tokens_have_no_fixed_place_ids_per_token_are_refused():
    message = r"task_ids has shape \[4, 7\].*decoder-only"
    with pytest.raises(ValueError, match=message):
        output_of(poly("t5"), "t5", task_ids=segments())
    for kind in ("t5", "llama"):
        with pytest.raises(ValueError, match=message):
            poly(kind).generate(inputs_of(kind)["input_ids"], task_ids=segments())
    with pytest.raises(ValueError, match=r"task_ids has shape \[4, 6\].*\[4, 7\] for packed"):
        output_of(poly("llama"), "llama", task_ids=segments()[:, :6])


def test_the_encoder_of_a_t5_takes_them():
    model, ids = poly("t5"), inputs_of("t5")["input_ids"]
    packed = model.get_encoder()(ids, task_ids=segments()).last_hidden_state
    rows = model.get_encoder()(ids, task_ids=task_ids()).last_hidden_state
    assert (packed[0] - rows[0]).abs().max() > 1e-3
    torch.testing.assert_close(packed[1], rows[1])


def test_a_layer_with_other_tokens_is_refused():
    layer = next(iter(poly("llama").poly_layers().values()))
    with (
        entered(Routing(task_ids=segments())),
        pytest.raises(ValueError, match=r"routing per token, of shape \[4, 7\].*sees 12 tokens"),
    ):
        layer(torch.randn(4, 3, 16))
