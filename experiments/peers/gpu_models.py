"""Tiny models, batches and gradients of the checks on a GPU (`gpu.py`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from polylab import PolyConfig, PolyModel, get_peft_model

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BATCH, SEQ, VOCABULARY, N_TASKS = 4, 12, 96, 6
TYPES = {
    "poly": {"noise_source": "global"},
    "poly, keyed noise": {"noise_source": "keyed"},
    "private": {"poly_type": "private"},
    "mope": {"poly_type": "mope"},
    "c-poly, straight-through noise per task": {
        "poly_type": "c-poly",
        "noise": "straight_through",
        "noise_per": "task",
        "noise_source": "keyed",
    },
    "products, shared routers, priors": {
        "combine": "products",
        "granularity": "block",
        "noise_source": "keyed",
        "priors": {"ibp": 0.1, "entropy": 0.1, "load_balance": 0.1},
    },
    "mope by token, top-k, priors": {
        "poly_type": "mope",
        "router_level": "token",
        "top_k": 2,
        "priors": {"load_balance": 0.1, "mutual_information": 0.1},
    },
    "mope of the embeddings": {"poly_type": "mope", "router_input": "embeddings"},
}
QUIET = {"poly": {"noise": "none"}, "private": TYPES["private"], "mope": TYPES["mope"]}
TARGETS = {"t5": ["q", "v", "wi_0", "wo"], "llama": ["q_proj", "v_proj", "down_proj"]}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": False}


def base(kind: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A tiny random model without dropout."""
    torch.manual_seed(0)
    if kind == "llama":
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(
            vocab_size=VOCABULARY, initializer_range=0.15, **sizes, **heads, **SPECIAL
        )
        return LlamaForCausalLM(config).to(DEVICE, dtype)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_heads": 4, "num_layers": 2}
    config = T5Config(
        vocab_size=VOCABULARY,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        **sizes,
        **SPECIAL,
    )
    model = T5ForConditionalGeneration(config)
    for parameter in model.parameters():
        scale = 0.15 if parameter.ndim > 1 else 1.0
        parameter.data = torch.randn_like(parameter) * scale
    return model.to(DEVICE, dtype)


def poly(
    kind: str,
    changes: dict,
    dtype: torch.dtype = torch.float32,
    *,
    adapter_in_float32: bool = True,
) -> PolyModel:
    """An adapter of random weights, in training mode."""
    values = {"r": 3, "n_tasks": N_TASKS, "n_skills": 5, "n_splits": 2, **changes}
    config = PolyConfig(target_modules=TARGETS[kind], **values)
    model = get_peft_model(base(kind, dtype), config, autocast_adapter_dtype=adapter_in_float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * drawn.to(parameter))
    model.config.use_cache = False
    return model.train()


def batch(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs on the device, without padding; ids on the host."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (BATCH, SEQ), generator=generator).to(DEVICE)
    labels = (
        ids.clone() if kind == "t5" else ids.masked_fill(torch.arange(SEQ).to(DEVICE) < 4, -100)
    )
    return {"input_ids": ids, "labels": labels}


def task_ids(turn: int = 0) -> torch.Tensor:
    """One task twice, one never."""
    return (torch.tensor([0, 5, 2, 5]) + turn) % N_TASKS


def gradients(model: PolyModel, call: Callable, kind: str, turn: int = 0) -> dict:
    """Gradients of a step with noise of its own."""
    model.zero_grad()
    model.set_noise_key(3, turn)
    call(**batch(kind, turn), task_ids=task_ids(turn), use_cache=False).loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad.abs().max() > 0 for grad in found.values()), "a gradient is zero"
    return found


def compare(found: dict, wanted: dict, tolerance: float = 1e-3) -> None:
    """Relative to the largest entry of each tensor."""
    for name, grad in wanted.items():
        error = ((found[name] - grad).abs().max() / grad.abs().max()).item()
        assert error < tolerance, f"{name} differs by {error:.1e}"
