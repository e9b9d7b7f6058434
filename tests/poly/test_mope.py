"""Routing by the prompt: it sees the prompt, all of it, and nothing else."""

import pytest
import torch

from polylab.poly.prompts import pool_prompt, prompt_before_labels
from tests.poly.tiny import BATCH, SEQ, base, config_of, gradients, inputs_of, poly

CAUSAL = ["llama", "gpt2"]
KINDS = [*CAUSAL, "t5"]
PROMPT = 3  # the tokens of `inputs_of` without a label


def mope(kind, **changes):
    return poly(kind, poly_type="mope", **changes)


def weights_of(model, **inputs):
    return model.mixing_weights(**inputs)


def assert_same(one, other, **tolerance):
    assert list(one) == list(other)
    for name, weights in one.items():
        if tolerance:
            torch.testing.assert_close(weights, other[name], **tolerance)
        else:
            assert torch.equal(weights, other[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_a_distribution_and_depend_on_the_prompt(kind, tolerance):
    model, inputs = mope(kind), inputs_of(kind)
    weights = weights_of(model, **inputs)
    assert list(weights) == list(model.poly_layers())
    for w in weights.values():
        assert w.shape == (BATCH, 2, 5)
        assert not w.requires_grad
        torch.testing.assert_close(w.sum(-1), torch.ones(BATCH, 2), **tolerance)
        assert (w[0] - w[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_uniform(kind):
    from polylab import get_peft_model

    model = get_peft_model(base(kind), config_of(kind, poly_type="mope"))
    for w in weights_of(model, **inputs_of(kind)).values():
        assert torch.equal(w, torch.full_like(w, 1 / 5))


@pytest.mark.parametrize("kind", KINDS)
def test_other_targets_leave_the_weights_bit_equal(kind):
    model, inputs = mope(kind), inputs_of(kind)
    wanted = weights_of(model, **inputs)
    changed = {name: value.clone() for name, value in inputs.items()}
    if kind == "t5":
        changed["labels"] = inputs_of(kind, seed=9)["labels"]
    else:
        changed["input_ids"][:, PROMPT:] = inputs_of(kind, seed=9)["input_ids"][:, PROMPT:]
        changed["labels"][:, PROMPT:] = changed["input_ids"][:, PROMPT:]
    assert not torch.equal(changed["labels"], inputs["labels"])
    assert_same(weights_of(model, **changed), wanted)
    changed["input_ids"][:, 0] += 1
    name = next(iter(wanted))
    assert not torch.equal(weights_of(model, **changed)[name], wanted[name])


@pytest.mark.parametrize("kind", CAUSAL)
def test_logits_after_the_prompt_never_depend_on_later_tokens(kind):
    model, inputs = mope(kind), inputs_of(kind)
    wanted = model(**inputs).logits
    inputs["input_ids"][:, -1] = 3 + (inputs["input_ids"][:, -1] + 1) % 30
    assert torch.equal(model(**inputs).logits[:, :-1], wanted[:, :-1])


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_later_user_turn_is_no_prompt(kind):
    model, inputs = mope(kind), inputs_of(kind)
    wanted = weights_of(model, **inputs)
    inputs["labels"][:, 5] = -100  # user turn after the first answer
    inputs["input_ids"][:, 5] += 1
    assert_same(weights_of(model, **inputs), wanted)


@pytest.mark.parametrize("kind", CAUSAL)
def test_prompt_mask_says_what_the_prompt_is(kind):
    model, inputs = mope(kind), inputs_of(kind)
    wanted = weights_of(model, **inputs)
    mask = torch.arange(SEQ).expand(BATCH, -1) < PROMPT
    ids = inputs["input_ids"]
    assert_same(weights_of(model, input_ids=ids, prompt_mask=mask), wanted)
    assert_same(weights_of(model, **inputs, prompt_mask=mask.int()), wanted)
    whole = weights_of(model, input_ids=ids)
    assert (whole[next(iter(whole))] - wanted[next(iter(whole))]).abs().max() > 1e-3
    logits = model(**inputs).logits
    assert torch.equal(model(input_ids=ids, prompt_mask=mask).logits, logits)


@pytest.mark.parametrize("shape", [(BATCH, SEQ + 1), (BATCH - 1, SEQ), (BATCH,)])
def test_a_wrong_prompt_mask_is_refused(shape):
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"prompt_mask has shape .* the input is \[4, 7\]"):
            mope(kind)(**inputs_of(kind), prompt_mask=torch.ones(shape).bool())


@pytest.mark.parametrize("kind", KINDS)
def test_left_and_right_padding_route_alike(kind):
    model, ids = mope(kind), inputs_of(kind)["input_ids"]
    pad = torch.zeros(BATCH, 4, dtype=torch.int64)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(pad)
    # an absolute position is part of the input; the attention of T5 and Llama sees distances
    places = torch.arange(SEQ).expand(BATCH, -1)
    extra = {} if kind != "gpt2" else {"position_ids": places}
    wanted = weights_of(model, input_ids=ids, **extra)
    runs = {}
    for side in ("left", "right"):
        order = (lambda a, b: [b, a]) if side == "left" else (lambda a, b: [a, b])
        extra = {"position_ids": torch.cat(order(places, zeros), 1)} if kind == "gpt2" else {}
        runs[side] = weights_of(
            model,
            input_ids=torch.cat(order(ids, pad), 1),
            attention_mask=torch.cat(order(ones, zeros), 1),
            **extra,
        )
    for found in runs.values():
        assert_same(found, wanted, rtol=1e-4, atol=1e-5)  # sums over more terms, two layers deep


@pytest.mark.parametrize("kind", CAUSAL)
def test_decoding_by_hand_keeps_the_prefills_routing(kind):
    model, ids = mope(kind), inputs_of(kind)["input_ids"]
    mask = torch.arange(SEQ).expand(BATCH, -1) < PROMPT
    with torch.no_grad():
        wanted = model(ids, prompt_mask=mask).logits
        output = model(ids[:, :PROMPT])
        steps = [output.logits]
        for step in range(PROMPT, SEQ):
            cache = output.past_key_values
            output = model(ids[:, step : step + 1], past_key_values=cache)
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), wanted, rtol=1e-4, atol=1e-5)


def test_a_cache_of_unknown_routing_is_refused():
    model, ids = mope("llama"), inputs_of("llama")["input_ids"]
    with torch.no_grad():
        with model.disable_adapter():
            cache = model(ids).past_key_values
        with pytest.raises(ValueError, match="past_key_values holds 7 tokens of a prompt"):
            model(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("kind", KINDS)
def test_generate_routes_as_the_forward(kind):
    model, ids = mope(kind), inputs_of(kind)["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, :2] = 0  # left padding
    layer, seen = next(iter(model.poly_layers().values())), []
    wanted = weights_of(model, input_ids=ids, attention_mask=mask)[layer.name]
    layer.poly_router["default"].register_forward_hook(lambda *args: seen.append(args[2]))
    model.generate(ids, attention_mask=mask, max_new_tokens=4, num_beams=2, do_sample=False)
    assert len(seen) == 1  # at the prefill only
    found = seen[0] if len(seen[0]) == BATCH else seen[0].view(BATCH, 2, 2, 5)[:, 1]
    if kind != "gpt2":  # generate gives padded rows other positions than a plain forward
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_generate_takes_a_prompt_mask():
    for kind in KINDS:
        model, ids = mope(kind), inputs_of(kind)["input_ids"]
        mask = torch.arange(SEQ) < torch.tensor([[3], [5], [2], [4]])
        layer, seen = next(iter(model.poly_layers().values())), []
        wanted = weights_of(model, input_ids=ids, prompt_mask=mask)[layer.name]
        layer.poly_router["default"].register_forward_hook(lambda *args: seen.append(args[2]))  # noqa: B023
        how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False}
        model.generate(ids, prompt_mask=mask, num_beams=2, **how)
        found = seen[0] if len(seen[0]) == BATCH else seen[0].view(BATCH, 2, 2, 5)[:, 1]
        torch.testing.assert_close(found, wanted)


def test_decoder_layers_are_routed_by_the_encoders_output(tolerance):
    model, inputs = mope("t5"), inputs_of("t5")
    encoded = model(**inputs).encoder_last_hidden_state
    pooled = encoded.mean(1)
    weights = weights_of(model, **inputs)
    for name, layer in model.poly_layers().items():
        assert (layer.d_router["default"] is None) == name.startswith("encoder.")
        if layer.d_router["default"] is not None:
            wanted = layer.poly_router["default"](input_ids=pooled)
            torch.testing.assert_close(weights[name], wanted, **tolerance)
    without_decoder = weights_of(model, input_ids=inputs["input_ids"])
    assert_same(without_decoder, weights)
    given = {"encoder_outputs": (encoded,), "labels": inputs["labels"]}
    torch.testing.assert_close(model(**given).logits, model(**inputs).logits, **tolerance)
    decoder = {n: w for n, w in weights.items() if n.startswith("decoder.")}
    assert_same(weights_of(model, **given), decoder, **tolerance)


def test_the_router_of_the_decoder_teaches_the_encoder():
    model = mope("t5", target_modules=r"decoder.*\.q|encoder.*\.v")
    model(**inputs_of("t5")).loss.backward()
    wanted = gradients(model)
    encoder = [name for name in wanted if ".encoder." in name]
    assert all(wanted[name].abs().max() > 0 for name in encoder)


def test_temperature():
    sharp, flat = mope("llama", temperature=0.1), mope("llama", temperature=10.0)
    name = next(iter(sharp.poly_layers()))
    ids = inputs_of("llama")["input_ids"]
    assert (
        weights_of(sharp, input_ids=ids)[name].std() > weights_of(flat, input_ids=ids)[name].std()
    )


def test_mixing_weights_leaves_every_module_in_its_mode():
    model = mope("llama").train()
    model.get_base_model().lm_head.eval()
    before = [module.training for module in model.modules()]
    weights_of(model, **inputs_of("llama"))
    assert [module.training for module in model.modules()] == before


def test_a_four_dimensional_mask_needs_a_prompt_mask():
    model, ids = mope("llama"), inputs_of("llama")["input_ids"]
    mask = torch.zeros(BATCH, 1, SEQ, SEQ)
    with pytest.raises(ValueError, match=r"attention_mask has shape \[4, 1, 7, 7\].*prompt_mask"):
        model(ids, attention_mask=mask)
    model(ids, attention_mask=mask, prompt_mask=torch.ones_like(ids))


def test_tasks_have_no_weights_of_their_own():
    model = mope("llama")
    with pytest.raises(ValueError, match="this adapter is routed by the input"):
        model.task_weights()
    assert model.task_gates() == {}


def test_prompt_before_labels():
    attended = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    labels = torch.tensor([[-100, -100, -100, 7, -100], [-100] * 5, [7, -100, 7, -100, -100]])
    wanted = [[0, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert prompt_before_labels(attended, labels).int().tolist() == wanted
    assert torch.equal(prompt_before_labels(attended, None), attended)


def test_pool_prompt(tolerance):
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()
    wanted = torch.stack([(x[0, 0] + x[0, 2]) / 2, torch.zeros(4)])
    torch.testing.assert_close(pool_prompt(x, mask, where="here"), wanted, **tolerance)
    torch.testing.assert_close(
        pool_prompt(x.flatten(0, 1), mask, where="here"), wanted, **tolerance
    )
    with pytest.raises(ValueError, match=r"mask has shape \[2, 3\].*'here' sees.*\[2, 4, 4\]"):
        pool_prompt(torch.randn(2, 4, 4), mask, where="here")
    with pytest.raises(ValueError, match="'here' is routed by the prompt and none is known"):
        pool_prompt(x, None, where="here")


def test_a_router_alone_needs_an_input():
    router = next(iter(mope("llama").poly_layers().values())).poly_router["default"]
    with pytest.raises(ValueError, match="input_ids=None"):
        router()


def test_a_decoder_layer_without_an_encoder_output_says_so():
    from polylab.poly.routing import Routing, entered

    layer = [*mope("t5").poly_layers().values()][-1]
    with (
        entered(Routing(reads="prompt")),
        pytest.raises(ValueError, match=r"'decoder.* is routed by the encoder's output"),
    ):
        layer(torch.randn(BATCH, 5, layer.in_features))


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_training_step_without_labels_must_say_what_the_prompt_is(kind):
    model, ids = mope(kind).train(), inputs_of(kind)["input_ids"]
    with pytest.raises(ValueError, match=r"training step without labels: .*prompt_mask"):
        model(ids)
    mask = torch.arange(SEQ).expand(BATCH, -1) < PROMPT
    assert model(ids, prompt_mask=mask).logits.requires_grad
    assert model(**inputs_of(kind)).loss.requires_grad
    model.generate(ids, max_new_tokens=2, do_sample=False)  # answers follow: all is prompt
    assert not model.eval()(ids).logits.isnan().any()
