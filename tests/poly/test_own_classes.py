"""Classes of the user's own in an adapter: what files may name, and what is tried first."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from polylab import PolyModel, get_peft_model
from polylab.poly.layers import PolyLayer
from tests.poly.tiny import base, config_of, inputs_of, output_of, poly, task_ids

ROUTER = {"_target_": "tests.testing.own.Task", "noise": "straight"}
NOISE = {"_target_": "polylab.poly.routers.StraightThrough", "temperature": 0.5}
COMBINE = {"_target_": "polylab.poly.combining.SumProducts"}
PRIORS = {"mine": {"_target_": "polylab.poly.priors.Entropy", "weight": 0.1}}
OWN = [
    ("router", ROUTER, "router._target_='tests.testing.own.Task'"),
    ("noise", NOISE, "noise._target_='polylab.poly.routers.StraightThrough'"),
    ("combine", COMBINE, "combine._target_='polylab.poly.combining.SumProducts'"),
    ("priors", PRIORS, "priors.mine._target_='polylab.poly.priors.Entropy'"),
]


@pytest.mark.parametrize(("option", "value", "message"), OWN, ids=[own[0] for own in OWN])
def test_files_name_no_code_unasked(option, value, message, tmp_path):
    model = poly("gpt2" if option == "router" else "llama", **{option: value})
    kind = "gpt2" if option == "router" else "llama"
    model.save_pretrained(tmp_path)
    in_metadata = option in ("noise", "priors")  # a POLY config holds PEFT's keys only
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (option in values) is not in_metadata
    with pytest.raises(ValueError, match="names code to import and run") as caught:
        PolyModel.from_pretrained(base(kind), tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "pass trust_code=True" in str(caught.value)
    loaded = PolyModel.from_pretrained(base(kind), tmp_path, trust_code=True)
    wanted = output_of(model.eval(), kind, task_ids=task_ids())
    assert torch.equal(output_of(loaded, kind, task_ids=task_ids()), wanted)
    with pytest.raises(ValueError, match="names code to import and run"):
        loaded.load_adapter(tmp_path, "second")
    loaded.load_adapter(tmp_path, "second", trust_code=True)
    loaded.set_adapter("second")
    assert torch.equal(output_of(loaded, kind, task_ids=task_ids()), wanted)


def test_metadata_of_the_weights_cannot_smuggle_code(tmp_path):
    """The metadata override what the configuration says."""
    poly("llama").save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    extra = {"polylab": json.dumps({"combine": {"_target_": "antigravity.Rule"}})}
    save_file(tensors, path, metadata={"format": "pt", **extra})
    with pytest.raises(ValueError, match=r"combine\._target_='antigravity\.Rule'"):
        PolyModel.from_pretrained(base("llama"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": {"_target_": "nowhere.Mine"}}, r"router\._target_='nowhere\.Mine' cannot be"),
        ({"router": {"_target_": "tests.testing.own.Taks"}}, "Did you mean 'Task'"),
        ({"combine": {"_target_": "torch.nn.Linear"}}, "not a subclass of polylab.poly.combining"),
        ({"noise": {**NOISE, "heat": 1}}, r"unexpected keyword argument 'heat'"),
        (
            {"router": {"_target_": "tests.testing.test_routers.Flat"}},
            r"for task_ids of shape \[4\] gives shape \[4, 10\]; .*\[4, 2, 5\] is needed",
        ),
        (
            {"router": {"_target_": "tests.testing.own.Task"}, "temperature": 2.0},
            "temperature=2.0 has no effect with a router of your own",
        ),
    ],
)
def test_a_wrong_class_changes_no_model(changes, message):
    model = base("llama")
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, config_of("llama", **changes))
    assert not any(isinstance(part, PolyLayer) for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    whole = poly("llama")
    with pytest.raises(ValueError, match=message):
        whole.add_adapter("second", config_of("llama", **changes))
    assert [*whole.peft_config] == ["default"]


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_trying_draws_no_random_number(kind):
    """An own class that is the built-in one starts from, and computes, the same to the last bit."""
    own = get_peft_model(base(kind), config_of(kind, router=ROUTER))
    ours = get_peft_model(base(kind), config_of(kind, noise="straight_through"))
    for (name, found), wanted in zip(own.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(found, wanted), name
    losses = []
    for model in (own, ours):
        torch.manual_seed(5)
        losses.append(model.train()(**inputs_of(kind), task_ids=task_ids()).loss)
    assert torch.equal(*losses)


TOKENS = {"_target_": "tests.testing.own.TaskAndInput", "reads": "tokens"}
PROMPTS = {"_target_": "tests.testing.own.TaskAndInput"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"router": TOKENS, "granularity": "block"},
            r"granularity='block'.*granularity='linear'\.$",
        ),
        ({"router": PROMPTS, "granularity": "model"}, "granularity='model'.*or router_input='emb"),
        ({"router": TOKENS, "router_input": "embeddings"}, "router_input='embeddings' does not go"),
    ],
)
def test_layers_share_a_router_only_with_its_input(changes, message):
    with pytest.raises(ValueError, match=message):
        poly("llama", **changes)
    assert poly("llama", router=PROMPTS, granularity="model", router_input="embeddings")


@pytest.mark.parametrize("router", [TOKENS, PROMPTS, None])
def test_tokens_of_a_decoders_wide_layers(router):
    """Beside an encoder too, a router of tokens reads the layer's own input, of its own width."""
    changes = {"router": router} if router else {"poly_type": "mope", "router_level": "token"}
    model = poly("t5", **changes)
    weights = model.mixing_weights(**inputs_of("t5"), task_ids=task_ids())
    wo = weights["decoder.block.0.layer.2.DenseReluDense.wo"]
    lead = (4,) if router is PROMPTS else (4, 5)
    assert wo.shape == (*lead, 2, 5)
    alone = {name: value[1:2] for name, value in inputs_of("t5").items()}
    again = model.mixing_weights(**alone, task_ids=task_ids()[1:2])
    torch.testing.assert_close(again["decoder.block.0.layer.2.DenseReluDense.wo"], wo[1:2])


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_beams_keep_the_task_of_a_router_that_reads_both(kind):
    model = poly(kind, router=PROMPTS)
    prompt = {"input_ids": inputs_of(kind)["input_ids"][:, :3]}
    options = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2}
    mask = torch.ones_like(prompt["input_ids"])
    together = model.generate(**prompt, attention_mask=mask, task_ids=task_ids(), **options)
    for row in range(4):
        rows = slice(row, row + 1)
        alone = model.generate(
            input_ids=prompt["input_ids"][rows],
            attention_mask=mask[rows],
            task_ids=task_ids()[rows],
            **options,
        )
        wanted = together[2 * row : 2 * row + 2]
        width = min(alone.shape[1], wanted.shape[1])
        assert torch.equal(alone[:, :width], wanted[:, :width])
