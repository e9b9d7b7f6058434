"""Backbones with the shapes of published models and random weights, and batches for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration


@dataclass(frozen=True)
class Shape:
    """A backbone, its batch, and which of its layers are adapted: all linear ones."""

    name: str
    config: Any
    batch: int
    seq: int
    target_seq: int | None = None
    targets: tuple[str, ...] = ("q", "k", "v", "o", "wi_0", "wi_1", "wo")


def _t5(**sizes: int) -> T5Config:
    kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    fixed = {"vocab_size": 32128, "decoder_start_token_id": 0, "pad_token_id": 0, "d_kv": 64}
    return T5Config(**{**fixed, **kind, **sizes, "dropout_rate": 0.0})


def _llama(**sizes: int) -> LlamaConfig:
    return LlamaConfig(**{"vocab_size": 128256, "max_position_embeddings": 2048, **sizes})


_LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("t5-base", _t5(d_model=768, d_ff=2048, num_layers=12, num_heads=12), 32, 256, 64),
        Shape("t5-xl", _t5(d_model=2048, d_ff=5120, num_layers=24, num_heads=32), 32, 256, 64),
        Shape(
            "llama-1b",
            _llama(
                hidden_size=2048,
                intermediate_size=8192,
                num_hidden_layers=16,
                num_attention_heads=32,
                num_key_value_heads=8,
                tie_word_embeddings=True,
            ),
            16,
            512,
            targets=_LLAMA_TARGETS,
        ),
        Shape(
            "llama-8b",
            _llama(
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
            ),
            16,
            512,
            targets=_LLAMA_TARGETS,
        ),
        Shape(
            "t5-small-cpu",
            _t5(d_model=512, d_ff=1024, num_layers=6, num_heads=8, vocab_size=2048),
            16,
            128,
            32,
        ),
        Shape(
            "t5-tiny",
            _t5(d_model=64, d_ff=128, num_layers=2, num_heads=2, d_kv=32, vocab_size=256),
            4,
            16,
            8,
        ),
    )
}


def make_base(shape: Shape, *, device: str, dtype: torch.dtype) -> nn.Module:
    """The frozen backbone with random weights, in training mode, without a cache."""
    kind = T5ForConditionalGeneration if shape.target_seq else LlamaForCausalLM
    torch.manual_seed(0)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = kind(shape.config)
        finally:
            torch.set_default_dtype(before)
    for module in model.modules():  # T5's decoder has a configuration of its own
        if hasattr(module, "config"):
            module.config.use_cache = False  # a cache has no place in training, and breaks graphs
    return model.requires_grad_(False).train()


def make_batch(shape: Shape, *, device: str, n_tasks: int, seed: int) -> dict[str, torch.Tensor]:
    """Random tokens of random tasks: `input_ids`, `attention_mask`, `labels`, `task_ids`."""
    draw = torch.Generator().manual_seed(seed)
    vocabulary = shape.config.vocab_size

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(1, vocabulary, (shape.batch, length), generator=draw)

    ids = tokens(shape.seq)
    labels = tokens(shape.target_seq) if shape.target_seq else ids.clone()
    tasks = (
        torch.arange(shape.batch)
        if n_tasks <= shape.batch
        else torch.randint(n_tasks, (shape.batch,), generator=draw)
    )
    tasks = (tasks % n_tasks)[torch.randperm(shape.batch, generator=draw)]
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "task_ids": tasks,
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}
