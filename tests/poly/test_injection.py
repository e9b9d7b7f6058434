"""Finding layers: suffixes, patterns, all-linear, defaults, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from polylab import PolyConfig, PolyLayer, get_peft_model
from polylab.poly.injection import default_targets, find_targets
from tests.poly.tiny import base, config_of, poly


def names_of(kind, spec, **changes):
    return list(find_targets(base(kind), PolyConfig(target_modules=spec, **changes)))


def test_suffixes_are_whole_parts_of_a_name():
    assert names_of("llama", ["v_proj", "layers.0.mlp.up_proj"]) == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    with pytest.raises(ValueError, match="matches no module"):
        names_of("llama", ["proj"])


def test_a_string_is_a_pattern_for_the_whole_name():
    assert names_of("llama", r".*layers\.1\..*\.(q|v)_proj") == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    with pytest.raises(ValueError, match=r"target_modules='q_proj' matches no module"):
        names_of("llama", "q_proj")


@pytest.mark.parametrize(("kind", "n"), [("llama", 14), ("gpt2", 8), ("t5", 36), ("encoder", 14)])
def test_all_linear_leaves_the_output_layer(kind, n):
    names = names_of(kind, "all-linear")
    assert len(names) == n
    assert "lm_head" not in names
    assert names_of(kind, "all-linear", exclude_modules=r".*\.0\..*") == [
        name for name in names if ".0." not in f".{name}."
    ]


def test_exclude_modules_by_suffix():
    names = names_of("llama", ["q_proj", "v_proj"], exclude_modules=["layers.0.self_attn.v_proj"])
    assert len(names) == 3
    with pytest.raises(ValueError, match=r"exclude_modules=\['q_proj'\] left out"):
        names_of("llama", ["q_proj"], exclude_modules=["q_proj"])


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("t5", ["q", "v"]),
        ("encoder", ["q", "v"]),
        ("llama", ["q_proj", "v_proj"]),
        ("gpt2", ["c_attn"]),
    ],
)
def test_defaults(kind, wanted):
    model = get_peft_model(base(kind), PolyConfig())
    assert {name.rpartition(".")[2] for name in model.poly_layers()} == set(wanted)
    assert model.peft_config["default"].target_modules == wanted


def test_no_default_for_an_unknown_architecture():
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"model_type=None.*Give target_modules: \['0'\]"):
        default_targets(model)
    with pytest.raises(ValueError, match="target_modules=None"):
        get_peft_model(model, PolyConfig())


def test_near_misses():
    with pytest.raises(ValueError, match=r"\['q_porj'\] matches no module of LlamaForCausalLM"):
        names_of("llama", ["q_porj"])
    with pytest.raises(ValueError, match=r"Near misses: \['q_proj'"):
        names_of("llama", ["q_porj"])
    with pytest.raises(ValueError, match=r"layers here: \['c_attn', 'c_fc', 'c_proj'\]"):
        names_of("gpt2", ["q_proj"])


def test_layers_that_cannot_be_adapted():
    with pytest.raises(TypeError, match=r"'transformer.wte'.*type Embedding .*nn.Linear"):
        names_of("gpt2", ["wte"])
    attention = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2)})
    with pytest.raises(TypeError, match=r"'attn.out_proj'.*its forward is never called"):
        find_targets(attention, PolyConfig(target_modules=["out_proj"]))


def test_experts_are_refused_by_name_and_left_out_of_all_linear():
    model = nn.ModuleDict({"gate": nn.Linear(4, 2)})
    model["experts"] = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    with pytest.raises(ValueError, match=r"'experts.1' is an expert of a mixture of experts"):
        find_targets(model, PolyConfig(target_modules=["1"]))
    assert list(find_targets(model, PolyConfig(target_modules="all-linear"))) == ["gate"]


def test_n_splits_that_does_not_divide_names_the_layer_and_changes_nothing():
    model = base("llama")
    before = copy.deepcopy(model.state_dict())
    message = (
        r"n_splits=3 does not divide layer 'model.layers.0.self_attn.q_proj', which has "
        r"in_features=16 and out_features=16. Valid for it: \[1, 2, 4, 8, 16\]"
    )
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, config_of("llama", n_splits=3))
    assert list(model.state_dict()) == list(before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"v_proj', which has in_features=16 and out_features=8"):
        get_peft_model(model, config_of("llama", n_splits=16))  # grouped key and value heads


def test_only_the_adapter_is_trainable():
    model = poly("t5")
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all(".poly_lora_" in name or ".poly_router." in name for name in trainable)
    frozen = get_peft_model(base("t5"), config_of("t5", inference_mode=True))
    assert not any(p.requires_grad for p in frozen.parameters())


def test_layers_know_their_name_and_place():
    layers = poly("t5").poly_layers()
    assert [layer.name for layer in layers.values()] == list(layers)
    assert [layer.index for layer in layers.values()] == [*range(len(layers))]


def test_t5_reads_the_weight_of_wo():
    layer = poly("t5").poly_layers()["encoder.block.0.layer.1.DenseReluDense.wo"]
    assert isinstance(layer, PolyLayer)
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is None
    assert poly("gpt2").poly_layers()["transformer.h.0.attn.c_attn"].bias is not None


def test_a_model_is_wrapped_once():
    model = poly("llama")
    for wrapped in (model, model.get_base_model()):
        with pytest.raises(ValueError, match="is wrapped already"):
            get_peft_model(wrapped, config_of("llama"))


def test_any_module_can_be_a_base(tolerance):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model = get_peft_model(net, PolyConfig(r=2, n_tasks=3, target_modules=["0", "2"]))
    x = torch.randn(5, 4)
    y = model(x, task_ids=torch.tensor([0, 1, 2, 1, 0]))
    torch.testing.assert_close(y, net[2].base_layer(net[0].base_layer(x).relu()), **tolerance)
    with pytest.raises(ValueError, match="task_ids has length 3, but the batch has 5 rows"):
        model(x, task_ids=torch.tensor([0, 1, 2]))
