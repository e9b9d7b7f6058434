"""Files of mttl's form give a model that computes what mttl computes in evaluation."""

import copy
import pathlib

import pytest
import torch

from polylab import from_mttl
from tests.poly.tiny import N_SKILLS, N_SPLITS, N_TASKS, RANK, base, output_of, poly, task_ids

NAMES = ["add", "copy", "first", "last", "sort", "upper"]


def state_of(model, layout, prefix="model."):
    """The adapter of a polylab model under mttl's names, in one of its layouts."""
    state = {}
    for name, layer in model.poly_layers().items():
        a, b = layer.poly_lora_A["default"].detach(), layer.poly_lora_B["default"].detach()
        logits = layer.router("default").module_logits.detach()
        if layout == "main":
            a, b = a.permute(1, 0, 2, 3), b.permute(1, 2, 0, 3)
            logits = torch.cat([logits, torch.zeros(1, logits.shape[1])])  # the average's row
        inner = ".experts" if layout == "main" else ""
        state[f"{prefix}{name}{inner}.lora_a"] = a.clone()
        state[f"{prefix}{name}{inner}.lora_b"] = b.clone()
        state[f"{prefix}{name}.selector.module_logits"] = logits.clone()
    return state


def update_of(x, state, name, task, *, layout, scale):
    """One example's update by mttl's definition of its tensors: head by head, skill by skill."""
    inner = ".experts" if layout == "main" else ""
    a, b = state[f"model.{name}{inner}.lora_a"], state[f"model.{name}{inner}.lora_b"]
    gates = torch.sigmoid(state[f"model.{name}.selector.module_logits"][task])
    hidden, mixed_b = torch.zeros(len(x), RANK), []
    for q, x_block in enumerate(x.chunk(N_SPLITS, dim=-1)):
        z = gates[q * N_SKILLS : (q + 1) * N_SKILLS]
        w = z / (z.sum() + (1e-12 if layout == "release" else 1e-8))
        a_q, b_q = (a[q], b[q]) if layout == "release" else (a[:, q], b[:, :, q])
        hidden += x_block @ sum(w[s] * a_q[s] for s in range(N_SKILLS))
        mixed_b.append(sum(w[s] * b_q[s] for s in range(N_SKILLS)))
    return scale * torch.cat([hidden @ block for block in mixed_b], dim=-1)


@pytest.mark.parametrize("layout", ["release", "main"])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_model_computes_the_same(kind, layout, tmp_path, tolerance):
    alpha = 1.0 if layout == "release" else 16.0
    ours = poly(kind, alpha=alpha)
    state = state_of(ours, layout)
    torch.save(
        {"state_dict": state, "hyper_parameters": {"lora_alpha": alpha}}, tmp_path / "m.ckpt"
    )
    loaded = from_mttl(tmp_path / "m.ckpt", base(kind), task_names=NAMES).eval()
    assert torch.equal(
        output_of(loaded, kind, task_ids=task_ids()), output_of(ours, kind, task_ids=task_ids())
    )
    config = loaded.peft_config["default"]
    assert (config.r, config.n_tasks, config.n_skills, config.n_splits) == (3, 6, 5, 2)
    assert (config.alpha, config.init, config.task_names) == (alpha, "mttl", NAMES)
    assert config.noise == ("relaxed_bernoulli" if layout == "release" else "none")
    for name, layer in loaded.poly_layers().items():
        x = torch.randn(4, 7, layer.in_features)
        found = layer(x, task_ids=task_ids())
        for row, task in enumerate(task_ids()):
            update = update_of(x[row], state, name, task, layout=layout, scale=alpha / RANK)
            wanted = layer.base_layer(x)[row] + update
            torch.testing.assert_close(found[row], wanted, **tolerance)


def test_a_bare_state_dict_of_main_with_its_average_row(tmp_path):
    ours = poly("llama", alpha=2.0)
    torch.save(state_of(ours, "main", prefix=""), tmp_path / "m.bin")
    with pytest.raises(ValueError, match=r"m.bin does not say its lora_alpha: give alpha= .*16"):
        from_mttl(tmp_path / "m.bin", base("llama"))
    loaded = from_mttl(tmp_path / "m.bin", base("llama"), alpha=2).eval()
    assert loaded.peft_config["default"].n_tasks == N_TASKS + 1
    weights = next(iter(loaded.task_weights().values()))
    torch.testing.assert_close(weights[N_TASKS], torch.full((N_SPLITS, N_SKILLS), 1 / N_SKILLS))
    assert torch.equal(
        output_of(loaded, "llama", task_ids=task_ids()),
        output_of(ours, "llama", task_ids=task_ids()),
    )


def test_one_router_for_all_layers(tmp_path):
    ours = poly("llama")
    state = state_of(ours, "release")
    keys = [key for key in state if key.endswith("module_logits")]
    for key in keys[1:]:
        del state[key]
    torch.save({"state_dict": state}, tmp_path / "m.ckpt")
    loaded = from_mttl(tmp_path / "m.ckpt", base("llama"))
    assert loaded.peft_config["default"].granularity == "model"
    routers = {layer.router("default") for layer in loaded.poly_layers().values()}
    assert [torch.equal(router.module_logits, state[keys[0]]) for router in routers] == [True]
    state[keys[3]] = state[keys[0]]
    torch.save({"state_dict": state}, tmp_path / "m.ckpt")
    with pytest.raises(
        ValueError, match=r"among groups of layers.*\nmissing: .*module_logits of mo"
    ):
        from_mttl(tmp_path / "m.ckpt", base("llama"))


def test_weights_of_the_base_must_be_the_models(tmp_path):
    state, model = state_of(poly("llama"), "release"), base("llama")
    q = "model.layers.0.self_attn.q_proj"
    for key in (f"{q}.weight", f"{q}.linear_layer.weight", f"{q}.layer.weight", "lm_head.weight"):
        tensor = model.state_dict()[key.replace(".linear_layer", "").replace("proj.layer", "proj")]
        state[f"model.{key}"] = tensor.clone()
    torch.save({"module": state}, tmp_path / "m.ckpt")
    assert from_mttl(tmp_path / "m.ckpt", base("llama")).poly_layers()
    state["model.lm_head.weight"][1, 2] += 1
    torch.save({"module": state}, tmp_path / "m.ckpt")
    refused(tmp_path / "m.ckpt", r"unexpected, or not the base's: model.lm_head.weight \[40, 16\]")


def refused(path, message, **options):
    model = base("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        from_mttl(path, model, **options)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


Q0 = "model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{Q0}.lora_b"), r"missing: b of model.layers.0.self_attn.q_proj"),
        (lambda s: s.update({"model.head.lora_a": torch.ones(2)}), r"no such layer: model.head"),
        (lambda s: s[f"{Q0}.lora_a"].fill_(float("inf")), r"not finite.*q_proj.lora_a"),
        (
            lambda s: s.update({f"{Q0}.lora_a": torch.ones(2, 5, 9, 3)}),
            r"q_proj: a \[2, 5, 9, 3\], b \[2, 5, 3, 8\], with \(in, out\) = \(16, 16\)",
        ),
        (lambda s: s.update({f"{Q0}.lora_a": torch.ones(16, 3)}), r"q_proj: a \[16, 3\], b"),
        (
            lambda s: s.update({f"{Q0}.selector.module_logits": torch.ones(6, 9)}),
            r"logits \[6, 9\]",
        ),
        (
            lambda s: s.update({f"{Q0}.selector.module_logits": torch.ones(7, 10)}),
            r"\(splits, skills, rank, tasks\): \[\(2, 5, 3, 6\), \(2, 5, 3, 7\)\]",
        ),
        (dict.clear, r"it has no lora_a at all"),
    ],
)
def test_what_does_not_fit(change, message, tmp_path):
    state = state_of(poly("llama"), "release")
    change(state)
    torch.save({"state_dict": state}, tmp_path / "m.ckpt")
    refused(tmp_path / "m.ckpt", message)


@pytest.mark.parametrize(
    "options",
    [
        {"poly_average_correction": True},
        {"module_logits_l2_norm": True},
        {"poly_use_shared_skill": True},
        {"router_selector": "private"},
    ],
)
def test_another_routing_is_refused(options, tmp_path):
    state = state_of(poly("llama"), "release")
    torch.save({"state_dict": state, "hyper_parameters": options}, tmp_path / "m.ckpt")
    ((key, value),) = options.items()
    refused(tmp_path / "m.ckpt", rf"trained with {key}={value!r}: these weights")


def test_shapes_that_fit_both_layouts(tmp_path):
    ours = poly("llama", n_skills=2, n_splits=2, r=2)
    torch.save(state_of(ours, "release"), tmp_path / "m.pt")
    refused(tmp_path / "m.pt", r"fit both layouts, release and main .*: give layout=")
    refused(tmp_path / "m.pt", r"layout='new' is not valid: give one of", layout="new")
    loaded = from_mttl(tmp_path / "m.pt", base("llama"), layout="release").eval()
    assert torch.equal(
        output_of(loaded, "llama", task_ids=task_ids()),
        output_of(ours, "llama", task_ids=task_ids()),
    )


def test_files_that_are_no_tensors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.ckpt: give a checkpoint"):
        from_mttl(tmp_path / "nowhere.ckpt", base("llama"))
    path = tmp_path / "m.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": pathlib.PurePosixPath("a")}, path)
    refused(path, r"m.ckpt is damaged, or needs more than tensors to open.*state_dict alone")
    path.write_bytes(b"nothing")
    refused(path, r"m.ckpt is damaged, or needs more")
    torch.save([torch.ones(2)], path)
    refused(path, r"m.ckpt holds a list; a state dict is needed")
