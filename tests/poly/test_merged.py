"""Generation for one task: the update merged into copies of the weights, for the call only."""

import threading

import pytest
import torch

from polylab.poly import merged, products
from tests.poly.tiny import base, inputs_of, poly, task_ids

HOW = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture
def counts(monkeypatch):
    """How often weights were merged, and updates added to an output."""
    found = {"merged": 0, "added": 0}

    def count(kind, function):
        def counted(*args):
            found[kind] += 1
            return function(*args)

        return counted

    monkeypatch.setattr(merged.Merged, "_merge", count("merged", merged.Merged._merge))
    monkeypatch.setattr(products, "_compute", count("added", products._compute))
    return found


def generate(model, kind, ids, **how):
    inputs = inputs_of(kind)
    prompts = {"attention_mask": torch.ones_like(inputs["input_ids"])}
    out = model.generate(
        inputs["input_ids"], task_ids=ids, return_dict_in_generate=True, output_logits=True,
        **prompts, **HOW | how,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("changes", [{}, {"n_splits": 1, "alpha": 5.0}, {"poly_type": "private"}])
@pytest.mark.parametrize("kind", ["llama", "t5", "gpt2"])
def test_one_task_is_merged_once(kind, changes, counts, logits_tolerance):
    model = poly(kind, **changes)
    mixed = task_ids().clone()
    mixed[0] = 3
    wanted = generate(model, kind, mixed)
    assert counts["merged"] == 0
    assert counts["added"] > 0
    counts["added"] = 0
    found = generate(model, kind, torch.full_like(mixed, 3))
    assert counts == {"merged": len(model.poly_layers()), "added": 0}
    assert torch.equal(found[0][0], wanted[0][0])
    torch.testing.assert_close(found[1][:, 0], wanted[1][:, 0], **logits_tolerance)


def test_merged_weights_follow_the_skills(counts, logits_tolerance):
    model = poly("llama")
    ids = torch.full((4,), 2)
    before = generate(model, "llama", ids)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "poly_lora_B" in name:
                parameter.mul_(-2)
    after = generate(model, "llama", ids)
    assert (after[1] - before[1]).abs().max() > 0.1
    plain = model.merge_and_unload(task=2)
    inputs = inputs_of("llama")["input_ids"]
    logits = plain.generate(
        inputs, attention_mask=torch.ones_like(inputs), output_logits=True,
        return_dict_in_generate=True, **HOW,
    ).logits  # fmt: skip
    torch.testing.assert_close(after[1], torch.stack(logits), **logits_tolerance)
    assert counts["merged"] == 2 * len(poly("llama").poly_layers())


def test_weights_of_the_model_stay():
    model = poly("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generate(model, "llama", torch.full((4,), 2))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    with model.disable_adapter():
        off = generate(model, "llama", torch.full((4,), 2))
    inputs = inputs_of("llama")["input_ids"]
    wanted = base("llama").generate(inputs, attention_mask=torch.ones_like(inputs), **HOW)
    assert torch.equal(off[0], wanted)


def test_interventions_decide_what_is_merged(counts, logits_tolerance):
    model = poly("llama")
    count = len(model.poly_layers())
    with model.routing("task:4"):
        one = generate(model, "llama", task_ids())
    assert counts["merged"] == count
    assert torch.equal(one[1], generate(model, "llama", torch.full((4,), 4))[1])
    with model.routing("drop:1"):
        found = generate(model, "llama", torch.full((4,), 1))
        mixed = generate(model, "llama", torch.tensor([1, 2, 1, 3]))
    assert counts["merged"] == 3 * count
    torch.testing.assert_close(found[1][:, 0], mixed[1][:, 0], **logits_tolerance)
    assert (found[1] - generate(model, "llama", torch.full((4,), 1))[1]).abs().max() > 1e-3


def test_noise_is_not_merged(counts):
    model = poly("llama").train()
    generate(model, "llama", torch.full((4,), 2))
    assert counts["merged"] == 0


def test_threads_with_other_tasks(logits_tolerance):
    model = poly("llama")
    wanted = [generate(model, "llama", torch.full((4,), task)) for task in range(4)]
    found = [None] * 4

    def run(task):
        for _ in range(3):
            found[task] = generate(model, "llama", torch.full((4,), task))

    threads = [threading.Thread(target=run, args=(task,)) for task in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine[1], its[1], **logits_tolerance)


def test_beams(counts):
    model = poly("t5")
    ids = torch.full((4,), 1)
    inputs = inputs_of("t5")["input_ids"]
    found = model.generate(inputs, task_ids=ids, num_beams=3, **HOW)
    assert counts["merged"] == len(model.poly_layers())
    wanted = model.merge_and_unload(task=1).generate(inputs, num_beams=3, **HOW)
    assert torch.equal(found, wanted)
