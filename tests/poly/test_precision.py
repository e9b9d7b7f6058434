"""16-bit models and autocast: the base's dtype out, nothing infinite, gradients in their own."""

import pytest
import torch

from polylab import get_peft_model
from tests.poly.tiny import SEQ, base, config_of, gradients, output_of, poly, task_ids, trained

KINDS = ["t5", "llama", "gpt2", "encoder"]
TYPES = ["poly", "mope", "private"]
HALF = [torch.float16, torch.bfloat16]


def packed_ids():
    return task_ids()[:, None].repeat(1, SEQ)


def check_backward(model, output, dtype):
    assert output.isfinite().all()
    output.float().square().mean().backward()
    for name, grad in gradients(model).items():
        assert grad.dtype == dtype, name
        assert grad.isfinite().all(), name
        assert grad.abs().max() > 0, name


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("poly_type", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_16_bit_base(kind, poly_type, dtype, own):
    config = config_of(kind, poly_type=poly_type)
    model = get_peft_model(base(kind).to(dtype), config, autocast_adapter_dtype=own)
    model = trained(model).train()
    output = output_of(model, kind, task_ids=task_ids())
    assert output.dtype == dtype
    check_backward(model, output, torch.float32 if own else dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("poly_type", ["poly", "private"])
def test_a_16_bit_base_with_ids_per_token(poly_type, dtype):
    model = trained(
        get_peft_model(base("llama").to(dtype), config_of("llama", poly_type=poly_type))
    )
    output = output_of(model, "llama", task_ids=packed_ids())
    assert output.dtype == dtype
    check_backward(model, output, torch.float32)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("poly_type", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_keeps_the_base_layers_dtype(kind, poly_type, dtype):
    model, seen = poly(kind, poly_type=poly_type).train(), []
    for layer in model.poly_layers().values():
        layer.base_layer.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        layer.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.autocast("cpu", dtype=dtype):
        output = output_of(model, kind, task_ids=task_ids())
    assert {*seen} == {dtype}
    check_backward(model, output, torch.float32)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("training", [True, False])
def test_16_bit_gates_that_are_almost_shut(dtype, training):
    config = config_of("llama")
    model = get_peft_model(base("llama").to(dtype), config, autocast_adapter_dtype=False)
    model.train(training)
    for layer in model.poly_layers().values():
        layer.poly_router["default"].module_logits.data.fill_(-20)
    torch.testing.assert_close(
        next(iter(model.task_weights().values())).float().sum(-1),
        torch.ones(6, 2),
        atol=1e-3,
        rtol=0,
    )
    assert output_of(model, "llama", task_ids=task_ids()).isfinite().all()
