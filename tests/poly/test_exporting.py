"""A task's update as a plain LoRA and inside the base's weights: PEFT and transformers agree."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from polylab import PolyModel
from polylab.poly.exporting import task_id_of
from tests.poly.tiny import (
    BATCH,
    N_SKILLS,
    N_TASKS,
    RANK,
    base,
    config_of,
    output_of,
    poly,
    small_logits,
    trained,
)

KINDS = ["t5", "llama", "gpt2"]
NAMES = ["add", "copy", "first", "last", "sort", "upper"]
AUTO = {"t5": AutoModelForSeq2SeqLM, "llama": AutoModelForCausalLM, "gpt2": AutoModelForCausalLM}
# not `tolerance`: the update is computed in another order, so the last bits differ
CLOSE = {"rtol": 0, "atol": 1e-6}


def ids_of(task):
    return torch.full((BATCH,), task)


def poly_of(kind, **changes):
    model = poly(kind, task_names=NAMES, **changes)
    small_logits(model.model)
    return model


def theirs_of(kind, folder):
    return peft.PeftModel.from_pretrained(small_logits(base(kind)), str(folder)).eval()


@pytest.mark.parametrize("n_splits", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_every_tasks_lora(kind, n_splits, tmp_path):
    model = poly_of(kind, n_splits=n_splits)
    plain = output_of(small_logits(base(kind)), kind)
    seen = [plain]
    for task in range(N_TASKS):
        wanted = output_of(model, kind, task_ids=ids_of(task))
        assert all((wanted - other).abs().max() > 1e-3 for other in seen), "tasks differ"
        seen.append(wanted)
        model.export_lora(NAMES[task], tmp_path / str(task))
        found = output_of(theirs_of(kind, tmp_path / str(task)), kind)
        torch.testing.assert_close(found, wanted, **CLOSE)
    values = json.loads((tmp_path / "0" / "adapter_config.json").read_text())
    assert (values["peft_type"], values["r"], values["lora_alpha"]) == ("LORA", 3, 1)
    assert values["target_modules"] == [*model.poly_layers()]
    assert values["fan_in_fan_out"] == (kind == "gpt2")
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"alpha": 3.5}),
        ("gpt2", {"poly_type": "private", "alpha": 0.5}),
        ("t5", {"poly_type": "shared"}),
        ("llama", {"combine": "products", "alpha": 2.0}),
        ("gpt2", {"combine": "products"}),
        ("t5", {"poly_type": "c-poly", "n_private": 2}),
        ("llama", {"poly_type": "uniform"}),
        ("llama", {"granularity": "model"}),
        ("llama", {"noise": "straight_through", "dropout": 0.5}),
        ("llama", {"uniform_share": 0.7}),
        ("llama", {"trainable": "router", "init_weights": False}),
    ],
)
def test_other_scales_and_routers(kind, changes, tmp_path):
    model = poly_of(kind, **changes)
    model.export_lora(2, tmp_path)
    wanted = output_of(model, kind, task_ids=ids_of(2))
    torch.testing.assert_close(output_of(theirs_of(kind, tmp_path), kind), wanted, **CLOSE)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    is_product = changes.get("combine") == "products"
    assert values["r"] == (N_SKILLS * RANK if is_product else RANK)
    torch.testing.assert_close(output_of(model.merge_and_unload(2), kind), wanted, **CLOSE)


def test_layers_of_another_rank_and_scale_get_patterns(tmp_path):
    model = poly_of("llama")
    name = "model.layers.1.self_attn.v_proj"
    layer = model.poly_layers()[name]
    layer.update_layer("default", config_of("llama", r=5, alpha=4.0))
    with torch.no_grad():
        layer.poly_lora_B["default"].normal_()
    model.export_lora("last", tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    key = "^model[.]layers[.]1[.]self_attn[.]v_proj"
    assert (values["rank_pattern"], values["alpha_pattern"]) == ({key: 5}, {key: 4})
    theirs = theirs_of("llama", tmp_path)
    wanted = output_of(model, "llama", task_ids=ids_of(3))
    torch.testing.assert_close(output_of(theirs, "llama"), wanted, **CLOSE)
    other = theirs.base_model.model.get_submodule("model.layers.0.self_attn.v_proj")
    assert other.scaling["default"] == 1 / 3


def test_alpha_is_a_round_number(tmp_path):
    poly("llama", r=49).export_lora(0, tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert 49 * (1 / 49) != 1
    assert (values["r"], values["lora_alpha"], values["alpha_pattern"]) == (49, 1, {})


def test_a_named_adapter_and_one_that_is_not_everywhere(tmp_path):
    model = poly_of("llama")
    model.add_adapter("second", config_of("llama", r=2, n_tasks=3, target_modules=["o_proj"]))
    model.set_adapter("second")
    trained(model, seed=5)
    wanted = output_of(model, "llama", task_ids=ids_of(1))
    model.set_adapter("default")
    model.export_lora(1, tmp_path, adapter_name="second")
    torch.testing.assert_close(output_of(theirs_of("llama", tmp_path), "llama"), wanted, **CLOSE)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 4
    with pytest.raises(ValueError, match=r"no adapter 'third'. There are: \['default', 'second'\]"):
        model.export_lora(1, tmp_path, adapter_name="third")
    merged = model.merge_and_unload(1, adapter_name="second")
    torch.testing.assert_close(output_of(merged, "llama"), wanted, **CLOSE)


@pytest.mark.parametrize("n_splits", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_a_plain_one(kind, n_splits, tmp_path):
    model = poly_of(kind, n_splits=n_splits)
    for task in range(N_TASKS):
        one = copy.deepcopy(model)
        wanted = output_of(one, kind, task_ids=ids_of(task))
        merged = one.merge_and_unload(task=NAMES[task])
        assert [n for n, _ in merged.named_parameters()] == [
            n for n, _ in base(kind).named_parameters()
        ]
        torch.testing.assert_close(output_of(merged, kind), wanted, **CLOSE)
        with pytest.raises(ValueError, match=r"no adapter 'default'. There are: \[\]"):
            output_of(one, kind, task_ids=ids_of(task))
    merged.save_pretrained(tmp_path)
    loaded = AUTO[kind].from_pretrained(tmp_path).eval()
    loaded.requires_grad_(False)  # torch picks other kernels, and last bits, where it is True
    assert torch.equal(output_of(loaded, kind), output_of(merged, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_unload_gives_the_untouched_base(kind):
    model, fresh = poly(kind), base(kind).requires_grad_(False)
    plain = model.unload()
    assert plain is model.model
    assert list(plain.state_dict()) == list(fresh.state_dict())
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name
    for module in plain.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.equal(output_of(plain, kind), output_of(fresh, kind))
    assert PolyModel(plain, config_of(kind)).poly_layers(), "it can be wrapped again"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_merging_rounds_once_to_the_weights_own_dtype(dtype):
    model = poly("gpt2").to(dtype)
    for layer in model.poly_layers().values():
        layer.cast_adapter("default", torch.float64 if dtype == torch.float64 else torch.float32)
    layers = {n: (la.weight.clone(), la) for n, la in model.poly_layers().items()}
    merged = model.merge_and_unload(4)
    for name, (before, layer) in layers.items():
        a, b = layer.task_factors("default", 4)
        exact = before.double() + (1 / 3) * (a.double() @ b.double())
        after = merged.get_submodule(name).weight
        assert after.dtype == dtype
        ulp = torch.finfo(dtype).eps * exact.abs().clamp_min(1e-2)
        assert ((after.double() - exact).abs() <= 0.51 * ulp + 1e-13).all()


@pytest.mark.parametrize("call", ["export_lora", "merge_and_unload"])
def test_what_cannot_be_exported(call, tmp_path):
    def export(model, task):
        return (
            model.export_lora(task, tmp_path)
            if call == "export_lora"
            else getattr(model, call)(task)
        )

    with pytest.raises(ValueError, match=r"poly_type='mope': it is routed by the input"):
        export(poly("llama", poly_type="mope"), 0)
    model = poly("llama", task_names=NAMES)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"task='ad' .*Near misses: \['add'\]. .*0 to 5, or a name"
    ):
        export(model, "ad")
    for wrong in (6, -1, True, 1.0, "6", None):
        with pytest.raises(ValueError, match=rf"task={wrong!r} is not a task"):
            export(model, wrong)
    with (
        model.disable_adapter(),
        pytest.raises(ValueError, match=r"'default' is disabled, or under"),
    ):
        export(model, 0)
    with model.routing("uniform"), pytest.raises(ValueError, match=r"Leave the context first"):
        export(model, 0)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


def test_a_diverged_adapter_is_not_exported(tmp_path):
    model = poly("llama")
    with torch.no_grad():
        model.poly_layers()["model.layers.0.mlp.down_proj"].poly_lora_A["default"][0, 0] = float(
            "inf"
        )
    with pytest.raises(ValueError, match=r"not finite: .*layers.0.mlp.down_proj.lora_A.weight"):
        model.export_lora(0, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_not_merged(dtype):
    model = poly("llama")
    name = "model.layers.1.self_attn.v_proj"
    layer = model.poly_layers()[name]
    quantised = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    layer.base_layer.weight = quantised
    with pytest.raises(ValueError, match=rf"layer '{name}' has a weight of {dtype}.*export_lora"):
        model.merge_and_unload(0)
    assert layer.base_layer.weight is quantised
    assert name in model.poly_layers()


def test_a_tied_weight_is_not_merged():
    model = base("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    wrapped = PolyModel(model, config_of("llama", target_modules=["lm_head", "q_proj"]))
    before = copy.deepcopy(model.state_dict())
    message = (
        r"'lm_head' shares its weight \(model.embed_tokens.weight, lm_head.base_layer.weight\)"
    )
    with pytest.raises(ValueError, match=message):
        wrapped.merge_and_unload(0)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


def test_names_before_digits():
    assert task_id_of("1", n_tasks=3, task_names=["b", "a", "1"]) == 2
    assert task_id_of("1", n_tasks=3, task_names=["b", "a", "c"]) == 1
    assert task_id_of(2, n_tasks=3, task_names=None) == 2


def test_input_routed_layers_have_no_task_factors():
    layer = next(iter(poly("llama", poly_type="mope").poly_layers().values()))
    with pytest.raises(ValueError, match=r"adapter 'default' is routed by the input"):
        layer.task_factors("default", 2)


def test_task_factors_are_those_of_the_forward(tolerance):
    model = poly("llama")
    layer = next(iter(model.poly_layers().values()))
    x = torch.randn(2, 3, layer.in_features)
    for task in range(N_TASKS):
        a, b = layer.task_factors("default", task)
        assert (a.shape, b.shape) == ((16, 3), (3, 16))
        wanted = layer(x, task_ids=torch.tensor([task, task]))
        found = layer.base_layer(x) + layer.scaling["default"] * (x @ a) @ b
        torch.testing.assert_close(found, wanted, **tolerance)


SAVED = {"llama": ["model.norm", "lm_head"], "t5": ["final_layer_norm"], "gpt2": ["ln_f"]}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_modules_and_patterns_go_along(kind, tmp_path):
    suffix = {"t5": "v", "llama": "down_proj", "gpt2": "c_proj"}[kind]
    patterns = {"rank_pattern": {suffix: 2}, "alpha_pattern": {suffix: 3.0}, "use_rslora": True}
    model = poly_of(kind, modules_to_save=SAVED[kind], **patterns)
    wanted = output_of(model, kind, task_ids=ids_of(4))
    with model.disable_adapter():
        plain = output_of(model, kind)
    assert (wanted - plain).abs().max() > 1e-3
    model.export_lora("sort", tmp_path)
    torch.testing.assert_close(output_of(theirs_of(kind, tmp_path), kind), wanted, **CLOSE)
    spared = copy.deepcopy(model).unload()
    torch.testing.assert_close(output_of(spared, kind), plain, **CLOSE)
    merged = model.merge_and_unload("sort")
    torch.testing.assert_close(output_of(merged, kind), wanted, **CLOSE)
    assert not any("modules_to_save" in name for name, _ in merged.named_modules())
