"""torch.export with task_ids as an input, and one compiled graph for all ids."""

import pytest
import torch
from torch.export import Dim

from tests.poly.tiny import gradients, inputs_of, poly, task_ids

pytestmark = pytest.mark.filterwarnings("ignore")  # dynamo's


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def call_of(kind, ids, seed=2):
    inputs = inputs_of(kind, seed)
    if kind != "t5":  # GPT-2's loss logs a warning, which dynamo refuses
        del inputs["labels"]
    return {**inputs, "task_ids": ids, "use_cache": False}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"n_splits": 1}),
        ("gpt2", {"poly_type": "private"}),
        ("gpt2", {"poly_type": "mope"}),
        ("t5", {}),
    ],
)
def test_export_with_any_batch(kind, changes, logits_tolerance):
    model, given = poly(kind, **changes), call_of(kind, task_ids())
    shapes = {name: {0: Dim.AUTO} for name in given}
    shapes["use_cache"] = None
    program = torch.export.export(model, (), given, dynamic_shapes=shapes)
    more = {
        name: torch.cat([x, x[:2]])
        for name, x in call_of(kind, task_ids(), 3).items()
        if x is not False
    }
    more |= {"task_ids": torch.tensor([1, 2, 3, 4, 5, 0]), "use_cache": False}
    wanted = model(**more).logits
    torch.testing.assert_close(program.module()(**more).logits, wanted, **logits_tolerance)
    if changes.get("poly_type") == "mope":
        return
    more["task_ids"] = more["task_ids"].flip(0)
    assert not torch.equal(program.module()(**more).logits, wanted)
    more["task_ids"][1] = 6
    with pytest.raises(RuntimeError, match="task_ids out of range: ids run from 0 to 5"):
        program.module()(**more)


def test_strict_export(logits_tolerance):
    model, given = poly("llama").train(), call_of("llama", task_ids())
    program = torch.export.export(model, (), given, strict=True)
    runs = []
    for call in (model, program.module()):
        torch.manual_seed(3)  # of the noise
        runs.append(call(**call_of("llama", task_ids().flip(0))).logits)
    torch.testing.assert_close(*runs, **logits_tolerance)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"poly_type": "private"}),
        ("gpt2", {"noise_source": "keyed", "n_splits": 1}),
        ("t5", {"poly_type": "mope", "target_modules": ["q"]}),
    ],
)
def test_other_ids_compile_nothing_again(kind, changes):
    model = poly(kind, **changes).train().double()

    def run(call, turn):
        model.zero_grad()
        model.set_noise_key(3, turn)
        call(**call_of(kind, (task_ids() + turn) % 6, turn)).logits.square().sum().backward()
        return gradients(model)

    wanted = [run(model, turn) for turn in range(3)]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for turn in range(3):
        found = run(compiled, turn)
        for name, grad in wanted[turn].items():
            assert grad.abs().max() > 0, name
            torch.testing.assert_close(found[name], grad)  # double: 1e-7
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
