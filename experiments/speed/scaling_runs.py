"""One rank of a training that `scaling.py` measures: polylab's stack, or a bare loop beside it."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import resource
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.profilers import SimpleProfiler
from scaling_data import N_TASKS, make_data, word_tokenizer
from shapes import Shape, make_base, make_batch
from timing import free, wait
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from polylab import PolyConfig, PolyModel, get_peft_model
from polylab.backbones.activations import fuse_activations
from polylab.training import AtomicCheckpointIO, HistoryLogger, PolyModule, Stopping

CONF = Path(__file__).resolve().parents[2] / "conf"
RUNS = ("none", "default", "bare")
STRATEGIES = ("ddp", "fsdp", "fsdp+whole", "single")  # +whole: skills are not sharded


@dataclass(frozen=True)
class Job:
    """A training, as all its ranks know it.

    `run` is `none` (no callbacks), `default` (those of `conf/callbacks/default.yaml`, and one
    validation at the end) or `bare` (a loop without Lightning). `shape.batch` is a device's.
    """

    shape: Shape
    strategy: str
    devices: int
    run: str
    device: str
    dtype: str
    r: int
    n_skills: int
    warm_up: int
    steps: int
    log_every: int
    folder: str
    port: int

    @property
    def all_steps(self) -> int:
        """The last one only ends the one before."""
        return self.warm_up + self.steps + 1


def run_rank(job: Job, rank: int, sender: Connection) -> None:
    """Train, and send the report: what a rank of one device and one process does."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(job.port)
    for library in ("lightning.pytorch", "lightning.fabric", "polylab"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if job.device == "cuda":
        torch.cuda.set_device(rank)
        torch.backends.cuda.enable_cudnn_sdp(False)  # as in polylab.trainers
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # the lines of progress
        report = _loop(job, rank) if job.run == "bare" else _fit(job, rank)
    sender.send({"rank": rank, **report})
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _make_model(job: Job, rank: int) -> PolyModel:
    """Random weights; billions of them take seconds if they are drawn on the device itself."""
    device = f"cuda:{rank}" if job.device == "cuda" else "cpu"
    base = make_base(job.shape, device=device, dtype=getattr(torch, job.dtype))
    base.config.pad_token_id = base.generation_config.pad_token_id = 0  # type: ignore[union-attr]
    fuse_activations(base)
    config = PolyConfig(
        r=job.r,
        n_tasks=N_TASKS,
        n_skills=job.n_skills,
        target_modules=[*job.shape.targets],
        noise_source="keyed",
    )
    return get_peft_model(base, config)


class _Staying(PolyModule):
    def cpu(self) -> _Staying:
        """Stay: after the training Lightning would copy the backbone to the host, for nothing."""
        return self


def _fit(job: Job, rank: int) -> dict[str, Any]:
    data = make_data(job.shape, batch_size=job.devices * job.shape.batch, steps=job.all_steps)
    tokenizer = word_tokenizer(job.shape)
    module = _Staying(
        _make_model(job, rank), tokenizer, task_names=data.task_names, max_new_tokens=4
    )
    clock = Clock(job)
    validates = job.run == "default"
    callbacks = [clock, *(default_callbacks(job.folder) if validates else ())]
    profiler = SimpleProfiler()
    trainer = Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=job.devices,
        strategy=_strategy(job),
        plugins=[LightningEnvironment(), AtomicCheckpointIO()],
        max_steps=job.all_steps,
        log_every_n_steps=job.log_every,
        val_check_interval=job.all_steps,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if validates else 0,
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=job.folder,
        logger=[HistoryLogger(job.folder)],
        profiler=profiler,
        callbacks=[*callbacks, Stopping()],  # as every run of polylab.train has it
    )
    trainer.fit(module, datamodule=data)
    own = f"[Callback]{clock.state_key}."
    times = profiler.recorded_durations
    hooks = {name: sum(times[name]) for name in times if not name.startswith(own)}
    return {**clock.report(), "hooks": hooks, "callbacks": [c.state_key for c in callbacks[1:]]}


def _strategy(job: Job) -> Any:
    """That of `conf/trainer/STRATEGY.yaml`; a device alone needs none."""
    if job.devices == 1:
        return "auto"
    name, _, whole = job.strategy.partition("+")
    given = yaml.safe_load((CONF / f"trainer/{name}.yaml").read_text())["strategy"]
    return _build({**given, **({"shard_skills": False} if whole else {})}, {})


def default_callbacks(folder: str) -> list[Callback]:
    """Those of `conf/callbacks/default.yaml`, in its order, without Hydra."""
    nodes = yaml.safe_load((CONF / "callbacks/default.yaml").read_text())
    parts = {"folder": Path(folder), "dirpath": Path(folder) / "checkpoints"}
    return [_build(node, parts) for node in nodes.values()]


def _build(node: dict[str, Any], parts: dict[str, Any]) -> Any:
    place, _, name = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(place), name)
    wanted = inspect.signature(target).parameters
    given = {key: value for key, value in node.items() if key != "_target_"}
    return target(**{k: v for k, v in parts.items() if k in wanted}, **given)


class Clock(Callback):
    """Marks where each step starts on the device's own time, and reads the memory.

    The host does not wait for the device: steps overlap as they do in a training. Before the hooks
    at a validation's end it does, so that their times are their own.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._marks: list[Any] = []
        self._memory: dict[str, float | None] = {}
        self._tokens = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """What the preparation took is another matter than what the training takes."""
        self._memory = {f"start {name}": value for name, value in peaks(self._job.device).items()}
        reset_peaks(self._job.device)

    def on_train_batch_start(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx == 0:
            self._tokens = _tokens(batch, joined=self._job.shape.target_seq is None)
        self._marks.append(mark(self._job.device))
        if batch_idx == self._job.all_steps - 1:
            self._memory |= peaks(self._job.device)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        wait(self._job.device)

    def report(self) -> dict[str, Any]:
        """Seconds of the steps after the warm-up, and which of them logged."""
        job = self._job
        seconds = intervals(self._marks, job.device)[job.warm_up :]
        numbers = range(job.warm_up + 1, job.all_steps)
        logs = [number % job.log_every == 0 for number in numbers]
        return {"seconds": seconds, "logs": logs, "tokens": self._tokens, "memory": self._memory}


def _loop(job: Job, rank: int) -> dict[str, Any]:
    """The same model and optimiser, transformers' own loss, one batch that lies on the device."""
    net = model = _make_model(job, rank)
    device = f"cuda:{rank}" if job.device == "cuda" else "cpu"
    if job.devices > 1:
        backend = "nccl" if job.device == "cuda" else "gloo"
        distributed.init_process_group(backend, rank=rank, world_size=job.devices)
        ids = [rank] if job.device == "cuda" else None
        net = DistributedDataParallel(model, device_ids=ids)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=job.device == "cuda")
    batch = make_batch(job.shape, device=device, n_tasks=N_TASKS, seed=rank)
    rows = torch.arange(job.shape.batch, device=device) + rank * job.shape.batch
    reset_peaks(job.device)
    marks = []
    for step in range(job.all_steps):
        marks.append(mark(job.device))
        model.set_noise_key(0, step, rows=rows)
        net(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = intervals(marks, job.device)[job.warm_up :]
    return {
        "seconds": seconds,
        "logs": [False] * len(seconds),
        "tokens": _tokens(batch, joined=job.shape.target_seq is None),
        "memory": peaks(job.device),
        "hooks": {},
        "callbacks": [],
    }


def _tokens(batch: dict[str, Any], *, joined: bool) -> int:
    """Attended inputs and, where these are apart, the labels that count."""
    found = batch["attention_mask"].sum()
    return int(found if joined else found + (batch["labels"] != -100).sum())


def mark(device: str) -> Any:
    """A moment: on a GPU when it gets there, else now."""
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def intervals(marks: list[Any], device: str) -> list[float]:
    """Seconds from one mark to the next."""
    pairs = list(pairwise(marks))
    if device == "cpu":
        return [after - before for before, after in pairs]
    wait(device)
    return [before.elapsed_time(after) / 1000 for before, after in pairs]


def reset_peaks(device: str) -> None:
    """Begin to look for the peak anew, without what is cached."""
    if device == "cuda":
        free(device)
        torch.cuda.reset_peak_memory_stats()


def peaks(device: str) -> dict[str, float | None]:
    """GiB since `reset_peaks`: of tensors, and of what the allocator holds.

    On a CPU that of the process since its start, which no one can reset.
    """
    if device == "cpu":
        return {
            "allocated": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "reserved": None,
        }
    return {
        "allocated": torch.cuda.max_memory_allocated() / 2**30,
        "reserved": torch.cuda.max_memory_reserved() / 2**30,
    }
