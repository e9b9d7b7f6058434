"""`modules_to_save` where it is delicate: tied weights, two adapters, and mistakes."""

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from polylab import PolyConfig, PolyModel, get_peft_model
from polylab.poly.saved_modules import saved_modules
from tests.poly.tiny import base, config_of, inputs_of, output_of, poly, task_ids

# Tied weights


def tied():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def tied_adapter(names):
    values = {"r": 2, "n_tasks": 6, "target_modules": ["q_proj"]}
    return PolyConfig(**values, modules_to_save=names)


@pytest.mark.parametrize(
    ("names", "other"),
    [(["lm_head"], "model.embed_tokens"), (["embed_tokens"], "lm_head"), (["model"], "lm_head")],
)
def test_half_of_a_tie_is_refused(names, other):
    model = tied()
    message = rf"modules_to_save=\['{names[0]}'\]: '.*' (shares a weight with \['{other}'\]|holds)"
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, tied_adapter(names))
    assert all(p.requires_grad for p in model.parameters())
    assert not saved_modules(model)


def test_tied_modules_have_tied_copies(tmp_path, logits_tolerance):
    model = get_peft_model(tied(), tied_adapter(["embed_tokens", "lm_head"]))
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is table.weight
    assert head.weight is not head.original_module.weight
    output_of(model, "llama", task_ids=task_ids()).square().sum().backward()
    reference = tied()
    output_of(reference, "llama").square().sum().backward()
    wanted = reference.lm_head.weight.grad
    torch.testing.assert_close(head.weight.grad, wanted)  # of both uses
    with torch.no_grad():
        head.weight.mul_(torch.linspace(0.5, 2, 16))
    wanted = output_of(model, "llama", task_ids=task_ids())
    model.save_pretrained(tmp_path)
    loaded = PolyModel.from_pretrained(tied(), tmp_path)
    assert torch.equal(output_of(loaded, "llama", task_ids=task_ids()), wanted)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    with pytest.warns(UserWarning, match="tie"):
        theirs = peft.PeftModel.from_pretrained(tied(), str(tmp_path)).eval()
    found = theirs(**inputs_of("llama"), task_ids=task_ids()).logits
    torch.testing.assert_close(found, wanted, **logits_tolerance)

    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] += 1  # PEFT may train the two apart
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    message = r"tied in the model, but not equal in the file: \['model.embed_tokens.weight', 'lm_he"
    with pytest.raises(ValueError, match=message):
        PolyModel.from_pretrained(tied(), tmp_path)


# Mistakes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lm_haed"], r"has 'lm_haed', which matches no module of LlamaForCausalLM.* \['lm_head'"),
        (["norm", "normm"], r"modules_to_save has 'normm', which matches no module"),
        ([""], r"modules_to_save=\[''\] has an empty name"),
        (["layers"], r"'model.layers' holds layers that an adapter is in|is a ModuleList"),
        (["act_fn"], r"'model.layers.0.mlp.act_fn' has no weights to train: leave it out"),
        (["layers.0", "input_layernorm"], r"'model.layers.0' and 'model.layers.0.input_layernorm'"),
    ],
)
def test_mistakes(names, message):
    model = base("llama")
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, config_of("llama", modules_to_save=names))
    assert all(p.requires_grad for p in model.parameters())


def test_a_target_in_a_saved_module_is_left_out_as_in_peft():
    names = {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["layers.1.mlp"]}
    ours = get_peft_model(base("llama"), config_of("llama", **names))
    assert [*ours.poly_layers()] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    theirs = peft.get_peft_model(base("llama"), peft.PolyConfig(n_tasks=6, **names))
    layers = [n for n, m in theirs.base_model.model.named_modules() if hasattr(m, "poly_lora_A")]
    assert [*ours.poly_layers()] == layers
    config = config_of("llama", target_modules=["up_proj"], modules_to_save=["mlp"])
    with pytest.raises(ValueError, match=r"modules_to_save=\['mlp'\] left out"):
        get_peft_model(base("llama"), config)


def test_one_adapter_cannot_copy_what_another_adapts():
    model = poly("llama", target_modules=["q_proj", "lm_head"])
    for names, what in ((["lm_head"], "lm_head"), (["self_attn"], "model.layers.0.self_attn")):
        with pytest.raises(ValueError, match=rf"'{what}' holds layers that an adapter is in, \["):
            model.add_adapter(
                "b", config_of("llama", target_modules=["v_proj"], modules_to_save=names)
            )
    model = poly("llama", target_modules=["q_proj"], modules_to_save=["lm_head", "layers.0.mlp"])
    for target in ("lm_head", "model.layers.0.mlp.down_proj"):
        with pytest.raises(ValueError, match=rf"target module '{target}' is, or is in, a module"):
            model.add_adapter("b", config_of("llama", target_modules=[target]))
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp.up_proj' and 'model.layers.0.mlp'"):
        model.add_adapter("b", config_of("llama", modules_to_save=["up_proj"]))
    assert [*model.peft_config] == ["default"]
    everything = config_of("llama", target_modules="all-linear", exclude_modules=r".*\.0\.mlp\..*")
    model.add_adapter("b", everything)  # the output head stays the output head
    assert "lm_head" not in model.poly_layers()


def test_any_module_of_torch(tolerance):
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    config = PolyConfig(r=2, n_tasks=3, target_modules=["0"], modules_to_save=["1"])
    model = get_peft_model(net, config).train()
    ids = torch.tensor([0, 1, 2, 1, 0])
    model(torch.randn(5, 4), task_ids=ids)
    norm = saved_modules(net)["1"]
    assert norm.modules_to_save["default"].num_batches_tracked == 1  # buffers are its own
    assert norm.original_module.num_batches_tracked == 0
    x = torch.randn(5, 4)
    copied = norm.modules_to_save["default"].eval()
    wanted = net[2](copied(net[0].base_layer(x)))
    torch.testing.assert_close(model.eval()(x, task_ids=ids), wanted, **tolerance)


# Adapters that grow and merge


def test_growing_keeps_the_copies_and_the_ranks(tolerance):
    names = ["lm_head", "model.norm"]
    model = poly("llama", modules_to_save=names, rank_pattern={"q_proj": 2}, use_rslora=True)
    wanted = output_of(model, "llama", task_ids=task_ids())
    model.add_tasks(2)
    assert torch.equal(output_of(model, "llama", task_ids=task_ids()), wanted)
    model.add_skills(1)  # a longer sum, in which the new terms are exactly 0
    grown = output_of(model, "llama", task_ids=task_ids())
    torch.testing.assert_close(grown, wanted, **tolerance)
    assert {layer.r["default"] for layer in model.poly_layers().values()} == {2, 3}
    assert (
        sum(".modules_to_save." in n for n, p in model.named_parameters() if p.requires_grad) == 2
    )


def test_averaging_takes_the_copies_along():
    model = poly("llama", modules_to_save=["lm_head"], alpha_pattern={"q_proj": 3.0})
    with model.routing("uniform"):
        wanted = output_of(model, "llama", task_ids=task_ids())
    model.average_skills("mean")
    model.set_adapter("mean")
    torch.testing.assert_close(output_of(model, "llama"), wanted, rtol=1e-4, atol=1e-5)
    head = saved_modules(model.get_base_model())["lm_head"]
    weights = [head.modules_to_save[name].weight for name in ("default", "mean")]
    assert torch.equal(*weights)
    assert weights[0] is not weights[1]


def test_copies_cannot_be_combined():
    model = poly("llama", modules_to_save=["lm_head"])
    model.add_adapter("b", config_of("llama", modules_to_save=["lm_head"]))
    with pytest.raises(
        ValueError, match=r"\['default', 'b'\] have modules_to_save=\[\['lm_head'\]"
    ):
        model.combine_adapters(["default", "b"], "both")
    assert [*model.peft_config] == ["default", "b"]


def test_layers_that_share_a_router_may_differ_in_rank(tmp_path):
    changes = {"granularity": "model", "rank_pattern": {"q_proj": 2}, "combine": "products"}
    model = poly("llama", **changes)
    wanted = output_of(model, "llama", task_ids=task_ids())
    a, b = model.poly_layers()["model.layers.1.self_attn.q_proj"].task_factors("default", 3)
    assert (a.shape[1], b.shape[0]) == (10, 10)  # 5 skills of rank 2
    model.save_pretrained(tmp_path)
    loaded = PolyModel.from_pretrained(base("llama"), tmp_path)
    assert torch.equal(output_of(loaded, "llama", task_ids=task_ids()), wanted)
