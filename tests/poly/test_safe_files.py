"""Files of an adapter: refused when anything is wrong with them, and nothing is changed then."""

import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from polylab import PolyModel
from tests.poly.tiny import base, config_of, poly

NAMES = ["add", "copy", "first", "last", "sort", "upper"]
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def saved(tmp_path):
    poly("llama", task_names=NAMES).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def wrapped():
    model = poly("llama", seed=7, task_names=NAMES)
    model.add_adapter("other", config_of("llama", r=2, target_modules=["o_proj"]))
    return model


def facts(model):
    """All that loading could change."""
    layers = model.poly_layers() if isinstance(model, PolyModel) else {}
    return {
        "tensors": {name: t.clone() for name, t in model.state_dict().items()},
        "trainable": [n for n, p in model.named_parameters() if p.requires_grad],
        "modules": [(n, type(m), m.training) for n, m in model.named_modules()],
        "configs": {n: c.to_dict() for n, c in getattr(model, "peft_config", {}).items()},
        "active": [getattr(model, "active_adapter", None)],
        "layers": {
            n: (la.active_adapter, [*la.poly_lora_A], la.scaling) for n, la in layers.items()
        },
    }


def assert_same(before, after):
    first, second = before.pop("tensors"), after.pop("tensors")
    assert before == after
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def refused(folder, wrapped, message, kind=ValueError):
    """Refused in a fresh model and beside other adapters; both stay as they were."""
    fresh = base("llama")
    for model, load in (
        (fresh, lambda: PolyModel.from_pretrained(fresh, folder)),
        (wrapped, lambda: wrapped.load_adapter(folder, "new")),
    ):
        before = facts(model)
        with pytest.raises(kind, match=f"(?s){message}") as caught:
            load()
        assert len(str(caught.value)) < 4000, "a report is capped"
        assert_same(before, facts(model))


def rewritten(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"adapter_model.safetensors is empty: a write was cut off"),
        (b"\x10", "is damaged"),
        (b"\x00" * 300, "is damaged"),
        (struct.pack("<Q", 1 << 60) + b"{}", "is damaged"),
        (struct.pack("<Q", 99_000_000) + b"{}", "is damaged"),
        (struct.pack("<Q", 8) + b"[[[[[[[[", "is damaged"),
        (b"\x80\x04K\x01.", r"is a pickle \(torch.save\), not safetensors. .*Convert it"),
    ],
)
def test_no_safetensors_at_all(content, message, saved, wrapped):
    (saved / WEIGHTS).write_bytes(content)
    refused(saved, wrapped, message)


def test_a_pickle_under_the_right_name_runs_nothing(saved, wrapped, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"weights": Trap()}, saved / WEIGHTS)
    refused(saved, wrapped, r"is a pickle \(torch.save\), not safetensors")
    assert not (tmp_path / "ran").exists()
    (saved / WEIGHTS).rename(saved / "adapter_model.bin")
    message = (
        r"no adapter_model.safetensors in .*'adapter_model.bin'.*Convert it where you trust it"
    )
    refused(saved, wrapped, message, FileNotFoundError)


@pytest.mark.parametrize("keep", [7, 100, 0.5, 0.999])
def test_every_truncation(keep, saved, wrapped):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[: keep if keep > 1 else int(keep * len(content))])
    refused(saved, wrapped, "adapter_model.safetensors is damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"a.b": torch.ones(3)}), r"unexpected: a.b \[3\]"),
        (lambda t: t.pop(f"{Q0}.poly_lora_B"), rf"missing: {Q0}.poly_lora_B \[2, 5, 3, 8\]"),
        (
            lambda t: t.update({f"{Q0}.poly_lora_A": torch.ones(2, 5, 8, 4)}),
            r"poly_lora_A is \[2, 5, 8, 4\] in the file, \[2, 5, 8, 3\] in the model",
        ),
        (
            lambda t: t.update({f"{Q0}.poly_lora_A": torch.ones(2, 5, 8, 3, dtype=torch.int64)}),
            rf"dtype: {Q0}.poly_lora_A is torch.int64; valid: torch.float32, torch.bfloat16",
        ),
        (
            lambda t: t.update({f"{Q0}.poly_lora_A": torch.ones(2, 5, 8, 3).to(torch.float8_e5m2)}),
            rf"dtype: {Q0}.poly_lora_A is torch.float8_e5m2",
        ),
        (
            lambda t: t[f"{Q0}.poly_lora_A"][0, 0, 0].fill_(float("-inf")),
            rf"not finite: {Q0}.poly_lora_A",
        ),
        (lambda t: [t.update({f"x{i}": torch.ones(1)}) for i in range(500)], "and 488 more"),
    ],
)
def test_wrong_tensors(change, message, saved, wrapped):
    rewritten(saved, change)
    refused(saved, wrapped, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"r": "8"},
            r"adapter_config.json has values of a wrong type:\nr='8' is a str; valid: int",
        ),
        ({"r": True}, r"r=True is a bool; valid: int"),
        ({"n_tasks": 6.0}, r"n_tasks=6.0 is a float; valid: int"),
        ({"n_skills": None}, r"n_skills=None is a NoneType; valid: int"),
        ({"init_weights": "no"}, r"init_weights='no' is a str; valid: bool"),
        ({"target_modules": 5}, r"target_modules=5 is a int; valid: list\[str\] | str | None"),
        ({"target_modules": ["q_proj", 1]}, r"target_modules=\['q_proj', 1\] is a list"),
        ({"auto_mapping": [1]}, r"auto_mapping=\[1\] is a list; valid: dict"),
        (
            {"poly_type": 3, "r": []},
            r"poly_type=3 is a int; valid: str.*r=\[\]|r=\[\].*poly_type=3",
        ),
        ({"r": -1}, "r=-1 is not valid"),
        ({"skills": 3}, r"unknown adapter options \{'skills': 3\}"),
        ({"peft_type": "LORA"}, "peft_type='LORA'. Valid: POLY"),
    ],
)
def test_wrong_values(values, message, saved, wrapped):
    path = saved / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    refused(saved, wrapped, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"priors": {"bogus": 1.0}}, "bogus"),
        (
            {"router": {"_target_": "no.such.Router"}},
            r"names code.*router._target_='no.such.Router'.*trust_code=True",
        ),
        (
            {"combine": {"_target_": "no.such.Rule"}},
            r"names code.*combine._target_='no.such.Rule'.*trust_code=True",
        ),
        (
            {"noise": {"_target_": "no.such.Noise"}},
            r"names code.*noise._target_='no.such.Noise'.*trust_code=True",
        ),
        (
            {"priors": {"x": {"_target_": "no.Prior", "weight": 1}}},
            r"names code.*priors.x._target_='no.Prior'",
        ),
        ({"granularity": "nothing(here)"}, r"granularity='nothing\(here\)'"),
    ],
)
def test_options_that_cannot_be_built(values, message, saved, wrapped):
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS)  # no metadata: a file from elsewhere
    path = saved / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "POLYLAB", **values}))
    refused(saved, wrapped, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"r": 3, "r": 4}', r"not valid JSON: the keys \['r'\] are there more than once"),
        ("[" * 100_000, "adapter_config.json is not valid JSON"),
        ("", "adapter_config.json is not valid JSON"),
        ('"POLY"', "holds a str; an object is needed"),
    ],
)
def test_a_configuration_that_is_none(text, message, saved, wrapped):
    (saved / CONFIG).write_text(text)
    refused(saved, wrapped, message)


def test_bytes_that_are_no_text(saved, wrapped):
    (saved / CONFIG).write_bytes(b"\xff\xfe{}")
    refused(saved, wrapped, "adapter_config.json is not valid JSON")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 0, "b": 0}', r"tasks.json has ids \[0, 0\]; they must run from 0 to 1"),
        ('{"a": -1, "b": 0}', r"tasks.json has ids \[-1, 0\]"),
        ('{"a": 0, "b": "1"}', r"tasks.json has ids \[0, '1'\].*a whole number"),
        ('{"a": 0, "b": 1.0}', r"tasks.json has ids \[0, 1.0\]"),
        ('{"a": 0, "b": true}', r"tasks.json has ids \[0, True\]"),
        ('{"a": 0, "a": 1}', r"tasks.json is not valid JSON: the keys \['a'\] are there more than"),
        ('["a"]', r"tasks.json holds a list; an object is needed"),
        ('{"a": 0}', r"task_names has 1 names, but n_tasks=6"),
    ],
)
def test_wrong_task_ids(text, message, saved, wrapped):
    (saved / "tasks.json").write_text(text)
    refused(saved, wrapped, message)


def test_long_lists_of_ids_are_cut(saved, wrapped):
    (saved / "tasks.json").write_text(json.dumps({str(i): 2 * i for i in range(5000)}))
    refused(saved, wrapped, r"tasks.json has ids \[0, 2, .*\.\.\.\]; they must run from 0 to 4999")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "tasks.json"])
def test_links(name, saved, wrapped, tmp_path):
    (saved / name).rename(tmp_path / name)
    (saved / name).symlink_to(tmp_path / name)  # as in the hub's cache
    assert PolyModel.from_pretrained(base("llama"), saved).peft_config["default"].task_names
    content = (tmp_path / name).read_bytes()
    poly("llama", seed=3, n_tasks=2).save_pretrained(saved)
    assert (tmp_path / name).read_bytes() == content, "nothing is written through a link"
    (saved / name).unlink(missing_ok=True)
    (saved / name).symlink_to(tmp_path / "gone")
    refused(saved, wrapped, rf"{name} is a link to .*gone, which is no file", FileNotFoundError)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"polylab": "{"}, "has metadata 'polylab' that is not JSON"),
        ({"polylab_record": "3"}, "has metadata 'polylab_record' that is no object: 3"),
    ],
)
def test_wrong_metadata(metadata, message, saved, wrapped):
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, metadata=metadata)
    refused(saved, wrapped, message)


@pytest.mark.parametrize(
    ("mine", "others", "message"),
    [
        ({"alpha": 2.0}, {"alpha": 3.0}, r"alpha: 2.0 in the folder, 3.0 when the weights"),
        ({}, {"alpha": 3.0}, r"alpha: 1.0 in the folder, 3.0 when the weights were saved"),
        ({"alpha": 3.0}, {}, r"alpha: 3.0 in the folder, 1.0 when"),
        ({}, {"task_names": [*"fedcba"]}, r"task_names: \['add', .*\['f', 'e',"),
    ],
)
def test_files_of_two_saves_are_not_one_adapter(mine, others, message, wrapped, tmp_path):
    for name, changes in (("mine", mine), ("others", others)):
        poly("llama", **{"task_names": NAMES, **changes}).save_pretrained(tmp_path / name)
    shutil.copy(tmp_path / "others" / WEIGHTS, tmp_path / "mine" / WEIGHTS)
    refused(tmp_path / "mine", wrapped, f"is not of the same save.*{message}")


@pytest.mark.parametrize("n_splits", [1, 4])
@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_sixteen_bits_and_a_subset_of_targets(kind, n_splits, tmp_path):
    targets = ["q", "wo"] if kind == "t5" else ["mlp.c_proj"]
    model = poly(kind, n_splits=n_splits, target_modules=targets)
    for layer in model.poly_layers().values():
        layer.cast_adapter("default", torch.bfloat16)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    loaded = PolyModel.from_pretrained(base(kind), tmp_path)
    assert [*loaded.poly_layers()] == [*model.poly_layers()]
    for name, layer in loaded.poly_layers().items():
        for bank in ("poly_lora_A", "poly_lora_B"):
            mine, theirs = getattr(layer, bank)["default"], getattr(model.poly_layers()[name], bank)
            assert mine.dtype == torch.float32, "held in full precision, as PEFT does"
            assert torch.equal(mine, theirs["default"].float())


def test_a_bad_name_changes_nothing(saved):
    model = base("llama")
    before = facts(model)
    with pytest.raises(ValueError, match=r"adapter name 'a.b' is empty, has a dot or is taken"):
        PolyModel.from_pretrained(model, saved, "a.b")
    assert_same(before, facts(model))
