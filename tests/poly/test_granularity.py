"""Layers that share a router: which ones, evaluated how often, saved how."""

from unittest.mock import patch

import pytest
import torch

from polylab import PolyModel
from polylab.poly.granularity import router_groups
from polylab.poly.routers import InputRouter, TaskRouter
from tests.poly.tiny import (
    base,
    config_of,
    gradients,
    inputs_of,
    output_of,
    poly,
    task_ids,
    trained,
)

GROUPS = {
    ("t5", "block"): 4,
    ("t5", "stack"): 2,
    ("t5", "model"): 1,
    ("t5", r"(encoder|decoder).*\.(q|v|wi_0|wo)$"): 8,
    ("t5", r"encoder|decoder"): 2,
    ("llama", "block"): 2,
    ("llama", "stack"): 1,
    ("gpt2", "block"): 2,
    ("gpt2", r"(attn|mlp)"): 2,
}


def routers(model):
    layers = model.poly_layers().values()
    return {id(layer.router("default")): layer.router("default") for layer in layers}


@pytest.mark.parametrize(("kind", "granularity"), GROUPS)
def test_the_groups_and_one_evaluation_of_each(kind, granularity):
    model = poly(kind, granularity=granularity, noise_source="keyed").train()
    model.set_noise_key(1, 2)
    assert len(routers(model)) == GROUPS[kind, granularity]
    weigh, calls = TaskRouter._weigh, []
    with patch.object(TaskRouter, "_weigh", autospec=True) as spy:
        spy.side_effect = lambda router, of, *a: (
            calls.extend(id(each) for each in of) or weigh(router, of, *a)
        )
        output_of(model, kind, task_ids=task_ids())
    assert sorted(calls) == sorted(routers(model))


def test_blocks_are_entries_of_the_outermost_list():
    names = ["encoder.block.1.layer.0.SelfAttention.q", "decoder.block.0.layer.2.DenseReluDense.wo"]
    groups = router_groups(base("t5"), [*names, "lm_head"], "block")
    assert list(groups.values()) == ["encoder.block.1", "decoder.block.0", "lm_head"]


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        ("blocks", r"granularity='blocks' is none of .*'block'.*does not match layer"),
        ("enc(oder", r"granularity='enc\(oder' is neither"),
        (r"encoder", r"does not match layer 'decoder\.block"),
    ],
)
def test_a_wrong_granularity_is_refused_before_any_change(granularity, message):
    model = base("t5")
    with pytest.raises(ValueError, match=message):
        PolyModel(model, config_of("t5", granularity=granularity))
    assert not any("poly" in name for name, _ in model.named_modules())


def test_a_shared_router_equals_equal_routers():
    shared = poly("llama", granularity="model", noise="none").double()
    single = poly("llama", noise="none").double()
    logits = next(iter(routers(shared).values())).module_logits
    with torch.no_grad():
        for name, layer in single.poly_layers().items():
            layer.poly_router["default"].module_logits.copy_(logits)
            layer.poly_lora_A["default"].copy_(shared.poly_layers()[name].poly_lora_A["default"])
            layer.poly_lora_B["default"].copy_(shared.poly_layers()[name].poly_lora_B["default"])
    outputs = [output_of(m.train(), "llama", task_ids=task_ids()) for m in (shared, single)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().mean().backward()
    wanted = sum(router.module_logits.grad for router in routers(single).values())
    torch.testing.assert_close(logits.grad, wanted)


@pytest.mark.parametrize("granularity", ["block", "model"])
def test_it_is_saved_once_and_loaded(granularity, tmp_path):
    from safetensors.torch import load_file

    model = poly("t5", granularity=granularity)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum("module_logits" in key for key in tensors) == len(routers(model))
    again = PolyModel.from_pretrained(base("t5"), tmp_path, is_trainable=True)
    assert len(routers(again)) == len(routers(model))
    wanted = output_of(model, "t5", task_ids=task_ids())
    assert torch.equal(output_of(again.eval(), "t5", task_ids=task_ids()), wanted)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("granularity", ["block", "stack", "model"])
@pytest.mark.parametrize("poly_type", ["poly", "mope"])
def test_checkpointing_gives_equal_gradients(poly_type, granularity, use_reentrant):
    more = {"router_input": "embeddings"} if poly_type == "mope" else {}
    changes = {"granularity": granularity, "noise": "none", "poly_type": poly_type, **more}

    def run(checkpointing):
        model = poly("t5", **changes).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model(**inputs_of("t5"), task_ids=task_ids()).loss.backward()
        return gradients(model)

    wanted, found = run(False), run(True)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, msg=name)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "encoder"])
def test_routers_of_the_embeddings(kind, tolerance):
    changes = {"poly_type": "mope", "router_input": "embeddings", "granularity": "model"}
    model = trained(poly(kind, **changes), seed=4)
    inputs = inputs_of(kind)
    forward, calls = InputRouter.forward, []
    with patch.object(InputRouter, "forward", autospec=True) as spy:
        spy.side_effect = lambda router, *a, **k: calls.append(router) or forward(router, *a, **k)
        output_of(model, kind)
    assert len(calls) == 1
    weights = [*model.mixing_weights(**inputs).values()]
    assert all(torch.equal(w, weights[0]) for w in weights)
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    prompt = 3 if kind in ("llama", "gpt2") else embedded.shape[1]
    wanted = calls[0](input_ids=embedded[:, :prompt].mean(1))
    torch.testing.assert_close(weights[0], wanted, **tolerance)
    given = {"inputs_embeds": embedded, **{k: v for k, v in inputs.items() if k == "labels"}}
    again = [*model.mixing_weights(**given).values()]
    torch.testing.assert_close(again[0], wanted, **tolerance)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_routers_of_the_embeddings_generate_as_they_read(kind):
    model = poly(kind, poly_type="mope", router_input="embeddings", granularity="stack")
    ids = inputs_of(kind)["input_ids"]
    cached = model.generate(ids, max_new_tokens=4, num_beams=2, do_sample=False)
    plain = model.generate(ids, max_new_tokens=4, num_beams=2, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
