"""`modules_to_save`: a copy per adapter that computes, trains, is saved, can be switched off."""

import json
import threading

import peft
import pytest
import torch
from safetensors.torch import load_file

from polylab import PolyModel, get_peft_model
from polylab.poly.saved_modules import SavedModule, saved_modules
from polylab.training.optim import parameter_groups
from tests.poly.tiny import (
    base,
    config_of,
    gradients,
    inputs_of,
    output_of,
    poly,
    task_ids,
)

PEFT_TYPES = {"t5": peft.TaskType.SEQ_2_SEQ_LM, "llama": peft.TaskType.CAUSAL_LM}
SAVED = {
    "llama": ["embed_tokens", "layers.1.input_layernorm", "lm_head"],
    "t5": ["shared", "embed_tokens", "final_layer_norm", "lm_head"],
    "gpt2": ["wte", "ln_f", "lm_head"],
    "encoder": ["shared", "embed_tokens", "final_layer_norm"],
}
NAMES = {
    "llama": ["model.embed_tokens", "model.layers.1.input_layernorm", "lm_head"],
    "t5": [
        *("shared", "encoder.embed_tokens", "encoder.final_layer_norm"),
        *("decoder.embed_tokens", "decoder.final_layer_norm", "lm_head"),
    ],
    "gpt2": ["transformer.wte", "transformer.ln_f", "lm_head"],
    "encoder": ["shared", "encoder.embed_tokens", "encoder.final_layer_norm"],
}
KINDS = [*SAVED]


def saved(kind, **changes):
    return poly(kind, modules_to_save=SAVED[kind], **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_each_named_module_computes_with_its_copy(kind):
    fresh = get_peft_model(base(kind), config_of(kind, modules_to_save=SAVED[kind]))
    # frozen: torch picks T5's attention kernel by what needs a gradient
    wanted = output_of(base(kind).requires_grad_(False), kind)
    assert [*saved_modules(fresh.get_base_model())] == NAMES[kind]
    assert torch.equal(output_of(fresh, kind, task_ids=task_ids()), wanted)  # copies
    before = output_of(fresh, kind, task_ids=task_ids())
    for name, module in saved_modules(fresh.get_base_model()).items():
        if name == "shared":  # a T5 of its own calls only the stacks' tables
            continue
        weight = module.modules_to_save["default"].weight
        with torch.no_grad():
            weight.mul_(torch.linspace(0.5, 2, weight.shape[-1]))
        after = output_of(fresh, kind, task_ids=task_ids())
        assert (after - before).abs().max() > 1e-3, name
        before = after
    with fresh.disable_adapter():
        assert torch.equal(output_of(fresh, kind), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapter_and_copies_are_trained(kind):
    model = saved(kind)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    copies = [module.modules_to_save["default"].weight for module in modules_of(model)]
    starts = [weight.clone() for weight in copies]
    groups = parameter_groups(model)
    assert all(".modules_to_save.default." in name for name in groups["other"])
    n_copied = sum(len([*m.original_module.parameters()]) for m in modules_of(model))
    ties = 3 if kind == "t5" else 1 if kind == "encoder" else 0
    assert len(groups["other"]) == n_copied - ties
    trainable = [p for p in model.parameters() if p.requires_grad]
    output_of(model, kind, task_ids=task_ids()).square().mean().backward()
    torch.optim.SGD(trainable, lr=1.0).step()
    for name, tensor in model.state_dict().items():
        is_adapter = ".poly_" in name or ".modules_to_save." in name
        assert is_adapter or torch.equal(tensor, before[name]), name
    assert len(copies) == len(NAMES[kind])
    assert not any(torch.equal(now, start) for now, start in zip(copies, starts, strict=True))


def modules_of(model):
    return saved_modules(model.get_base_model()).values()


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_changes_no_bit(kind, tmp_path):
    model = saved(kind, poly_type="shared", alpha=2.0)
    wanted = output_of(model, kind, task_ids=task_ids())
    model.save_pretrained(tmp_path)
    for is_trainable in (False, True):
        loaded = PolyModel.from_pretrained(base(kind), tmp_path, is_trainable=is_trainable).eval()
        assert torch.equal(output_of(loaded, kind, task_ids=task_ids()), wanted)
        flags = {
            p.requires_grad for m in modules_of(loaded) for p in m.modules_to_save.parameters()
        }
        assert flags == {is_trainable}


@pytest.mark.parametrize("kind", PEFT_TYPES)
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
def test_peft_loads_ours(kind, tmp_path, logits_tolerance):
    model = saved(kind)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "POLY"
    theirs = peft.PeftModel.from_pretrained(base(kind), str(tmp_path)).eval()
    wanted = output_of(model, kind, task_ids=task_ids())
    found = theirs(**inputs_of(kind), task_ids=task_ids()).logits
    torch.testing.assert_close(found, wanted, **logits_tolerance)


@pytest.mark.parametrize("kind", PEFT_TYPES)
def test_we_load_pefts(kind, tmp_path, logits_tolerance):
    values = {"r": 3, "n_tasks": 6, "n_skills": 5, "init_weights": False}
    names = {"llama": SAVED["llama"], "t5": ["relative_attention_bias", "final_layer_norm"]}[kind]
    config = peft.PolyConfig(
        task_type=PEFT_TYPES[kind],
        target_modules=config_of(kind).target_modules,
        modules_to_save=names,
        **values,
    )
    theirs = peft.get_peft_model(base(kind), config).eval()
    copies = [p for n, p in theirs.named_parameters() if "modules_to_save" in n]
    assert len(copies) == (3 if kind == "llama" else 4)
    with torch.no_grad():
        for weight in copies:
            weight.mul_(torch.linspace(0.5, 2, weight.shape[-1]))
    wanted = theirs(**inputs_of(kind), task_ids=task_ids()).logits
    theirs.save_pretrained(str(tmp_path))
    # trainable as theirs: torch picks T5's attention kernel by what needs a gradient
    ours = PolyModel.from_pretrained(base(kind), tmp_path, is_trainable=True).eval()
    torch.testing.assert_close(
        output_of(ours, kind, task_ids=task_ids()), wanted, **logits_tolerance
    )
    ours.save_pretrained(tmp_path / "again")
    mine, its = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "again", tmp_path))
    assert {name: tensor.tolist() for name, tensor in mine.items()} == {
        name: tensor.tolist() for name, tensor in its.items()
    }


@pytest.mark.parametrize(
    ("names", "n"), [(["norm"], 5), (["model.norm"], 1), (["s.0.mlp"], 1), (["head", "tokens"], 2)]
)
def test_ends_of_names_are_pefts(names, n):
    ours = get_peft_model(base("llama"), config_of("llama", modules_to_save=names))
    config = peft.PolyConfig(n_tasks=6, target_modules=["q_proj"], modules_to_save=names)
    theirs = peft.get_peft_model(base("llama"), config).base_model.model
    wanted = [name for name, m in theirs.named_modules() if hasattr(m, "original_module")]
    assert [*saved_modules(ours.get_base_model())] == wanted
    assert len(wanted) == n


def test_adapters_have_copies_of_their_own():
    model = saved("llama")
    model.add_adapter("bare", config_of("llama"))
    model.add_adapter("head", config_of("llama", modules_to_save=["lm_head"]))
    ids = {"task_ids": task_ids()}
    wanted = output_of(model, "llama", **ids)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not [name for name in trainable if ".head." in name or ".bare." in name]
    head = saved_modules(model.get_base_model())["lm_head"]
    assert torch.equal(
        head.modules_to_save["head"].weight, head.original_module.weight
    )  # not the active adapter's
    for name, n_trainable in (("bare", 0), ("head", 1), ("default", 3)):
        model.set_adapter(name)
        copies = [p for m in modules_of(model) for p in m.modules_to_save.parameters()]
        assert sum(p.requires_grad for p in copies) == n_trainable
        assert torch.equal(output_of(model, "llama", **ids), wanted) == (name == "default")
        if name != "default":  # fresh ones
            assert torch.equal(output_of(model, "llama", **ids), output_of(base("llama"), "llama"))
    model.delete_adapter("default")
    assert not [name for name in model.state_dict() if ".default" in name]
    assert model.active_adapter == "bare"
    assert torch.equal(output_of(model, "llama", **ids), output_of(base("llama"), "llama"))


def test_a_second_adapter_from_disk(tmp_path):
    model = saved("llama")
    wanted = output_of(model, "llama", task_ids=task_ids())
    model.save_pretrained(tmp_path)
    other = poly("llama", seed=9)
    other.load_adapter(tmp_path, "second", is_trainable=True)
    assert not torch.equal(output_of(other, "llama", task_ids=task_ids()), wanted)
    other.set_adapter("second")
    assert torch.equal(output_of(other, "llama", task_ids=task_ids()), wanted)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("whole_layer", [False, True])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(use_reentrant, whole_layer):
    names = ["layers.0", "layers.1.input_layernorm"] if whole_layer else SAVED["llama"]
    targets = ["layers.1.mlp.down_proj", "layers.1.self_attn.q_proj"]

    def run(model):
        torch.manual_seed(3)
        output_of(model, "llama", task_ids=task_ids()).square().sum().backward()
        return gradients(model)

    changes = {"modules_to_save": names, "target_modules": targets}
    wanted = run(poly("llama", **changes).train().double())
    model = poly("llama", **changes).train().double()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    calls = []
    for module in modules_of(model):
        module.modules_to_save["default"].register_forward_hook(lambda *_: calls.append(1))
    found = run(model)
    assert len(calls) > len(names)  # recomputed
    for name, grad in wanted.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(found[name], grad)


def test_a_copy_in_a_checkpointed_layer_stays_off_in_the_recompute():
    model = saved("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    table = model.get_input_embeddings()
    with model.disable_adapter():
        ids = inputs_of("llama")["input_ids"]
        embedded = table(ids).detach().requires_grad_()
        loss = model(inputs_embeds=embedded).logits.square().sum()
    loss.backward()  # outside: in an autograd thread of its own on accelerators
    plain = base("llama").train()
    again = embedded.detach().requires_grad_()
    plain(inputs_embeds=again).logits.square().sum().backward()
    torch.testing.assert_close(embedded.grad, again.grad)


def test_threads_are_off_by_themselves():
    model = saved("llama")
    on = output_of(model, "llama", task_ids=task_ids())
    with model.disable_adapter():
        off = output_of(model, "llama")
    assert torch.equal(off, output_of(base("llama"), "llama"))
    assert (on - off).abs().max() > 0.1
    wrong, barrier = [], threading.Barrier(2)

    def run(is_off):
        barrier.wait()
        for _ in range(30):
            if is_off:
                with model.disable_adapter():
                    found = output_of(model, "llama")
            else:
                found = output_of(model, "llama", task_ids=task_ids())
            if not torch.equal(found, off if is_off else on):
                wrong.append(is_off)

    threads = [threading.Thread(target=run, args=(is_off,)) for is_off in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_attributes_are_those_of_the_module_that_computes():
    model = saved("llama")
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, SavedModule)
    assert table.padding_idx == 0
    assert head.weight is head.modules_to_save["default"].weight
    with model.disable_adapter():
        assert head.weight is head.original_module.weight
    with pytest.raises(AttributeError, match=r"'Linear' object has no attribute 'nothing'"):
        _ = head.nothing


@pytest.mark.parametrize("kind", ["llama", "t5", "gpt2"])
def test_generation_uses_the_copies(kind):
    model, prompts = saved(kind), inputs_of(kind)["input_ids"]
    how = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 6, "do_sample": False}
    found = model.generate(prompts, task_ids=task_ids(), **how)
    assert not torch.equal(found, poly(kind).generate(prompts, task_ids=task_ids(), **how))
    with model.disable_adapter():
        assert torch.equal(model.generate(prompts, **how), base(kind).generate(prompts, **how))
