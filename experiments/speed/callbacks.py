"""What the default callbacks cost: per look, per step, and as a share of the training's time."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader
from transformers import T5Config, T5ForConditionalGeneration

from polylab import PolyConfig, get_peft_model
from polylab.callbacks import (
    AllocationHistory,
    Recovery,
    RoutingStatistics,
    SkillFigures,
    SkillRedundancy,
    SkillTable,
    Throughput,
    UpdateSizes,
)

LINEARS = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
VOCABULARY = 512
FIGURES_SHARE = 0.008  # callbacks.figures.max_share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py callbacks`."""
    parser.add_argument("--tasks", type=int, default=27)
    parser.add_argument("--skills", type=int, default=8)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=3, help="of T5: 18 adapted layers each")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: the process's own seconds, for a busy machine; with OMP_NUM_THREADS=1",
    )  # fmt: skip
    parser.add_argument("--every", type=int, default=250, help="steps from one look to the next")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table: a callback each, and last all of them.

    A look is the one after a validation (START and END, which are once a run, are apart). The share
    is that of the time of `every` training steps, which have no validation, loader or logger; of
    SkillFigures it is at most its `max_share` of the default configuration, which leaves out looks.
    """
    durations, n_layers = _measure(options)
    step = _median(durations["run_training_batch"])
    rows = []
    for callback in _callbacks(""):
        own = {
            hook.rpartition(".")[2]: times
            for hook, times in durations.items()
            if hook.startswith(f"[Callback]{callback.state_key}.")
        }
        looks = _median(own["on_validation_epoch_end"])
        looks += _median(own["on_validation_start"]) + _median(own["on_validation_end"])
        steps = sum(
            _median(times) for hook, times in own.items() if hook.startswith("on_train_batch")
        )
        ends = sum(own["on_train_start"]) + sum(own["on_train_end"])
        rows.append(_row(type(callback).__name__, looks, steps, ends, step=step, options=options))
    total = [sum(row[key] for row in rows) / 1000 for key in ("look ms", "step ms", "ends ms")]
    rows.append(_row("all", *total, step=step, options=options))
    rows[-1]["share %"] = round(sum(row["share %"] for row in rows[:-1]), 3)
    for row in rows:
        row |= {"layers": n_layers, "training step ms": round(1000 * step, 2)}
    return rows


def _row(
    name: str, look: float, each: float, ends: float, *, step: float, options: argparse.Namespace
) -> dict[str, Any]:
    share = (look + each * options.every) / (step * options.every)
    if name == "SkillFigures":
        share = min(share, FIGURES_SHARE)
    return {
        "callback": name,
        "look ms": round(1000 * look, 2),
        "step ms": round(1000 * each, 4),
        "ends ms": round(1000 * ends, 1),
        "share %": round(100 * share, 3),
    }


def _callbacks(folder: str) -> list[Any]:
    """Those of `callbacks=default`, without the bar and the checkpoints."""
    return [
        Throughput(),
        RoutingStatistics(),
        SkillRedundancy(),
        UpdateSizes(),
        AllocationHistory(folder),
        Recovery(),
        SkillFigures(folder, max_share=None),  # every look is drawn, to be measured
        SkillTable(folder),
    ]


def _measure(options: argparse.Namespace) -> tuple[Mapping[str, list[float]], int]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    module = _Trained(options)
    profiler = SimpleProfiler() if options.clock == "wall" else _ProcessorTime()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="gpu" if options.device == "cuda" else "cpu",
            devices=1,
            max_steps=3 * options.rounds,
            val_check_interval=3,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=3,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            profiler=profiler,
            default_root_dir=folder,
            callbacks=_callbacks(folder),
        )
        trainer.fit(module, datamodule=_Random(options))
    return profiler.recorded_durations, len(module.model.poly_layers())


class _ProcessorTime(SimpleProfiler):
    """Seconds of this process, not of the clock on the wall."""

    def start(self, action_name: str) -> None:
        self.current_actions[action_name] = time.process_time()

    def stop(self, action_name: str) -> None:
        spent = time.process_time() - self.current_actions.pop(action_name)
        self.recorded_durations[action_name].append(spent)


class _Trained(LightningModule):
    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        size = {"d_model": options.width, "d_kv": 64, "d_ff": 2 * options.width, "num_heads": 4}
        shape: dict[str, Any] = {**size, "vocab_size": VOCABULARY, "num_layers": options.blocks}
        shape |= {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
        base = T5ForConditionalGeneration(T5Config(**shape))
        config = PolyConfig(
            r=4,
            n_tasks=options.tasks,
            n_skills=options.skills,
            n_splits=options.heads,
            target_modules=LINEARS,
        )
        self.model = get_peft_model(base.to(getattr(torch, options.dtype)), config)

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**batch).loss

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        """Nothing: its time would not be that of a callback."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


class _Random(LightningDataModule):
    """One batch of random tokens again and again; every task has two of four skills."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.task_names = [f"task_{i}" for i in range(options.tasks)]
        truth = torch.arange(options.tasks)[:, None] + torch.tensor([0, 1, 2, 3])
        self.skill_matrix = truth % 4 < 2, ["a", "b", "c", "d"]
        ids = torch.randint(2, VOCABULARY, (options.batch, 64))
        tasks = torch.arange(options.batch) % options.tasks
        self.batch = {"input_ids": ids, "labels": ids[:, :16].clone(), "task_ids": tasks}

    def train_dataloader(self) -> DataLoader:
        batches: Any = [self.batch]
        return DataLoader(batches, batch_size=None)

    val_dataloader = train_dataloader


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2] if times else 0.0
