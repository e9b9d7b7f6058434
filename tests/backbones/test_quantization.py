"""Backbones in 4 and 8 bits, and gradient checkpointing."""

import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from polylab import PolyConfig, get_peft_model
from polylab.backbones import load_backbone, quantization
from polylab.backbones.quantization import quantization_options

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
if "cpu" not in getattr(bnb, "supported_torch_devices", ()):
    pytest.skip("this bitsandbytes has no CPU kernels", allow_module_level=True)

KINDS = {"4bit": bnb.nn.Linear4bit, "8bit": bnb.nn.Linear8bitLt}


def inputs():
    ids = torch.randint(3, 259, (3, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("kind", KINDS)
def test_linears_are_quantised_and_the_rest_is_prepared_as_by_peft(llama_folder, kind):
    from peft import prepare_model_for_kbit_training

    model = load_backbone(llama_folder, quantization=kind).model
    linears = [m for n, m in model.named_modules() if isinstance(m, KINDS[kind])]
    assert len(linears) == 14  # all but the head
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    options = options if kind == "4bit" else {"load_in_8bit": True}
    theirs = LlamaForCausalLM.from_pretrained(
        llama_folder, quantization_config=BitsAndBytesConfig(**options)
    )
    assert {p.dtype for p in theirs.parameters()} >= {torch.bfloat16}
    theirs = prepare_model_for_kbit_training(theirs, use_gradient_checkpointing=False)
    wanted = {name: parameter.dtype for name, parameter in theirs.named_parameters()}
    assert {name: p.dtype for name, p in model.named_parameters()} == wanted
    assert model.model.norm.weight.dtype == torch.float32


def test_four_bits_are_those_of_qlora(llama_folder):
    layer = load_backbone(llama_folder, quantization="4bit").model.model.layers[0].self_attn.q_proj
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested, layer.compute_dtype) == ("nf4", True, torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_checkpointing_changes_no_gradient(llama_folder, kind, use_reentrant):
    found = []
    for checkpoints in (False, True):
        backbone = load_backbone(
            llama_folder, quantization=kind, gradient_checkpointing=checkpoints
        )
        torch.manual_seed(0)
        values = {"r": 3, "n_tasks": 4, "n_skills": 2, "target_modules": "all-linear"}
        config = PolyConfig(**values, noise="none", init_weights=False)
        model = get_peft_model(backbone.model, config).train()
        if checkpoints and use_reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        calls: list[int] = []
        backbone.model.model.layers[0].self_attn.register_forward_hook(
            lambda *_, c=calls: c.append(1)
        )
        model(**inputs(), task_ids=torch.tensor([0, 3, 1])).loss.backward()
        assert len(calls) == 1 + checkpoints
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(grad.abs().max() > 0 for grad in found[0].values())
    for name, grad in found[0].items():
        assert grad.dtype == torch.float32
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-5)


def test_checkpointing_alone_is_for_any_model(llama_folder, t5_folder):
    for path in (llama_folder, t5_folder):
        assert load_backbone(path, gradient_checkpointing=True).model.is_gradient_checkpointing
        assert not load_backbone(path).model.is_gradient_checkpointing


def test_an_architecture_without_checkpointing_is_named(llama_folder, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match="LlamaForCausalLM has no checkpointing; leave it false"):
        load_backbone(llama_folder, gradient_checkpointing=True)


def test_mistakes(llama_folder):
    with pytest.raises(
        ValueError, match=r"backbone.quantization=nf4 is not known; choose one of 4"
    ):
        load_backbone(llama_folder, quantization="nf4")
    with pytest.raises(ValueError, match=r"quantization=8bit with backbone.from_scratch=true"):
        load_backbone(llama_folder, quantization="8bit", from_scratch=True)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None if name == "accelerate" else 1)
    with pytest.raises(ModuleNotFoundError, match="=4bit needs accelerate: pip install 'polylab"):
        quantization_options("4bit")
    monkeypatch.setattr(quantization, "find_spec", lambda _name: None)
    with pytest.raises(ModuleNotFoundError, match="=8bit needs bitsandbytes and accelerate: pip"):
        quantization_options("8bit")
    assert quantization_options(None) == {}
