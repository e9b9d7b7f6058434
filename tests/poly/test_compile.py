"""One graph, no breaks, and the gradients of eager mode.

Run without jaxtyping's import hook, whose checks dynamo cannot trace.
"""

import copy

import pytest
import torch
from transformers import CompileConfig

from polylab.poly.routers.rows import rows_of
from tests.poly.tiny import gradients, inputs_of, poly, task_ids

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def logits_and_gradients(model, call, kind, **kwargs):
    model.zero_grad()
    torch.manual_seed(3)
    inputs = {k: v for k, v in inputs_of(kind).items() if k != "labels"}
    logits = call(**inputs, **kwargs).logits
    logits.square().sum().backward()
    return logits.detach(), gradients(model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("changes", [{}, {"poly_type": "mope"}, {"noise_source": "keyed"}])
def test_fullgraph(changes, training, tolerance):
    model = poly("llama", **{"noise": "none", **changes}).train(training)
    if "noise_source" in changes:
        model = poly("llama", **changes).train(training)
        model.set_noise_key(1, 2)
    model.config.use_cache = False
    ids = {"task_ids": task_ids(), "prompt_mask": torch.arange(7).expand(4, -1) < 3}
    wanted, wanted_grads = logits_and_gradients(model, copy.copy(model), "llama", **ids)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, found_grads = logits_and_gradients(model, compiled, "llama", **ids)
    torch.testing.assert_close(found, wanted, **tolerance)
    for name, grad in wanted_grads.items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(found_grads[name], grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "poly_type"), [("llama", "mope"), ("gpt2", "private")])
def test_compiled_decoding_uses_one_graph_for_all_ids(kind, poly_type):
    torch._dynamo.utils.counters.clear()
    model = poly(kind, poly_type=poly_type)
    compiling = CompileConfig(backend="aot_eager", fullgraph=True, mode=None)
    compiling._compile_all_devices = True  # as on a GPU, where generate compiles by itself
    static = {"cache_implementation": "static", "compile_config": compiling}
    for call in range(3):
        prompts = inputs_of(kind, call)["input_ids"]
        how = {"task_ids": (task_ids() + call) % 6, "attention_mask": torch.ones_like(prompts)}
        how |= {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        found = model.generate(prompts, **how, **static)
        assert torch.equal(found, model.generate(prompts, **how))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiled_rows_of_tables_are_the_same():
    flat, ids = torch.randn(3, 5, 4), torch.tensor([4, 0, 4])
    compiled = torch.compile(rows_of, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled([*flat], ids), rows_of([*flat], ids))
