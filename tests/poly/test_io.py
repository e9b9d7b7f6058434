"""Adapters on disk: PEFT's files both ways, and every damaged file refused."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from polylab import PeftModel, PolyModel
from tests.poly.tiny import base, config_of, inputs_of, output_of, poly, task_ids

PEFT_TYPES = {"t5": peft.TaskType.SEQ_2_SEQ_LM, "llama": peft.TaskType.CAUSAL_LM}
KINDS = ["t5", "llama", "gpt2", "encoder"]
NAMES = ["add", "copy", "first", "last", "sort", "upper"]
PEFT_KEYS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "modules_to_save"),
    *("init_weights", "poly_type", "n_tasks", "n_skills", "n_splits"),
}


@pytest.mark.parametrize("poly_type", ["poly", "mope", "private", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_changes_no_bit(kind, poly_type, tmp_path):
    changes = {"alpha": 2.0, "task_names": NAMES, "noise": "none", "noise_source": "keyed"}
    model = poly(kind, poly_type=poly_type, **changes)
    wanted = output_of(model, kind, task_ids=task_ids())
    model.save_pretrained(tmp_path)
    loaded = PolyModel.from_pretrained(base(kind), tmp_path)
    assert torch.equal(output_of(loaded, kind, task_ids=task_ids()), wanted)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    config = loaded.peft_config["default"]
    assert (config.alpha, config.noise, config.noise_source) == (2.0, "none", "keyed")
    assert config.task_names == NAMES
    assert json.loads((tmp_path / "tasks.json").read_text()) == {n: i for i, n in enumerate(NAMES)}
    again = PolyModel.from_pretrained(base(kind), tmp_path, is_trainable=True)
    again.train()
    assert any(p.requires_grad for p in again.parameters()), "trainable again"
    again.save_pretrained(tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors", "tasks.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize("n_splits", [1, 2])
@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.filterwarnings("error:.*nexpected keyword")
def test_peft_loads_ours(kind, n_splits, tmp_path, logits_tolerance):
    model = poly(kind, n_splits=n_splits, init="mttl", noise="none", task_names=NAMES)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["peft_type"] == "POLY"
    assert set(values) == PEFT_KEYS
    theirs = peft.PeftModel.from_pretrained(base(kind), str(tmp_path)).eval()
    found = theirs(**inputs_of(kind), task_ids=task_ids()).logits
    wanted = output_of(model, kind, task_ids=task_ids())
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, **logits_tolerance)


@pytest.mark.parametrize("n_splits", [1, 2])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_we_load_pefts(kind, n_splits, tmp_path, logits_tolerance):
    values = {"r": 3, "n_tasks": 6, "n_skills": 5, "n_splits": n_splits, "init_weights": False}
    config = peft.PolyConfig(
        task_type=PEFT_TYPES[kind], target_modules=config_of(kind).target_modules, **values
    )
    theirs = peft.get_peft_model(base(kind), config).eval()
    wanted = theirs(**inputs_of(kind), task_ids=task_ids()).logits
    theirs.save_pretrained(str(tmp_path))
    ours = PeftModel.from_pretrained(base(kind), tmp_path)
    torch.testing.assert_close(
        output_of(ours, kind, task_ids=task_ids()), wanted, **logits_tolerance
    )
    found = ours.peft_config["default"]
    assert {name: getattr(found, name) for name in values} == values
    assert found.task_names is None


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"alpha": 2.0}),
        ("llama", {"poly_type": "mope"}),
        ("llama", {"poly_type": "shared"}),
        ("llama", {"poly_type": "private"}),
        ("gpt2", {}),
    ],
)
def test_peft_refuses_what_it_would_compute_otherwise(kind, changes, tmp_path):
    poly(kind, **changes).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["peft_type"] == "POLYLAB"
    with pytest.raises((KeyError, ValueError), match="POLYLAB"):
        peft.PeftModel.from_pretrained(base(kind), str(tmp_path))


def test_named_adapters_go_into_subfolders(tmp_path):
    model = poly("llama")
    model.add_adapter("second", config_of("llama", r=2, target_modules=["o_proj"]))
    model.save_pretrained(tmp_path)
    loaded = PolyModel.from_pretrained(base("llama"), tmp_path)
    loaded.load_adapter(tmp_path / "second", "second", is_trainable=True)
    assert torch.equal(
        output_of(loaded, "llama", task_ids=task_ids()),
        output_of(model, "llama", task_ids=task_ids()),
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    loaded.set_adapter("second")
    assert any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(ValueError, match="adapter name 'second' is empty, has a dot or is taken"):
        loaded.load_adapter(tmp_path, "second")
    model.save_pretrained(tmp_path / "one", selected_adapters=["second"])
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["second"]
    with pytest.raises(ValueError, match=r"no adapter 'third'"):
        model.save_pretrained(tmp_path / "one", selected_adapters=["third"])


@pytest.fixture
def saved(tmp_path):
    poly("llama", task_names=NAMES).save_pretrained(tmp_path)
    return tmp_path


def load_changed(folder, change):
    """Change the saved tensors, and load them."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    model = base("llama")
    before = copy.deepcopy(model.state_dict())
    try:
        PolyModel.from_pretrained(model, folder)
    finally:  # the model in memory stays as it was
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert all(p.requires_grad for p in model.parameters())


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q0}.poly_lora_A"), rf"missing: {Q0}.poly_lora_A \[2, 5, 8, 3\]"),
        (lambda t: t.update(extra=torch.ones(2)), r"unexpected: extra \[2\]"),
        (
            lambda t: t.update({f"{Q0}.poly_router.module_logits": torch.ones(7, 10)}),
            rf"shape: {Q0}.poly_router.module_logits is \[7, 10\] in the file, \[6, 10\]",
        ),
        (lambda t: t[f"{Q0}.poly_lora_B"].fill_(float("nan")), rf"not finite: {Q0}.poly_lora_B"),
        (dict.clear, r"(?s)missing.*and 6 more"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_the_difference(saved, change, message):
    with pytest.raises(ValueError, match=message):
        load_changed(saved, change)


def test_a_truncated_file(saved):
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"adapter_model.safetensors is damaged"):
        PolyModel.from_pretrained(base("llama"), saved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "LORA"}, r"has peft_type='LORA'. Valid: POLY .* and POLYLAB"),
        ({"peft_type": None}, r"has peft_type=None"),
        ({"r": 5}, r"poly_lora_A is \[2, 5, 8, 3\] in the file, \[2, 5, 8, 5\] in the model"),
        ({"n_skills": 0}, "n_skills=0 is not valid"),
        ({"mystery": 3}, r"unknown adapter options \{'mystery': 3\}"),
        ({"target_modules": ["nothing"]}, r"target_modules=\['nothing'\] matches no module"),
    ],
)
def test_a_wrong_configuration(saved, values, message):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ValueError, match=message):
        PolyModel.from_pretrained(base("llama"), saved)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("adapter_config.json", "{", r"adapter_config.json is not valid JSON"),
        ("adapter_config.json", "[1]", r"adapter_config.json holds a list; an object is needed"),
        (
            "tasks.json",
            '{"a": 0, "b": 2}',
            r"tasks.json has ids \[0, 2\]; .* from 0 to 1",
        ),
        ("tasks.json", '{"a": 0}', r"task_names has 1 names, but n_tasks=6"),
    ],
)
def test_a_damaged_json(saved, name, text, message):
    (saved / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        PolyModel.from_pretrained(base("llama"), saved)


def test_missing_files(saved):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: give the folder of a saved"):
        PolyModel.from_pretrained(base("llama"), saved / "nowhere")
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors.*adapter_model.bin"):
        PolyModel.from_pretrained(base("llama"), saved)
