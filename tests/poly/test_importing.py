"""LoRAs that PEFT has trained become skills: the same numbers where one is chosen alone."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from polylab import from_loras
from tests.poly.tiny import BATCH, TARGETS, base, config_of, output_of, poly, small_logits, trained

NAMES = ["add", "copy", "sort"]
RANK = 3
CLOSE = {"rtol": 0, "atol": 1e-6}


def plain(kind):
    return small_logits(base(kind))


def lora(kind, folder, seed, **changes):
    """A PEFT LoRA with random weights, saved; and its logits."""
    values = {"r": RANK, "lora_alpha": 5, "target_modules": TARGETS[kind], **changes}
    config = peft.LoraConfig(fan_in_fan_out=kind == "gpt2", **values)
    model = peft.get_peft_model(plain(kind), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return output_of(model, kind)


def three(kind, tmp_path, **changes):
    wanted = [lora(kind, tmp_path / name, i, **changes) for i, name in enumerate(NAMES)]
    return [tmp_path / name for name in NAMES], wanted


@pytest.mark.parametrize("n_splits", [1, 2])
@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_private_tasks_compute_their_lora(kind, n_splits, tmp_path):
    folders, wanted = three(kind, tmp_path)
    model = from_loras(plain(kind), folders, poly_type="private", n_splits=n_splits).eval()
    assert model.peft_config["default"].task_names == NAMES
    assert model.peft_config["default"].target_modules == sorted(TARGETS[kind])
    for task, logits in enumerate(wanted):
        found = output_of(model, kind, task_ids=torch.full((BATCH,), task))
        torch.testing.assert_close(found, logits, **CLOSE)
        assert all((found - other).abs().max() > 1e-2 for other in wanted if other is not logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 11, "v_proj": 2}},
        {"target_modules": ["model.layers.1.self_attn.q_proj", "down_proj"]},
    ],
)
def test_every_scale_of_pefts_is_folded_in(changes, tmp_path):
    folders, wanted = three("llama", tmp_path, **changes)
    model = from_loras(plain("llama"), folders, poly_type="private", alpha=2.0).eval()
    found = output_of(model, "llama", task_ids=torch.tensor([2] * BATCH))
    torch.testing.assert_close(found, wanted[2], **CLOSE)
    if "target_modules" in changes:
        targets = model.peft_config["default"].target_modules
        assert targets == sorted(model.poly_layers())
        assert len(targets) == 3


def test_a_learned_routing_starts_uniform_and_can_choose_one(tmp_path):
    folders, wanted = three("llama", tmp_path)
    model = from_loras(plain("llama"), folders, n_tasks=4, r=RANK).eval()
    config = model.peft_config["default"]
    assert (config.poly_type, config.n_skills, config.n_tasks) == ("poly", 3, 4)
    assert config.task_names is None
    assert config.combine == "products"
    for weights in model.task_weights().values():
        torch.testing.assert_close(weights, torch.full((4, 1, 3), 1 / 3), rtol=0, atol=1e-3)
    with torch.no_grad():
        for layer in model.poly_layers().values():
            layer.router("default").module_logits[3] = torch.tensor([-100.0, 30.0, -100.0])
    found = output_of(model, "llama", task_ids=torch.full((BATCH,), 3))
    torch.testing.assert_close(found, wanted[1], **CLOSE)


def test_a_mixture_is_the_mean_of_the_updates(tmp_path):
    folders, _ = three("llama", tmp_path)
    model = from_loras(plain("llama"), folders, poly_type="uniform", n_tasks=1).eval()
    wanted = plain("llama")
    with torch.no_grad():
        for folder in folders:
            tensors = load_file(folder / "adapter_model.safetensors")
            for key in model.poly_layers():
                a, b = (tensors[f"base_model.model.{key}.lora_{side}.weight"] for side in "AB")
                wanted.get_submodule(key).weight += 5 / RANK * (b @ a) / len(folders)
    found = output_of(model, "llama", task_ids=torch.zeros(BATCH, dtype=torch.int64))
    torch.testing.assert_close(found, output_of(wanted, "llama"), **CLOSE)


def test_there_and_back(tmp_path):
    ours = poly("llama", poly_type="private", task_names=[*"abcdef"])
    small_logits(ours.model)
    for task in "abcdef":
        ours.export_lora(task, tmp_path / task)
    back = from_loras(plain("llama"), [tmp_path / t for t in "abcdef"], poly_type="private").eval()
    ids = torch.tensor([5, 0, 3, 3])
    torch.testing.assert_close(
        output_of(back, "llama", task_ids=ids), output_of(ours, "llama", task_ids=ids), **CLOSE
    )


def refused(message, folders, *, model=None, **options):
    model = model or base("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"(?s){message}"):
        from_loras(model, folders, **options)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert all(p.requires_grad for p in model.parameters())


def test_loras_of_another_form(tmp_path):
    folders, _ = three("llama", tmp_path)
    refused("directories is empty", [])
    refused(r"folders of the same name \['add'\]", [folders[0], folders[0]])
    lora("llama", tmp_path / "wide", 3, r=4)
    refused(
        r"layer .*q_proj: rank 4 in 'wide', 3 in the first layer of 'add'",
        [*folders, tmp_path / "wide"],
    )
    lora("llama", tmp_path / "mixed", 3, rank_pattern={"v_proj": 2})
    refused(r"rank 2 in 'mixed', 3 in", [tmp_path / "mixed"])
    lora("llama", tmp_path / "less", 3, target_modules=["q_proj"])
    refused(r"layer .*down_proj: in one of 'add', 'less' only", [folders[0], tmp_path / "less"])
    lora("gpt2", tmp_path / "gpt2", 3)
    refused(
        r"do not fit LlamaForCausalLM:\n.*no 'transformer.h.0.attn.c_attn'", [tmp_path / "gpt2"]
    )
    model = base("llama")
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(20, 16)
    refused(r"down_proj has \(in, out\) = \(20, 16\), the LoRA \(24, 16\)", folders, model=model)
    refused(r"unknown adapter options \['skills'\]", folders, skills=3)
    refused(r"\{'r': 5\} contradicts the LoRAs, which have .*'r': 3", folders, r=5)
    refused(
        r"'shared' with n_tasks=3 has 1 skills, but there are 3 LoRAs", folders, poly_type="shared"
    )
    refused(r"n_tasks=5 has 5 skills, but there are 3", folders, poly_type="private", n_tasks=5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "POLY"}, r"peft_type='POLY'; LORA is needed"),
        ({"use_dora": True}, r"use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"bias": "all"}, r"bias='all'; none is needed"),
        ({"init_lora_weights": "pissa_niter_4"}, r"'pissa_niter_4' changes the base's weights"),
        ({"lora_alpha": "8"}, r"lora_alpha='8'; a number is needed"),
        ({"alpha_pattern": {"q_proj": None}}, r"lora_alpha=None; a number is needed"),
        ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern=\['q_proj'\]; an object .* is needed"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern has '\(', which is no regular expression"),
    ],
)
def test_more_than_a_lora(values, message, tmp_path):
    folders, _ = three("llama", tmp_path)
    path = folders[1] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    refused(rf"copy/adapter_config.json is not a plain LoRA:\n.*{message}", folders)


L0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{L0}.lora_A.weight"), r"missing: the other side of model.layers.0"),
        (
            lambda t: t.update({f"{L0}.lora_magnitude_vector": torch.ones(2)}),
            r"unexpected: .*\[2\]",
        ),
        (lambda t: t[f"{L0}.lora_B.weight"].fill_(float("nan")), r"not finite.*q_proj.lora_B"),
        (
            lambda t: t.update({f"{L0}.lora_B.weight": torch.ones(16, 3, dtype=torch.int8)}),
            r"of no floating type: .*torch.int8",
        ),
        (
            lambda t: t.update({f"{L0}.lora_B.weight": torch.ones(16, 2)}),
            r"shape: model.layers.0.self_attn.q_proj has A \[3, 16\] and B \[16, 2\]",
        ),
        (dict.clear, "no tensors at all"),
    ],
)
def test_damaged_weights(change, message, tmp_path):
    folders, _ = three("llama", tmp_path)
    path = folders[2] / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    refused(rf"sort/adapter_model.safetensors is not a plain LoRA:\n.*{message}", folders)


def test_the_new_adapter_trains(tmp_path):
    folders, _ = three("llama", tmp_path)
    model = from_loras(plain("llama"), folders).train()
    output_of(model, "llama", task_ids=torch.tensor([0, 1, 2, 2])).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("poly_" in name), name
    assert trained(model)
    assert config_of("llama").r == RANK
