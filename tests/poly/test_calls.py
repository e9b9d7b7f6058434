"""Every way a model is called carries the ids to its layers, and leaves nothing behind."""

import copy
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSeq2SeqLM, MT5Config, T5Config, UMT5Config

from polylab import PolyConfig, get_peft_model
from polylab.poly.routing import current
from tests.poly.tiny import (
    BATCH,
    SEQ,
    base,
    config_of,
    gradients,
    inputs_of,
    output_of,
    poly,
    task_ids,
    trained,
)

KINDS = ["t5", "llama", "gpt2", "encoder"]


def backward(model, kind, **kwargs):
    model.zero_grad()
    torch.manual_seed(7)
    output_of(model, kind, **kwargs).square().sum().backward()
    return gradients(model)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("poly_type", ["poly", "mope", "private"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(kind, poly_type, use_reentrant):
    model = poly(kind, poly_type=poly_type).train().double()
    ids = {"task_ids": task_ids()}
    wanted = backward(model, kind, **ids)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = count_recomputes(model)
    found = backward(model, kind, **ids)
    assert calls.count == 2 * calls.layers
    for name, grad in wanted.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(found[name], grad)  # double: 1e-7


class count_recomputes:
    """How often the base layers run."""

    def __init__(self, model):
        self.count, self.layers = 0, len(model.poly_layers())
        for layer in model.poly_layers().values():
            layer.base_layer.register_forward_hook(self.add)

    def add(self, *_):
        self.count += 1


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("when", ["before wrapping", "on the wrapped base"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_checkpointing_switched_on_behind_our_back(when, use_reentrant):
    config = config_of("llama", noise_source="keyed")
    backbone = base("llama")
    if when == "before wrapping":
        backbone.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model = trained(get_peft_model(backbone, config)).train()
    if when == "on the wrapped base":
        backbone.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    plain = trained(get_peft_model(base("llama"), config)).train()
    for each in (model, plain):
        each.set_noise_key(3, 4)
    wanted = backward(plain, "llama", task_ids=task_ids())
    calls = count_recomputes(model)
    found = backward(model, "llama", task_ids=task_ids())
    assert calls.count == 2 * calls.layers
    for name, grad in wanted.items():  # layers that mix by themselves sum in another order
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
@pytest.mark.parametrize("poly_type", ["poly", "mope", "private", "shared"])
@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}])
def test_beams_equal_one_prompt_at_a_time(kind, poly_type, how):
    model, prompts = poly(kind, poly_type=poly_type), inputs_of(kind)["input_ids"]
    mask, ids = torch.ones_like(prompts), task_ids()
    how = {**how, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = model.generate(prompts, attention_mask=mask, task_ids=ids, **how)
    per_prompt = len(together) // BATCH
    assert len(together[:, -4:].unique()) >= 2
    for row in range(BATCH):
        one = slice(row, row + 1)
        alone = model.generate(prompts[one], attention_mask=mask[one], task_ids=ids[one], **how)
        assert torch.equal(together[row * per_prompt : (row + 1) * per_prompt], alone)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_generation_depends_on_the_task(kind):
    model, prompts = poly(kind), inputs_of(kind)["input_ids"]
    how = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 8, "do_sample": False}
    one = model.generate(prompts, task_ids=task_ids(), **how)
    other = model.generate(prompts, task_ids=(task_ids() + 1) % 6, **how)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
@pytest.mark.parametrize("poly_type", ["poly", "mope"])
def test_cached_generation_equals_uncached(kind, poly_type):
    model, prompts = poly(kind, poly_type=poly_type), inputs_of(kind)["input_ids"]
    mask = torch.ones_like(prompts)
    mask[1, :3] = 0
    how = {"attention_mask": mask, "task_ids": task_ids(), "max_new_tokens": 6}
    how["do_sample"] = False
    cached = model.generate(prompts, use_cache=True, **how)
    assert torch.equal(model.generate(prompts, use_cache=False, **how), cached)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("poly_type", ["poly", "mope", "private"])
def test_two_threads_with_different_ids(poly_type, training):
    changes = {"poly_type": poly_type, "noise": "none"}
    model = poly("llama", **changes).train(training)
    calls = [
        {**inputs_of("llama", seed=seed), "task_ids": task_ids().roll(seed)} for seed in (0, 1)
    ]
    wanted = [model(**call).logits.detach() for call in calls]
    assert not torch.equal(*wanted)
    wrong, barrier = [], threading.Barrier(len(calls))

    def work(index):
        barrier.wait()
        for turn in range(100):
            if not torch.equal(model(**calls[index]).logits, wanted[index]):
                wrong.append((index, turn))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_override_holds_in_its_own_thread_only():
    model, seen = poly("llama"), []
    wanted = output_of(model, "llama", task_ids=task_ids())
    with model.routing("uniform"), model.disable_adapter():
        thread = threading.Thread(
            target=lambda: seen.append(output_of(model, "llama", task_ids=task_ids()))
        )
        thread.start()
        thread.join()
    assert torch.equal(seen[0], wanted)


def test_an_override_holds_for_its_own_model_only():
    one, other = poly("llama"), poly("llama")
    wanted = output_of(other, "llama", task_ids=task_ids())
    with one.routing("uniform"), one.disable_adapter():
        assert torch.equal(output_of(other, "llama", task_ids=task_ids()), wanted)


def test_an_exception_leaves_no_routing():
    model = poly("llama")
    with pytest.raises(IndexError):
        model(torch.full((BATCH, SEQ), 999), task_ids=task_ids())
    with pytest.raises(IndexError):
        model.generate(torch.full((BATCH, SEQ), 999), task_ids=task_ids())
    with pytest.raises(RuntimeError, match="inside"), model.routing("uniform"):
        raise RuntimeError("inside")
    assert current() is None
    with pytest.raises(ValueError, match="task_ids=None"):
        model(**inputs_of("llama"))
    with pytest.raises(ValueError, match="has no task_ids"):
        model.get_base_model()(**inputs_of("llama"))


@pytest.mark.parametrize("poly_type", ["poly", "mope", "shared"])
def test_the_encoder_alone(poly_type):
    model, ids = poly("t5", poly_type=poly_type), inputs_of("t5")["input_ids"]
    whole = model(**inputs_of("t5"), task_ids=task_ids()).encoder_last_hidden_state
    alone = model.get_encoder()(input_ids=ids, task_ids=task_ids()).last_hidden_state
    assert torch.equal(alone, whole)
    assert current() is None


def test_no_encoder_to_call():
    with pytest.raises(ValueError, match="LlamaForCausalLM has no encoder"):
        poly("llama").get_encoder()


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_computes_the_same(kind):
    model = poly(kind)
    twin = copy.deepcopy(model)
    wanted = output_of(model, kind, task_ids=task_ids())
    assert torch.equal(output_of(twin, kind, task_ids=task_ids()), wanted)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("poly_type", ["poly", "mope"])
def test_bfloat16_base_keeps_its_dtype_and_the_adapter_its_own(kind, poly_type):
    config = config_of(kind, poly_type=poly_type)
    model = trained(get_peft_model(base(kind).to(torch.bfloat16), config))
    layer = next(iter(model.poly_layers().values()))
    assert layer.poly_lora_A["default"].dtype == torch.float32
    assert next(layer.poly_router.parameters()).dtype == torch.float32
    logits = output_of(model, kind, task_ids=task_ids())
    assert logits.dtype == torch.bfloat16
    wanted = output_of(poly(kind, poly_type=poly_type), kind, task_ids=task_ids())
    # bf16 has 8 bits: only the size of the error is checked
    assert (logits.float() - wanted).norm() < 0.1 * wanted.norm()
    narrow = get_peft_model(base(kind).bfloat16(), config, autocast_adapter_dtype=False)
    layer = next(iter(narrow.poly_layers().values()))
    assert layer.poly_lora_A["default"].dtype == torch.bfloat16


@pytest.mark.parametrize("poly_type", ["poly", "mope", "private"])
def test_autocast(poly_type):
    model = poly("llama", poly_type=poly_type).train()
    layer = next(iter(model.poly_layers().values()))
    seen = []
    layer.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output_of(model, "llama", task_ids=task_ids()).float().sum().backward()
        with model.disable_adapter():
            output_of(model, "llama")
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert layer.poly_lora_A["default"].grad.dtype == torch.float32


def test_a_double_base_gets_a_double_adapter():
    model = poly("llama").double()
    assert output_of(model, "llama", task_ids=task_ids()).dtype == torch.float64


class Questions(TorchDispatchMode):
    """Counts what a host asks of its device's memory, and would wait for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("poly_type", ["poly", "mope"])
@pytest.mark.parametrize("family", [T5Config, MT5Config, UMT5Config], ids=lambda c: c.model_type)
def test_a_t5_on_a_gpu_waits_for_no_answer_about_its_mask(
    family, poly_type, is_padded, monkeypatch
):
    torch.manual_seed(1)
    config = family(
        vocab_size=40, d_model=16, d_kv=4, num_heads=3, d_ff=24, num_layers=2, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    base_model = AutoModelForSeq2SeqLM.from_config(config)
    adapter = PolyConfig(n_tasks=6, n_skills=5, target_modules=["q"], poly_type=poly_type)
    model = trained(get_peft_model(base_model, adapter))
    inputs = inputs_of("t5")
    mask = torch.ones_like(inputs["input_ids"])
    if is_padded:
        mask[0, 2:] = mask[1, 4:] = 0
    call = {**inputs, "attention_mask": mask, "task_ids": task_ids()}
    found = []
    for device in ("cuda", "cpu"):
        monkeypatch.setattr("polylab.poly.calls._WAITING", (device,))
        torch.manual_seed(7)
        with Questions() as questions:
            model.zero_grad()
            output = model(**call)
            output.logits.square().sum().backward()
        found.append((output.logits, gradients(model), questions.count))
    (logits, grads, asked), (other, others, still) = found
    assert (asked - still, still) == (2, _of_ids(model, call))
    assert torch.equal(logits, other)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, others[name])


def _of_ids(model, call):
    """What is asked of the task ids, which come from the host."""
    with Questions() as questions:
        model._make_routing({"input_ids": call["input_ids"]}, call["task_ids"])
    return questions.count
