"""Blocks compiled one by one: eager's gradients, one graph for all alike, no graph too many."""

import copy

import pytest
import torch
from transformers import T5ForConditionalGeneration

from polylab import compile_blocks, get_peft_model
from tests.poly.tiny import N_TASKS, base, config_of, gradients, inputs_of, poly, task_ids

pytestmark = pytest.mark.filterwarnings("ignore")
COMPILER = {"backend": "aot_eager"}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def loss_and_gradients(model, kind, seed=2, rows=None, **ids):
    model.zero_grad()
    torch.manual_seed(3)
    inputs = {k: v[:rows] for k, v in inputs_of(kind, seed).items()}
    loss = model(**inputs, use_cache=False, **ids).loss
    loss.backward()
    return loss.detach(), gradients(model)


def check(model, kind, rows=None, **ids):
    wanted = loss_and_gradients(model, kind, rows=rows, **ids)
    count = compile_blocks(model, **COMPILER)
    found = loss_and_gradients(model, kind, rows=rows, **ids)
    torch.testing.assert_close(found[0], wanted[0])
    for name, grad in wanted[1].items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-5)
    return count


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_splits": 1, "noise": "none", "alpha": 5.0},
        {"poly_type": "mope"},
        {"poly_type": "private"},
        {"granularity": "model"},
        {"combine": "products"},
        {"dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]},
    ],
    ids=str,
)
def test_gradients_of_eager_mode(changes):
    model = poly("llama", **changes).train()
    mask = torch.arange(7).expand(4, -1) < 3
    ids = {"prompt_mask": mask} if changes.get("poly_type") == "mope" else {}
    if changes.get("poly_type") != "mope":
        ids["task_ids"] = task_ids()
    assert check(model, "llama", **ids) == 2
    # the first block's input needs no gradient
    assert graphs() == 2


@pytest.mark.parametrize("poly_type", ["poly", "mope"])
def test_encoder_decoder(poly_type):
    model = poly("t5", poly_type=poly_type).train()
    ids = {"task_ids": task_ids()} if poly_type == "poly" else {}
    assert check(model, "t5", **ids) == 4
    assert graphs() == 4


def test_no_graph_after_the_first_step():
    model = poly("llama").train()
    compile_blocks(model, **COMPILER)
    loss_and_gradients(model, "llama", task_ids=task_ids())
    before = graphs()
    for seed in range(3):
        loss_and_gradients(model, "llama", seed, task_ids=(task_ids() + seed) % N_TASKS)
    assert graphs() == before


def test_blocks_that_are_alike_share_a_graph_also_with_batches_of_several_sizes():
    config = copy.deepcopy(base("t5").config)
    config.num_layers = config.num_decoder_layers = 5
    torch.manual_seed(0)
    names = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
    adapter = config_of("t5", init_weights=False, target_modules=names)
    model = get_peft_model(T5ForConditionalGeneration(config), adapter).train()
    assert compile_blocks(model, **COMPILER) == 10
    loss_and_gradients(model, "t5", task_ids=task_ids())
    assert graphs() == 4  # the first block of each stack has position biases
    for rows in (3, 2, 4):
        loss_and_gradients(model, "t5", rows=rows, task_ids=task_ids()[:rows])
    assert graphs() == 8


def test_another_batch_size_makes_one_graph_more_of_each_and_then_none():
    model = poly("llama").train()
    compile_blocks(model, **COMPILER)
    for rows in (4, 3):
        loss_and_gradients(model, "llama", rows=rows, task_ids=task_ids()[:rows])
    assert graphs() == 4
    for rows in (2, 4, 3):
        loss_and_gradients(model, "llama", rows=rows, task_ids=task_ids()[:rows])
    assert graphs() == 4


def test_evaluation_stays_eager():
    model = poly("llama")
    wanted = model(**inputs_of("llama"), task_ids=task_ids()).logits
    compile_blocks(model, **COMPILER)
    with torch.no_grad():
        assert torch.equal(model(**inputs_of("llama"), task_ids=task_ids()).logits, wanted)
    model.train()
    with model.routing("uniform"):
        model(**inputs_of("llama"), task_ids=task_ids(), use_cache=False).loss.backward()
    assert graphs() == 0


def test_plain_models_are_compiled_too():
    model = base("llama").train()
    wanted = model(**inputs_of("llama"), use_cache=False).loss
    assert compile_blocks(model, **COMPILER) == 2
    torch.testing.assert_close(model(**inputs_of("llama"), use_cache=False).loss, wanted)
    assert graphs() == 1


def test_refused():
    with pytest.raises(ValueError, match="Linear has no blocks to compile"):
        compile_blocks(torch.nn.Linear(2, 3))
    model = poly("llama").train()
    compile_blocks(model, **COMPILER)
    with pytest.raises(ValueError, match="LlamaDecoderLayer of the model is compiled already"):
        compile_blocks(model, **COMPILER)
    tokens = task_ids()[:, None].expand(-1, 7).contiguous()
    with pytest.raises(ValueError, match="one task id per row, and got one per token"):
        model(**inputs_of("llama"), task_ids=tokens, use_cache=False)
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="cannot be checkpointed"):
        model(**inputs_of("llama"), task_ids=task_ids(), use_cache=False)
    other = poly("llama")
    other.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="cannot be checkpointed"):
        compile_blocks(other)
    routed = poly("llama", poly_type="mope", priors={"load_balance": 0.1})
    compile_blocks(routed.train(), **COMPILER)
    with pytest.raises(ValueError, match="cannot note the weights"):
        routed(**inputs_of("llama"), use_cache=False)
