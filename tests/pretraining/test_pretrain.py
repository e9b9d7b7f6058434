"""The pretraining recipe trains a fresh model, and the shipped weights are what it says."""

from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import T5ForConditionalGeneration

from polylab.backbones import load_backbone
from polylab.pretraining import PretrainingData, PretrainModule
from polylab.pretraining.corpus import LineSampler, encode

TINY = Path(__file__).resolve().parents[2] / "polylab" / "backbones" / "tiny"


def test_recipe(tmp_path: Path) -> None:
    model = load_backbone("tiny", from_scratch=True).model
    before = model.get_input_embeddings().weight.detach().clone()
    module = PretrainModule(
        model, folder=tmp_path, lr=1e-3, warmup_steps=2, total_steps=4, n_probe=6
    )
    trainer = L.Trainer(
        max_steps=3,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, PretrainingData(batch_size=4))
    assert not torch.equal(model.get_input_embeddings().weight, before)
    assert 0.0 <= trainer.callback_metrics["val/exact_match"] <= 1.0
    saved = T5ForConditionalGeneration.from_pretrained(tmp_path / "backbone", dtype="float32")
    ours, theirs = model.get_input_embeddings().weight, saved.get_input_embeddings().weight
    torch.testing.assert_close(theirs, ours.bfloat16().float())  # stored in bfloat16


def test_scratch_weights_are_not_the_shipped_ones() -> None:
    scratch, shipped = load_backbone("tiny", from_scratch=True), load_backbone("tiny")
    assert scratch.model.config.to_dict()["d_model"] == shipped.model.config.to_dict()["d_model"]
    first = next(iter(scratch.model.parameters()))
    assert not torch.equal(first, next(iter(shipped.model.parameters())))


def test_shipped_weights_are_small() -> None:
    assert sum(f.stat().st_size for f in TINY.glob("*.safetensors")) <= 8_000_000


@pytest.mark.parametrize(
    ("operation", "floor"), [("reverse", 0.8), ("upper", 0.5), ("plural", 0.5)]
)
def test_shipped_weights_have_learnt(operation: str, floor: float) -> None:
    """Far above chance on fresh text; the model card has the numbers."""
    model = load_backbone("tiny").model
    sampler = LineSampler("shipped")
    lines = []
    while len(lines) < 24:
        line = sampler()
        if line.drill.operations == {operation} and line.drill.items == "word":
            lines.append(line)
    sources = [encode(line)[0] for line in lines]
    width = max(map(len, sources))
    ids = torch.tensor([s + [0] * (width - len(s)) for s in sources])
    out = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=12, do_sample=False
    )
    right = sum(
        row[1 : 1 + len(t)] == t
        for row, t in zip(out.tolist(), (encode(line)[1] for line in lines), strict=True)
    )
    assert right / len(lines) >= floor
