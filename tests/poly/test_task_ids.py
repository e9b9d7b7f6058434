"""Every wrong `task_ids` is refused by name, before any layer runs."""

import pytest
import torch

from tests.poly.tiny import BATCH, N_TASKS, SEQ, inputs_of, output_of, poly, task_ids

WRONG = {
    "none": (None, r"task_ids=None.*int64 tensor \[4\] of ids 0 to 5"),
    "negative": (torch.tensor([0, -1, 2, 5]), r"task_ids contains -1, but n_tasks=6"),
    "too large": (torch.tensor([0, 6, 2, 5]), r"task_ids contains 6, but n_tasks=6"),
    "list": ([0, 1, 2, 5], r"task_ids=\[0, 1, 2, 5\] is a list"),
    "integer": (3, r"task_ids=3 is a int"),
    "float": (torch.tensor([0.0, 1.0, 2.0, 5.0]), r"task_ids has dtype torch.float32"),
    "bool": (torch.tensor([True, False, True, True]), r"task_ids has dtype torch.bool"),
    "uint8": (torch.tensor([0, 1, 2, 5], dtype=torch.uint8), r"task_ids has dtype torch.uint8"),
    "scalar": (torch.tensor(1), r"task_ids has shape \[\].*\[4\]"),
    "column": (torch.tensor([[0], [1], [2], [5]]), r"task_ids has shape \[4, 1\].*\[4\]"),
    "cube": (torch.zeros(4, 7, 1, dtype=torch.int64), r"task_ids has shape \[4, 7, 1\]"),
    "divisor": (torch.tensor([0, 1]), r"task_ids has length 2, but the batch has 4 rows"),
    "one": (torch.tensor([0]), r"task_ids has length 1, but the batch has 4 rows"),
    "multiple": (torch.arange(8) % 6, r"task_ids has length 8, but the batch has 4 rows"),
    "empty": (torch.empty(0, dtype=torch.int64), r"task_ids has length 0, but the batch has 4"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "encoder"])
def test_wrong_ids_in_forward(kind, wrong):
    model, (ids, message) = poly(kind), WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        model(**inputs_of(kind), task_ids=ids)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_wrong_ids_in_generate_and_mixing_weights(kind, wrong):
    model, (ids, message) = poly(kind), WRONG[wrong]
    prompts = inputs_of(kind)["input_ids"]
    with pytest.raises(ValueError, match=message):
        model.generate(prompts, task_ids=ids, max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        model.generate(inputs=prompts, task_ids=ids, max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        model.mixing_weights(input_ids=prompts, task_ids=ids)


def test_private_routing_checks_ids_too():
    with pytest.raises(ValueError, match=r"task_ids contains 6, but n_tasks=6"):
        output_of(poly("llama", poly_type="private"), "llama", task_ids=torch.full((BATCH,), 6))


@pytest.mark.parametrize("poly_type", ["mope", "shared"])
def test_routers_that_read_no_ids_ignore_them(poly_type):
    model = poly("llama", poly_type=poly_type)
    without = output_of(model, "llama")
    assert torch.equal(output_of(model, "llama", task_ids=task_ids()), without)


def test_an_empty_batch_is_refused():
    ids = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"task_ids is empty: shape \[0\]"):
        poly("llama")(torch.empty(0, SEQ, dtype=torch.int64), task_ids=ids)


def test_int32_ids_are_taken():
    model = poly("llama")
    wanted = output_of(model, "llama", task_ids=task_ids())
    assert torch.equal(output_of(model, "llama", task_ids=task_ids().int()), wanted)


def test_the_batch_is_read_from_embeddings_too():
    model = poly("llama")
    x = model.get_input_embeddings()(inputs_of("llama")["input_ids"])
    assert model(inputs_embeds=x, task_ids=task_ids()).logits.shape[0] == BATCH
    with pytest.raises(ValueError, match=r"task_ids has length 2, but the batch has 4 rows"):
        model(inputs_embeds=x, task_ids=task_ids()[:2])


def test_the_batch_is_read_from_encoder_outputs_too():
    model, inputs = poly("t5"), inputs_of("t5")
    wanted = model(**inputs, task_ids=task_ids()).logits
    encoded = model.get_encoder()(inputs["input_ids"], task_ids=task_ids())
    output = model(encoder_outputs=encoded, labels=inputs["labels"], task_ids=task_ids())
    assert torch.equal(output.logits, wanted)
    with pytest.raises(ValueError, match=r"task_ids has length 3, but the batch has 4 rows"):
        model(encoder_outputs=encoded, labels=inputs["labels"], task_ids=task_ids()[:3])


def test_ids_above_256_choose_the_right_task_in_bfloat16(tolerance):
    model = poly("llama", n_tasks=600).to(torch.bfloat16)
    layer = next(iter(model.poly_layers().values()))
    router = layer.poly_router["default"]
    ids = torch.tensor([257, 258, 259, 599])
    wanted = torch.sigmoid(router.module_logits[ids].float()).view(4, 2, 5)
    wanted = wanted / wanted.sum(-1, keepdim=True)
    weights = model.mixing_weights(task_ids=ids)[layer.name]
    torch.testing.assert_close(weights, wanted, **tolerance)
    assert output_of(model, "llama", task_ids=ids).dtype == torch.bfloat16


def test_a_layer_called_without_its_model_says_so():
    model = poly("llama")
    with pytest.raises(ValueError, match=r"'model.layers.0.self_attn.q_proj' has no task_ids"):
        model.get_base_model()(**inputs_of("llama"))
    with pytest.raises(ValueError, match="task_ids=None"):
        next(iter(model.poly_layers().values())).poly_router["default"](None)


def test_n_tasks_is_the_limit():
    assert N_TASKS == 6
    output_of(poly("llama"), "llama", task_ids=torch.full((BATCH,), 5))
