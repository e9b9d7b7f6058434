"""Which layers are adapted, how wide and at what scale: as PEFT's LoRA."""

import json
import math

import peft
import pytest
import torch
from safetensors.torch import save_file

from polylab import PolyConfig, PolyModel, get_peft_model
from polylab.poly.files import read_tensors
from polylab.poly.injection import find_targets
from polylab.poly.io import read_adapter
from polylab.poly.patterns import layer_index, rank_of, scaling_of
from polylab.poly.tensors import check_tensors
from tests.poly.tiny import base, config_of, output_of, poly, task_ids

Q, V, DOWN = "self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"
# options, then (rank, scale) of layer 0's and of layer 1's q, v and down, r=4 and alpha=6
PLAIN = (4, 1.5)
CASES = [
    (
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5.0}},
        {Q: (3, 5 / 3), V: PLAIN, DOWN: PLAIN},
        {Q: (3, 5 / 3), V: PLAIN, DOWN: PLAIN},
    ),
    (  # the first pattern that matches counts
        {"rank_pattern": {r"layers\.1\..*": 3, "self_attn.q_proj": 2, "q_proj": 7}},
        {Q: (2, 3.0), V: PLAIN, DOWN: PLAIN},
        {Q: (3, 2.0), V: (3, 2.0), DOWN: (3, 2.0)},
    ),
    (
        {"rank_pattern": {"v_proj|down_proj": 2}, "alpha_pattern": {r".*\.0\..*": 8}},
        {Q: (4, 2.0), V: (2, 4.0), DOWN: (2, 4.0)},
        {Q: PLAIN, V: (2, 3.0), DOWN: (2, 3.0)},
    ),
    (
        {"rank_pattern": {"^model.layers.1.self_attn.q_proj": 9}, "use_rslora": True},
        {Q: (4, 3.0), V: (4, 3.0), DOWN: (4, 3.0)},
        {Q: (9, 2.0), V: (4, 3.0), DOWN: (4, 3.0)},
    ),
    ({"layers_to_transform": 1}, {}, {Q: PLAIN, V: PLAIN, DOWN: PLAIN}),
    (
        {"layers_to_transform": [0], "layers_pattern": "layers", "rank_pattern": {"v_proj": 2}},
        {Q: PLAIN, V: (2, 3.0), DOWN: PLAIN},
        {},
    ),
    (
        {"layers_to_transform": [1], "layers_pattern": ["h", "lay.*"], "use_rslora": True},
        {},
        {Q: (4, 3.0), V: (4, 3.0), DOWN: (4, 3.0)},
    ),
]


@pytest.mark.parametrize(("case", "first", "second"), CASES, ids=lambda case: str(case)[:60])
def test_layers_ranks_and_scales_are_those_of_pefts_lora(case, first, second):
    values = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, **case}
    theirs = peft.get_peft_model(base("llama"), peft.LoraConfig(lora_alpha=6, **values))
    wanted = {
        name: (module.r["default"], module.scaling["default"])
        for name, module in theirs.base_model.model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    ours = get_peft_model(base("llama"), PolyConfig(alpha=6, **values)).poly_layers()
    found = {n: (layer.r["default"], layer.scaling["default"]) for n, layer in ours.items()}
    assert found == wanted
    layers = {
        f"model.layers.{i}.{n}": v for i, p in enumerate((first, second)) for n, v in p.items()
    }
    assert found == layers
    for name, layer in ours.items():
        assert layer.poly_lora_A["default"].shape[-1] == layers[name][0]
        assert layer.poly_lora_B["default"].shape[2] == layers[name][0]


def test_the_scale_is_applied():
    config = {"r": 4, "target_modules": [Q], "layers_to_transform": 0, "n_tasks": 6}
    one = poly("llama", **config, alpha=3.0, n_splits=1, poly_type="shared")
    other = poly("llama", **config, alpha=1.5, use_rslora=True, n_splits=1, poly_type="shared")
    wanted = output_of(one, "llama")
    torch.testing.assert_close(output_of(other, "llama"), wanted, rtol=0, atol=0)
    with one.disable_adapter():
        assert (output_of(one, "llama") - wanted).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "pattern", "index"),
    [
        ("model.layers.12.self_attn.q_proj", None, 12),
        ("encoder.block.1.layer.0.SelfAttention.q", None, 1),
        ("h.3.attn.c_attn", None, 3),
        ("lm_head", None, None),
        ("vision.blocks.4.text.layers.2.fc", None, 4),
        ("vision.blocks.4.text.layers.2.fc", "layers", 2),
        ("vision.blocks.4.text.layers.2.fc", ["layers", "blocks"], 2),
        ("layers.5.layers.6.fc", "layers", 5),
        ("model.layers.1.fc", "ayers", None),
        ("a.layers.x.layers.2.fc", "layers|blocks", 2),
        ("a.layers.7", "layers", 7),
    ],
)
def test_layer_index(name, pattern, index):
    assert layer_index(name, pattern) == index


def test_layers_of_t5_are_its_blocks():
    names = find_targets(base("t5"), config_of("t5", layers_to_transform=1))
    assert {layer_index(name) for name in names} == {1}
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}
    assert "decoder.block.1.layer.2.DenseReluDense.wo" in names


def test_layers_go_with_all_linear():
    names = find_targets(base("llama"), PolyConfig(target_modules="all-linear"))
    chosen = PolyConfig(target_modules="all-linear", layers_to_transform=[1])
    assert [*find_targets(base("llama"), chosen)] == [n for n in names if ".layers.1." in n]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rank_pattern": {"q_porj": 2}},
            r"rank_pattern has 'q_porj', which matches no adapted layer. Near misses: \['q_proj'",
        ),
        ({"rank_pattern": {"proj": 2}}, r"rank_pattern has 'proj', which matches no adapted layer"),
        (
            {"alpha_pattern": {"zzz": 2}},
            r"alpha_pattern has 'zzz', .* Adapted ones end in: \['q_proj', 'v_proj', 'down_proj'",
        ),
        (
            {"rank_pattern": {r".*\.1\..*": 2}, "layers_to_transform": [0]},
            r"rank_pattern has '\.\*\\\\\.1\\\\\.\.\*', which matches no adapted layer",
        ),
        (
            {"layers_to_transform": [0, 2]},
            r"layers_to_transform=\[0, 2\]: there is no layer \[2\] with target .*some: \[0, 1\]",
        ),
        (
            {"layers_to_transform": 1, "layers_pattern": "block"},
            r"layers_to_transform=1 and layers_pattern='block': there is no layer \[1\] .*: \[\]",
        ),
        (
            {"layers_to_transform": 5, "alpha_pattern": {"zzz": 2}},
            r"(?s)there is no layer \[5\].*alpha_pattern has 'zzz'",
        ),
    ],
)
def test_what_means_no_layer_is_a_mistake(values, message):
    model = base("llama")
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, config_of("llama", **values))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_on_disk_and_back(tmp_path):
    # alphabetical order would give the down projections another rank
    patterns = {"rank_pattern": {"mlp.down_proj": 2, "down_proj": 5}, "alpha_pattern": {Q: 2.0}}
    model = poly("llama", **patterns, layers_to_transform=[1], use_rslora=True)
    wanted = output_of(model, "llama", task_ids=task_ids())
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["peft_type"] == "POLYLAB"
    loaded = PolyModel.from_pretrained(base("llama"), tmp_path)
    assert torch.equal(output_of(loaded, "llama", task_ids=task_ids()), wanted)
    assert loaded.peft_config["default"].rank_pattern == patterns["rank_pattern"]
    layer = loaded.poly_layers()["model.layers.1.mlp.down_proj"]
    assert (layer.r["default"], layer.scaling["default"]) == (2, 1 / math.sqrt(2))
    config, tensors = read_adapter(tmp_path)
    config.rank_pattern = {"down_proj": 5}
    with pytest.raises(ValueError, match=r"shape: .*down_proj.*A is .* 2\] in the file, .* 5\] in"):
        check_tensors(tensors, config, model=base("llama"))


@pytest.mark.parametrize("size", [640, 896, 1152, 1408])
def test_a_header_of_any_length_is_no_pickle(size, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"b": "c"})
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip().ljust(size)
    path.write_bytes(size.to_bytes(8, "little") + header + content[end:])
    tensors, metadata = read_tensors(tmp_path, path.name)
    assert (tensors["a"].tolist(), metadata) == ([1, 1], {"b": "c"})


@pytest.mark.parametrize(
    "changes",
    [
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2.0}},
        {"use_rslora": True},
        {"layers_to_transform": 0},
    ],
    ids=str,
)
def test_peft_is_not_given_what_its_poly_lacks(changes, tmp_path):
    poly("llama", **changes).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["peft_type"] == "POLYLAB"
    assert values.items() >= changes.items()


def test_two_adapters_have_ranks_of_their_own():
    model = poly("llama", rank_pattern={"q_proj": 2})
    model.add_adapter("wide", config_of("llama", r=6, alpha_pattern={"v_proj": 3.0}))
    layers = model.poly_layers()
    q, v = layers[f"model.layers.0.{Q}"], layers[f"model.layers.0.{V}"]
    assert (q.r, v.r) == ({"default": 2, "wide": 6}, {"default": 3, "wide": 6})
    assert v.scaling == {"default": 1 / 3, "wide": 0.5}


def test_the_functions_alone():
    config = PolyConfig(r=8, alpha=4, rank_pattern={"b": 2}, alpha_pattern={"a.b": 6})
    assert [rank_of(name, config) for name in ("a.b", "x.b", "bb")] == [2, 2, 8]
    assert [scaling_of(name, config) for name in ("a.b", "x.b", "bb")] == [3.0, 2.0, 0.5]
