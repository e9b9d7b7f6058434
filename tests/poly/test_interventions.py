"""What-if routing: what each spec does to the weights, on every family and router."""

import pytest
import torch

from polylab.poly.alignment import align_skills
from tests.poly.tiny import N_SKILLS, N_TASKS, inputs_of, output_of, poly, task_ids

KINDS = ["t5", "llama", "gpt2"]
NAMES = ["add", "copy", "first", "last", "sort", "upper"]
SPECS = ["uniform", "rounded", "top1", "shuffled", "task:sort", "task:2", "drop:2"]


def weights_of(model, spec="learned", kind="llama", ids=None):
    with model.routing(spec):
        inputs = {k: v for k, v in inputs_of(kind).items() if k != "labels"}
        return model.mixing_weights(**inputs, task_ids=task_ids() if ids is None else ids)


def first(weights):
    return next(iter(weights.values()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poly_type", ["poly", "private"])
@pytest.mark.parametrize("spec", SPECS)
def test_outputs_change_and_come_back(kind, poly_type, spec):
    model = poly(kind, poly_type=poly_type, task_names=NAMES)
    if poly_type == "private" and spec in ("rounded", "top1"):
        return  # one-hot already
    learned = output_of(model, kind, task_ids=task_ids())
    for training in (False, True):
        with model.train(training).routing(spec) as inside:
            assert inside is model
            changed = output_of(model, kind, task_ids=task_ids())
            again = output_of(model, kind, task_ids=task_ids())
        assert torch.equal(changed, again)  # without noise, in training too
        assert (changed - learned).abs().max() > 1e-4
    model.eval()
    assert torch.equal(output_of(model, kind, task_ids=task_ids()), learned)
    with model.routing("learned"):
        assert torch.equal(output_of(model, kind, task_ids=task_ids()), learned)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", ["uniform", "rounded", "top1", "shuffled"])
def test_generation_and_prompt_routing_change_too(kind, spec):
    for poly_type in ("poly", "mope"):
        model, prompts = poly(kind, poly_type=poly_type), inputs_of(kind)["input_ids"]
        logits = []
        for name in ("learned", spec):
            with model.routing(name):
                output = model.generate(
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    task_ids=task_ids(),
                    max_new_tokens=2,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
                logits.append(output.logits[0])
        assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_uniform():
    for poly_type, skills in (("poly", N_SKILLS), ("private", N_TASKS), ("mope", N_SKILLS)):
        for w in weights_of(poly("llama", poly_type=poly_type), "uniform").values():
            assert torch.equal(w, torch.full((4, 2, skills), 1 / skills))


def test_private_skills_are_mixed_where_the_weights_are_not_one_hot(tolerance):
    model = poly("llama", poly_type="private", target_modules=["layers.0.self_attn.q_proj"])
    (layer,) = model.poly_layers().values()
    seen = []
    layer.register_forward_hook(lambda _module, args, y: seen.append((args[0], y)))
    with model.routing("uniform"):
        output_of(model, "llama")
    (x, y), a, b = seen[0], layer.poly_lora_A["default"], layer.poly_lora_B["default"]
    a, b = a.mean(1).flatten(0, 1), torch.cat([*b.mean(1)], 1)
    torch.testing.assert_close(y, layer.base_layer(x) + x @ a @ b / 3, **tolerance)


def test_top1():
    model = poly("llama")
    learned, top = first(weights_of(model)), first(weights_of(model, "top1"))
    assert torch.equal(top.argmax(-1), learned.argmax(-1))
    assert torch.equal(top.sum(-1), torch.ones(4, 2))
    assert top.max() == 1


def test_rounded(tolerance):
    model = poly("llama")
    router = next(iter(model.poly_layers().values())).poly_router["default"]
    with torch.no_grad():
        router.module_logits[0] = torch.tensor([1.0, -1, 2, -3, -1, -1, -2, -1, -2, -3])
    w = first(weights_of(model, "rounded"))[0]
    wanted = torch.tensor([[0.5, 0, 0.5, 0, 0], [0.0] * 5])  # no active skill: no update
    torch.testing.assert_close(w, wanted, **tolerance)


def test_rounded_without_gates_keeps_what_weighs_its_uniform_share(tolerance):
    model = poly("llama", poly_type="mope")
    learned, w = first(weights_of(model)), first(weights_of(model, "rounded"))
    active = (learned >= 1 / N_SKILLS).float()
    torch.testing.assert_close(w, active / active.sum(-1, keepdim=True), **tolerance)


def test_shuffled_moves_every_task_and_is_a_permutation():
    model, ids = poly("llama"), torch.arange(N_TASKS)
    learned = model.task_weights()
    with model.routing("shuffled"):
        shuffled = model.mixing_weights(task_ids=ids)
    used = set()
    for task in range(N_TASKS):
        sources = [
            s
            for s in range(N_TASKS)
            if all(torch.allclose(shuffled[name][task], learned[name][s]) for name in learned)
        ]  # one permutation for all layers
        assert len(sources) == 1
        assert sources != [task]
        used.update(sources)
    assert used == set(range(N_TASKS))


def test_shuffled_without_tasks_swaps_rows():
    model = poly("llama", poly_type="mope")
    learned, shuffled = first(weights_of(model)), first(weights_of(model, "shuffled"))
    assert torch.equal(shuffled, learned.roll(2, dims=0))


def test_task():
    model = poly("llama", task_names=NAMES)
    for spec, task in (("task:sort", 4), ("task:2", 2)):
        w, learned = weights_of(model, spec), model.task_weights()
        for name in w:
            torch.testing.assert_close(w[name], learned[name][task].expand(4, -1, -1))


@pytest.mark.parametrize("spec", ["uniform", "task:copy"])
def test_ids_that_do_not_matter_need_not_be_given(spec):
    model = poly("llama", task_names=NAMES)
    with model.routing(spec):
        wanted = output_of(model, "llama", task_ids=task_ids())
        assert torch.equal(output_of(model, "llama"), wanted)
    with model.routing("top1"), pytest.raises(ValueError, match="task_ids=None"):
        output_of(model, "llama")


@pytest.mark.parametrize("n_splits", [1, 2])
def test_drop_an_aligned_skill(n_splits, tolerance):
    model = poly("llama", n_splits=n_splits)
    perms, learned = align_skills(model.task_weights()), weights_of(model)
    dropped = weights_of(model, "drop:3")
    assert len({tuple(perm.flatten().tolist()) for perm in perms.values()}) > 1
    for name, w in dropped.items():
        wanted = learned[name].clone()
        for q in range(n_splits):
            wanted[:, q, perms[name][q, 3]] = 0
        wanted = wanted / wanted.sum(-1, keepdim=True)
        torch.testing.assert_close(w, wanted, **tolerance)


def test_drop_in_one_layer(tolerance):
    model = poly("llama")
    learned = weights_of(model)
    for layer in ("model.layers.1.self_attn.v_proj", "layers.1.self_attn.v_proj"):
        for name, w in weights_of(model, f"drop:{layer}/4").items():
            wanted = learned[name].clone()
            if name == "model.layers.1.self_attn.v_proj":
                wanted[:, :, 4] = 0
                wanted = wanted / wanted.sum(-1, keepdim=True)
            torch.testing.assert_close(w, wanted, **tolerance)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", r"routing 'nothing' is unknown. Valid ones: learned, uniform"),
        ("task:", r"routing 'task:' is unknown"),
        ("drop:", r"routing 'drop:' is unknown"),
        ("task:srt", r"routing 'task:srt': no task 'srt'.*'sort'.*0 to 5"),
        ("task:6", r"no task '6'.*0 to 5"),
        ("task:-1", r"no task '-1'.*0 to 5"),
        ("drop:5", r"no skill '5'. Give an index from 0 to 4"),
        ("drop:x", r"no skill 'x'. Give an index from 0 to 4"),
        ("drop:layers.9.self_attn.v_proj/1", r"no layer 'layers.9.self_attn.v_proj'.*v_proj"),
        ("drop:v_proj/1", r"layer 'v_proj' is ambiguous.*layers.0.*layers.1"),
        ("drop:model.layers.0.self_attn.v_proj/7", r"no skill '7'. Give an index from 0 to 4"),
    ],
)
def test_wrong_specs_are_refused(spec, message):
    model = poly("llama", task_names=NAMES)
    with pytest.raises(ValueError, match=message), model.routing(spec):
        pass


@pytest.mark.parametrize("poly_type", ["poly", "mope"])
def test_drop_matches_skills_by_the_weights_that_are_given(poly_type):
    model = poly("llama", poly_type=poly_type)
    draw = torch.Generator().manual_seed(3)
    given = {n: torch.rand(3, 2, N_SKILLS, generator=draw) for n in model.poly_layers()}
    inputs = {k: v for k, v in inputs_of("llama").items() if k != "labels"}
    with model.routing("drop:2", task_weights=given):
        found = model.mixing_weights(**inputs, task_ids=task_ids())
    for name, perm in align_skills(given).items():
        for head in range(2):
            assert not found[name][:, head, perm[head, 2]].any()
        assert ((found[name] > 0).sum(-1) == N_SKILLS - 1).all()


def test_what_prompt_routing_cannot_do_is_refused():
    model = poly("llama", poly_type="mope")
    with pytest.raises(ValueError, match=r"'task:1': this adapter is not routed by task"):
        model.routing("task:1").__enter__()
    with pytest.raises(ValueError, match=r"'drop:1'.*drop:LAYER/SKILL, or task_weights="):
        model.routing("drop:1").__enter__()
    name = next(iter(model.poly_layers()))
    assert weights_of(model, f"drop:{name}/1")[name][..., 1].max() == 0


def test_without_names_a_task_is_an_id():
    with pytest.raises(ValueError, match=r"no task 'sort'. Give an id from 0 to 5"):
        poly("llama").routing("task:sort").__enter__()
    assert poly("llama", task_names=NAMES).peft_config["default"].task_names == NAMES


def test_overrides_nest():
    model = poly("llama", task_names=NAMES)
    with model.routing("uniform"):
        uniform = output_of(model, "llama", task_ids=task_ids())
        with model.routing("top1"):
            assert not torch.equal(output_of(model, "llama", task_ids=task_ids()), uniform)
        assert torch.equal(output_of(model, "llama", task_ids=task_ids()), uniform)


@pytest.mark.parametrize("spec", SPECS[:4])
def test_a_shared_skill_has_nothing_to_change(spec):
    model = poly("llama", poly_type="shared")
    learned = output_of(model, "llama")
    with model.routing(spec):
        assert torch.equal(output_of(model, "llama"), learned)


def test_task_weights_and_gates():
    for poly_type, skills in (("poly", N_SKILLS), ("private", N_TASKS), ("shared", 1)):
        model = poly("t5", poly_type=poly_type).train()
        weights = model.task_weights()
        assert list(weights) == list(model.poly_layers())
        for name, w in weights.items():
            assert w.shape == (N_TASKS, 2, skills)
            assert not w.requires_grad
            every = model.mixing_weights(task_ids=torch.arange(N_TASKS))[name]
            if poly_type != "shared":
                torch.testing.assert_close(w, every)
        gates = model.task_gates()
        if poly_type != "poly":
            assert gates == {}
            continue
        for name, z in gates.items():
            logits = model.poly_layers()[name].poly_router["default"].module_logits
            assert torch.equal(z, torch.sigmoid(logits).view(N_TASKS, 2, N_SKILLS))


def test_mixing_weights_are_without_noise_in_training():
    model = poly("llama")
    wanted = weights_of(model)
    state = torch.get_rng_state()
    found = weights_of(model.train())
    assert all(torch.equal(found[name], w) for name, w in wanted.items())
    assert torch.equal(torch.get_rng_state(), state)
    with model.disable_adapter():
        assert torch.equal(first(weights_of(model)), first(wanted))
