"""Kinds of models and layers: default targets, mixtures of experts, and what is refused by name."""

import json

import peft
import pytest
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from polylab import PolyConfig, PolyLayer, PolyModel, get_peft_model
from polylab.poly.injection import _DEFAULTS, default_targets, find_targets
from polylab.poly.prompts import pool_prompt
from polylab.poly.saved_modules import saved_modules
from tests.poly.tiny import base, gradients, inputs_of, poly, task_ids


def of_type(model_type):
    model = nn.Linear(2, 2)
    model.config = type("Config", (), {"model_type": model_type})()
    return model


def test_default_targets_are_pefts_for_lora():
    assert {kind: default_targets(of_type(kind)) for kind in PEFTS} == PEFTS  # no exceptions
    kinds = [kind for kinds in _DEFAULTS for kind in kinds]
    assert len(kinds) == len({*kinds})
    assert {"smollm3", "umt5", "phi3"} <= {*kinds} - {*PEFTS}  # relatives of those that it knows


def test_a_default_may_be_a_pattern():
    model = of_type("gemma4")
    model.language_model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict()])})
    model.language_model.layers[0].q_proj = nn.Linear(4, 6)
    model.vision = nn.ModuleDict({"q_proj": nn.Linear(4, 6)})
    assert [*find_targets(model, PolyConfig())] == ["language_model.layers.0.q_proj"]


def mixtral():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        num_experts_per_tok=2,
        initializer_range=0.3,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return MixtralForCausalLM(config).eval()


def test_all_linear_of_a_mixture_of_experts_is_its_attention_as_in_peft():
    config = {"r": 2, "n_tasks": 6, "target_modules": "all-linear"}
    model = get_peft_model(mixtral(), PolyConfig(**config)).train()
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    wanted = [f"model.layers.{i}.self_attn.{part}" for i in range(2) for part in parts]
    assert [*model.poly_layers()] == wanted  # the gate is no linear layer, and stays as it is
    theirs = peft.get_peft_model(mixtral(), peft.PolyConfig(**config)).base_model.model
    assert [n for n, m in theirs.named_modules() if hasattr(m, "poly_lora_A")] == wanted
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=0.03)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(**inputs_of("llama"), task_ids=task_ids()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(grad.abs().max() > 0 for grad in gradients(model).values())


def test_experts_are_refused_by_name_and_can_be_copied(tmp_path):
    model = mixtral()
    message = (
        r"target module 'model.layers.0.mlp.experts': MixtralExperts holds the fused weights of "
        r"several experts \(\['gate_up_proj', 'down_proj'\]\).*Adapt the attention, or name it in "
        "modules_to_save"
    )
    with pytest.raises(TypeError, match=message):
        find_targets(model, PolyConfig(target_modules=["q_proj", "experts"]))
    with pytest.raises(
        ValueError, match=r"\['down_proj'\] of 'model.layers.0.mlp.experts' is a parameter, not a"
    ):
        find_targets(model, PolyConfig(target_modules=["down_proj"]))
    with pytest.raises(TypeError, match=r"'model.layers.0.mlp.gate': a layer of type MixtralTopK"):
        find_targets(model, PolyConfig(target_modules=["gate"]))

    config = PolyConfig(n_tasks=6, target_modules=["q_proj"], modules_to_save=["gate", "experts"])
    adapted = get_peft_model(model, config)
    inputs = inputs_of("llama")
    wanted = adapted(**inputs, task_ids=task_ids()).logits
    with torch.no_grad():
        for module in saved_modules(model).values():
            for weight in module.modules_to_save.parameters():
                weight.mul_(1.5)
    changed = adapted(**inputs, task_ids=task_ids()).logits
    assert (changed - wanted).abs().max() > 0.01
    adapted.save_pretrained(tmp_path)
    loaded = PolyModel.from_pretrained(mixtral(), tmp_path)
    assert torch.equal(loaded(**inputs, task_ids=task_ids()).logits, changed)


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("llama", ["embed_tokens"], r"'model.embed_tokens': .*type Embedding .* modules_to_save"),
        ("llama", ["input_layernorm"], r"'model.layers.0.input_layernorm': .*LlamaRMSNorm cannot"),
        ("llama", ["q_proj", "mlp"], r"'model.layers.0.mlp': a layer of type LlamaMLP cannot be"),
        ("t5", r".*\.relative_attention_bias", "type Embedding cannot be adapted. Valid types: nn"),
    ],
)
def test_modules_that_are_no_linear_layers(kind, spec, message):
    model = base(kind)
    with pytest.raises(TypeError, match=message):
        get_peft_model(model, PolyConfig(target_modules=spec))
    assert not [m for m in model.modules() if isinstance(m, PolyLayer)]


def test_attention_of_torch_is_refused_in_part_and_copied_as_a_whole():
    def net():
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(6, 2, dim_feedforward=10, dropout=0.0, batch_first=True)

    message = (
        r"'self_attn.out_proj': .*its forward is never called. Name the whole attention in mod"
    )
    with pytest.raises(TypeError, match=message):
        get_peft_model(net(), PolyConfig(target_modules=["linear1", "out_proj"]))
    config = PolyConfig(n_tasks=3, target_modules=["linear1"], modules_to_save=["self_attn"])
    model = get_peft_model(net(), config).train()
    x, ids = torch.randn(3, 5, 6), torch.tensor([0, 2, 1])
    model(x, task_ids=ids).square().sum().backward()
    trained = {n: p for n, p in model.named_parameters() if "modules_to_save" in n}
    assert len(trained) == 4
    # adding one number to all keys changes no softmax, so only the others' bias must have learnt
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())


@pytest.mark.parametrize("kind", ["IA3", "LORA"])
def test_adapters_of_other_kinds_are_refused_by_name(kind, tmp_path):
    make = {"IA3": peft.IA3Config, "LORA": peft.LoraConfig}[kind]
    peft.get_peft_model(
        base("llama"),
        make(target_modules=["q_proj"], **({"feedforward_modules": []} if kind == "IA3" else {})),
    ).save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == kind
    with pytest.raises(ValueError, match=rf"peft_type='{kind}'. Valid: POLY"):
        PolyModel.from_pretrained(base("llama"), tmp_path)
    with pytest.raises(ValueError, match=r"poly_type='ia3' is not valid: give one of \['poly'"):
        PolyConfig(poly_type="ia3")


# Inputs of every shape


def layer_of(poly_type="poly"):
    layer = PolyLayer(nn.Linear(6, 8))
    config = PolyConfig(r=3, n_tasks=5, n_skills=2, n_splits=2, poly_type=poly_type)
    layer.update_layer("default", config)
    nn.init.normal_(layer.poly_lora_B["default"])
    return layer.eval()


@pytest.mark.parametrize("poly_type", ["poly", "private", "shared"])
def test_an_input_without_a_batch_axis_is_one_row(poly_type, tolerance):
    layer, x, ids = layer_of(poly_type), torch.randn(6), torch.tensor([3])
    y = layer(x, task_ids=ids)
    assert y.shape == (8,)
    torch.testing.assert_close(y, layer(x[None], task_ids=ids)[0], **tolerance)
    assert (y - layer.base_layer(x)).abs().max() > 0.01
    if poly_type != "shared":
        with pytest.raises(ValueError, match=r"1 rows of a layer's input cannot be split .* 2:"):
            layer(x, task_ids=torch.tensor([3, 1]))


@pytest.mark.parametrize("shape", [(0, 6), (0, 4, 6), (0, 2, 4, 6)])
@pytest.mark.parametrize("poly_type", ["poly", "private", "shared"])
def test_an_empty_batch_gives_an_empty_output(poly_type, shape):
    x = torch.randn(shape, requires_grad=True)
    y = layer_of(poly_type)(x, task_ids=torch.empty(0, dtype=torch.int64))
    assert y.shape == (*shape[:-1], 8)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


def test_rows_without_ids_are_refused():
    with pytest.raises(ValueError, match=r"3 rows of a layer's input .* task_ids of length 0"):
        layer_of()(torch.randn(3, 6), task_ids=torch.empty(0, dtype=torch.int64))


def test_an_empty_batch_of_a_model():
    values = {"r": 2, "n_tasks": 6, "target_modules": ["0", "2"]}
    net = get_peft_model(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)),
        PolyConfig(**values, poly_type="shared"),
    )
    assert net(torch.empty(0, 4)).shape == (0, 2)
    ids = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"task_ids is empty: shape \[0\]"):
        poly("llama")(input_ids=torch.empty((0, 7), dtype=torch.int64), task_ids=ids)
    prompt = torch.empty((0, 7), dtype=torch.bool)
    assert pool_prompt(torch.empty(0, 7, 16), prompt, where="a").shape == (0, 16)
