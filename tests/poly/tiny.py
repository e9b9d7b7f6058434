"""Tiny random backbones, one of each family, and adapters on them that do something."""

from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from polylab import PolyConfig, PolyModel, get_peft_model

VOCABULARY, BATCH, SEQ, TARGET_SEQ = 40, 4, 7, 5
N_TASKS, N_SKILLS, N_SPLITS, RANK = 6, 5, 2, 3
TARGETS = {
    "t5": ["q", "v", "wi_0", "wo"],
    "encoder": ["q", "v"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
}
# untied: a random model with tied embeddings repeats its last token for ever
_COMMON = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": False}


def base(kind: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model in evaluation mode, without dropout."""
    torch.manual_seed(seed)
    if kind in ("t5", "encoder"):
        config = T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=4,
            num_heads=3,
            d_ff=24,
            num_layers=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=True,
            decoder_start_token_id=0,
            **_COMMON,
        )
        cls = T5ForConditionalGeneration if kind == "t5" else T5EncoderModel
        model = cls(config).eval()
        for parameter in model.parameters():  # T5 starts its layers too small to be told apart
            parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 1)
        return model
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            **_COMMON,
        )
        return LlamaForCausalLM(config).eval()
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        initializer_range=0.3,
        **_COMMON,
    )
    return GPT2LMHeadModel(config).eval()


def small_logits(model: PreTrainedModel) -> PreTrainedModel:
    """The model with logits so small that 1e-6 is a handful of their last bits."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.05)
    return model


def config_of(kind: str, **changes: Any) -> PolyConfig:
    """An adapter whose every axis has its own size."""
    values = {
        "r": RANK,
        "n_tasks": N_TASKS,
        "n_skills": N_SKILLS,
        "n_splits": N_SPLITS,
        "target_modules": TARGETS[kind],
    }
    return PolyConfig(**{**values, **changes})


def poly(kind: str, seed: int = 1, **changes: Any) -> PolyModel:
    """A wrapped model in evaluation mode, with weights as if trained."""
    return trained(get_peft_model(base(kind), config_of(kind, **changes)), seed)


def trained(model: PolyModel, seed: int = 1) -> PolyModel:
    """Random values for every adapter parameter, clearly away from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                # wide enough that every routing differs clearly, small enough to stay in range
                parameter.add_(noise * (1.5 if "module_logits" in name else 0.3))
    return model


def inputs_of(kind: str, seed: int = 2) -> dict[str, torch.Tensor]:
    """A batch with labels where the model takes them; no padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (BATCH, SEQ), generator=generator)
    if kind == "encoder":
        return {"input_ids": ids}
    if kind == "t5":
        return {
            "input_ids": ids,
            "labels": torch.randint(3, VOCABULARY, (BATCH, TARGET_SEQ), generator=generator),
        }
    labels = ids.clone()
    labels[:, :3] = -100  # the prompt
    return {"input_ids": ids, "labels": labels}


def task_ids() -> torch.Tensor:
    """Ids of a batch: one twice, one never."""
    return torch.tensor([0, 5, 2, 5])


def output_of(model: torch.nn.Module, kind: str, **kwargs: Any) -> torch.Tensor:
    """Logits (hidden states of an encoder) for the batch of `inputs_of`."""
    output = model(**inputs_of(kind), **kwargs)
    return output.last_hidden_state if kind == "encoder" else output.logits


def gradients(model: PolyModel) -> dict[str, torch.Tensor]:
    """Gradients of the trainable parameters; all must have one."""
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values())
    return {name: grad.clone() for name, grad in found.items() if grad is not None}
