"""Tiny random backbones with adapters that do something, and what they must compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from experiments.peers.libraries import Library

__all__ = [
    "BATCH",
    "IDS",
    "N_SKILLS",
    "N_SPLITS",
    "N_TASKS",
    "RANK",
    "OneLinear",
    "adapted",
    "backbone",
    "factors",
    "gradients",
    "inputs",
    "logits",
    "merged",
    "one_layer",
    "trained",
    "update",
]

VOCABULARY, BATCH, SEQ, TARGET_SEQ = 40, 4, 7, 5
N_TASKS, N_SKILLS, N_SPLITS, RANK = 6, 5, 2, 3
IDS = torch.tensor([0, 5, 2, 5])  # one twice, one never
TARGETS = {
    "t5": ["q", "v", "wi_0", "wo"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
}
TASK_TYPES = {"t5": "SEQ_2_SEQ_LM", "llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM"}
# untied: a random model with tied embeddings repeats its last token for ever
_TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": False}


class OneLinear(nn.Module):
    """A model that is one linear layer, `lin`."""

    def __init__(self, lin: nn.Module | None = None, *, d_in: int = 8, d_out: int = 12) -> None:
        super().__init__()
        self.lin = lin if lin is not None else nn.Linear(d_in, d_out)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return self.lin(x)


def backbone(kind: str, *, n_layers: int = 2) -> Any:
    """A tiny random model in evaluation mode, without dropout; the same one at each call.

    `n_layers` is Llama's only.
    """
    torch.manual_seed(0)
    if kind == "t5":
        model = T5ForConditionalGeneration(_t5_config()).eval()
        for parameter in model.parameters():  # T5 starts its layers too small to be told apart
            parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 1)
        return model
    if kind == "llama":
        return LlamaForCausalLM(_llama_config(n_layers)).eval()
    return GPT2LMHeadModel(_gpt2_config()).eval()


def adapted(lib: Library, kind: str, base: Any = None, **changes: Any) -> Any:
    """The backbone (or `base`) with an adapter as if trained, in evaluation mode."""
    values = {
        "r": RANK,
        "n_tasks": N_TASKS,
        "n_skills": N_SKILLS,
        "n_splits": N_SPLITS,
        "target_modules": TARGETS[kind],
        "task_type": TASK_TYPES[kind],
    }
    base = backbone(kind) if base is None else base
    return trained(lib.wrap(base, lib.config(**{**values, **changes}))).eval()


def one_layer(lib: Library, lin: nn.Module | None = None, **changes: Any) -> tuple[Any, Any]:
    """A wrapped `OneLinear` in evaluation mode, and its adapted layer.

    Called by `model.base_model(x, task_ids=...)`: a PEFT model without a task type drops the ids.
    """
    values = {"r": RANK, "n_tasks": N_TASKS, "n_skills": N_SKILLS, "n_splits": N_SPLITS}
    torch.manual_seed(0)
    base = OneLinear(lin)
    config = lib.config(**{**values, "target_modules": ["lin"], **changes})
    model = trained(lib.wrap(base, config)).eval()
    return model, lib.layers(model)["lin"]


def trained(model: Any, seed: int = 1) -> Any:
    """Random values for every trainable parameter, clearly away from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                # wide enough that every routing differs clearly, small enough to stay in range
                parameter.add_(noise * (1.5 if "module_logits" in name else 0.3))
    return model


def inputs(kind: str) -> dict[str, Tensor]:
    """A batch with labels; no padding."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (BATCH, SEQ), generator=generator)
    if kind != "t5":
        return {"input_ids": ids, "labels": ids.clone()}
    labels = torch.randint(3, VOCABULARY, (BATCH, TARGET_SEQ), generator=generator)
    return {"input_ids": ids, "labels": labels}


def logits(model: Any, kind: str, **kwargs: Any) -> Tensor:
    """Logits of the batch."""
    return model(**inputs(kind), **{"task_ids": IDS, **kwargs}).logits


def gradients(model: Any, kind: str = "llama") -> dict[str, Tensor]:
    """Gradients of the trainable parameters for the batch, under fixed noise."""
    model.zero_grad()
    torch.manual_seed(7)
    logits(model, kind).square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def factors(layer: Any, task: int, adapter: str = "default") -> tuple[Tensor, Tensor]:
    """`(A* [d_in, r], B* [r, d_out])` of a task, written out from the papers' formula."""
    a, b = layer.poly_lora_A[adapter].detach(), layer.poly_lora_B[adapter].detach()
    n_splits, n_skills = a.shape[:2]
    z = layer.poly_router[adapter].module_logits[task].detach().float().sigmoid()
    z = z.view(n_splits, n_skills)
    w = (z / z.sum(-1, keepdim=True)).to(a.dtype)
    mixed_a = [torch.stack([w[q, s] * a[q, s] for s in range(n_skills)]) for q in range(n_splits)]
    mixed_b = [torch.stack([w[q, s] * b[q, s] for s in range(n_skills)]) for q in range(n_splits)]
    return torch.cat([m.sum(0) for m in mixed_a]), torch.cat([m.sum(0) for m in mixed_b], dim=1)


def update(layer: Any, x: Tensor, task: int, adapter: str = "default") -> Tensor:
    """`(x A*) B* / r`: what the adapter adds for one example."""
    a, b = factors(layer, task, adapter)
    return x @ a @ b / a.shape[1]


def merged(lib: Library, model: Any, kind: str, task: int) -> Any:
    """A fresh backbone with one task's update added to its weights: the oracle of whole models."""
    plain = backbone(kind).to(next(model.parameters()).dtype)
    with torch.no_grad():
        for name, layer in lib.layers(model).items():
            a, b = factors(layer, task)
            delta = a @ b / a.shape[1]
            plain.get_submodule(name).weight.add_(delta if kind == "gpt2" else delta.T)
    return plain


def _t5_config() -> T5Config:
    return T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=4,
        num_heads=3,
        d_ff=24,
        num_layers=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=True,
        **{**_TOKENS, "decoder_start_token_id": 0},
    )


def _llama_config(n_layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        **_TOKENS,
    )


def _gpt2_config() -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        initializer_range=0.3,
        **_TOKENS,
    )
