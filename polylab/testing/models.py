"""A class of the user's own within tiny models, made here from random numbers."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from polylab.poly.config import PolyConfig
from polylab.poly.model import PolyModel, get_peft_model
from polylab.testing.claims import Claims

__all__ = ["batch_of", "check_in_models", "gpt2"]

BATCH, SEQ, VOCABULARY, STEPS = 4, 6, 30, 12
_TARGETS = {"T5": ["q", "v", "wo"], "GPT-2": ["c_attn", "c_proj"]}
_COMMON: dict[str, Any] = {
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
}


def check_in_models(claims: Claims, changes: dict[str, Any]) -> None:
    """Whether adapters of this configuration train, checkpoint, copy, generate, save and load.

    Raises:
        AssertionError: At the first that goes wrong.
    """
    for kind, make in (("T5", t5), ("GPT-2", gpt2)):
        values: dict[str, Any] = {
            "r": 2,
            "n_tasks": 3,
            "n_skills": 5,
            "n_splits": 2,
            "noise_source": "keyed",
        }
        values |= {"target_modules": _TARGETS[kind], **changes}
        trial = _Trial(claims, kind, PolyConfig(**values), make)
        with claims.step(f"an adapter on a {kind}"):
            trial.run()


class _Trial:
    """One configuration on one kind of model.

    Args:
        claims: Where failures are said.
        kind: The model's name.
        config: Of the adapter.
        make: A fresh base model with blocks that n_splits divides; the same each time.
    """

    def __init__(
        self, claims: Claims, kind: str, config: PolyConfig, make: Callable[[int], PreTrainedModel]
    ) -> None:
        self.claims, self.config = claims, config
        self.make = lambda: make(config.n_splits)
        self.batch = batch_of(config.n_tasks, causal=kind == "GPT-2")

    def run(self) -> None:
        """All checks.

        Raises:
            AssertionError: At the first that goes wrong.
        """
        claims = self.claims
        with claims.step("at its start"):
            model = self.fresh()
            with torch.no_grad():
                wanted = self.make()(**_no_ids(self.batch)).logits
            claims.same(self.logits(model), wanted, "exactly the base model's output")
        with claims.step(f"training for {STEPS} steps"):
            self.train(model)
        with claims.step("gradient checkpointing"):
            self.checkpoint(model)
        with claims.step("copy.deepcopy"):
            claims.same(self.logits(copy.deepcopy(model)), self.logits(model), "equal output")
        with claims.step("generate with two beams"):
            inputs = {k: v for k, v in self.batch.items() if k != "labels"}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            tokens = model.eval().generate(**inputs, max_new_tokens=2, num_beams=2)
            claims.require(len(tokens) == BATCH, f"{len(tokens)} rows", f"{BATCH}")
        with claims.step("save_pretrained and from_pretrained"), _folder() as folder:
            model.save_pretrained(folder)
            loaded = PolyModel.from_pretrained(self.make(), folder, trust_code=True)
            claims.same(self.logits(loaded), self.logits(model), "equal output, bit by bit")

    def fresh(self) -> PolyModel:
        """A new adapter on a new base model."""
        torch.manual_seed(0)
        return get_peft_model(self.make(), self.config)

    @torch.no_grad()
    def logits(self, model: PolyModel) -> Tensor:
        """Of the batch, in evaluation."""
        return model.eval()(**self.batch).logits

    def loss(self, model: PolyModel) -> Tensor:
        """Of the batch, in the model's mode, with the same noise each time."""
        torch.manual_seed(0)
        model.set_noise_key(0, 0)
        return model(**self.batch).loss

    def train(self, model: PolyModel) -> None:
        """The loss falls.

        Raises:
            AssertionError: If it does not.
        """
        before = self.loss(model.eval()).item()
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        for step in range(STEPS):
            model.set_noise_key(0, step)
            optimizer.zero_grad()
            model(**self.batch).loss.backward()
            optimizer.step()
        after = self.loss(model.eval()).item()
        came = f"the loss of the same batch went from {before:.6f} to {after:.6f}"
        self.claims.require(after < before, came, "a smaller one")

    def checkpoint(self, model: PolyModel) -> None:
        """Recomputing the forward changes no gradient.

        Raises:
            AssertionError: If it does.
        """
        found = []
        for enabled in (False, True):
            twin = copy.deepcopy(model).train()
            if enabled:
                twin.gradient_checkpointing_enable({"use_reentrant": False})
            twin.zero_grad()
            self.loss(twin).backward()
            found.append({n: p.grad for n, p in twin.named_parameters() if p.requires_grad})
        for name, wanted in found[0].items():
            recomputed = found[1][name]
            if wanted is None or recomputed is None:
                holds = wanted is recomputed
                self.claims.require(holds, f"{name} has one gradient of two", "both, or none")
                continue
            rule = f"the gradient of {name} without checkpointing"
            self.claims.same(recomputed, wanted, rule, rtol=1e-4, atol=1e-5)


def t5(n_splits: int) -> PreTrainedModel:
    """A tiny random T5 in evaluation mode, without dropout."""
    torch.manual_seed(1)
    width = 8 * n_splits
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=width // 2,
        num_heads=2,
        d_ff=2 * width,
        num_layers=2,
        dropout_rate=0.0,
        **_COMMON,
    )
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():  # T5 starts its layers too small to be told apart
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def gpt2(n_splits: int) -> PreTrainedModel:
    """A tiny random GPT-2 in evaluation mode, without dropout."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=8 * n_splits,
        n_layer=2,
        n_head=2,
        n_positions=16,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        initializer_range=0.3,
        **_COMMON,
    )
    return GPT2LMHeadModel(config).eval()


def batch_of(n_tasks: int, *, causal: bool) -> dict[str, Tensor]:
    """A batch with labels, of all tasks that it has room for."""
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(3, VOCABULARY, (BATCH, SEQ), generator=generator)
    labels = ids.clone() if causal else ids[:, :4].flip(1).contiguous()
    if causal:
        labels[:, :2] = -100  # the prompt
    return {"input_ids": ids, "labels": labels, "task_ids": torch.arange(BATCH) % n_tasks}


def _no_ids(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "task_ids"}


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder as a path."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
