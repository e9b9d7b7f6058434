"""A finished run's routing changed in a notebook: the command's study with the model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import torch
from transformers import PreTrainedModel

from polylab.backbones import Backbone
from polylab.config.errors import ConfigError
from polylab.config.files import folder_names
from polylab.evaluating.asking import study, study_routings, with_learned
from polylab.evaluating.choices import (
    SPLITS,
    chosen_tasks,
    evaluation_config,
    routing_problems,
    unknown,
)
from polylab.evaluating.preparation import Evaluation, prepare
from polylab.parts import read_tasks
from polylab.trainers import quiet_libraries
from polylab.training.journal import Journal

if TYPE_CHECKING:
    from polylab.evaluating.study import Study
    from polylab.runs import Run

__all__ = ["study_run"]


def study_run(
    run: Run,
    routings: Sequence[str] | None,
    *,
    split: str,
    examples_per_task: int | None,
    tasks: Sequence[str] | None,
    answers: bool,
    metric: str | None,
) -> Study:
    """See `Run.study`."""
    problems = unknown("split", split, SPLITS)
    problems += [] if routings is None else routing_problems(routings)
    if problems:
        raise ConfigError("; ".join(problems))
    quiet_libraries()
    place = next(run.model.parameters()).device
    try:
        with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            evaluation = _prepared(
                run,
                Path(folder),
                split=split,
                examples_per_task=examples_per_task,
                tasks=tasks,
                answers=answers,
            )
            chosen, note = _chosen(evaluation, routings)
            files = [Path(folder) / f"{name}.jsonl" for name in folder_names(chosen)]
            journals = {
                routing: Journal(file, about={})
                for routing, file in zip(chosen, files, strict=True)
            }
            return study(evaluation, journals, metric=metric, note=note)
    finally:
        run.model.to(place).eval()  # the trainer leaves it on the CPU


def _prepared(
    run: Run,
    folder: Path,
    *,
    split: str,
    examples_per_task: int | None,
    tasks: Sequence[str] | None,
    answers: bool,
) -> Evaluation:
    device = next(run.model.parameters()).device
    config = evaluation_config(
        run.config,
        split=split,
        examples_per_task=examples_per_task,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1 if device.index is None else [device.index],
        precision="32-true",
        enable_progress_bar=False,
    )
    source = chosen_tasks(tasks, read_tasks(config))
    config.data.known_tasks = run.tasks
    backbone = Backbone(
        cast(PreTrainedModel, run.model.get_base_model()),
        run.tokenizer,
        is_encoder_decoder=bool(run.model.config.is_encoder_decoder),
        name=str(config.backbone.name_or_path),
        is_encoder=run.labels is not None,
    )
    return prepare(
        config,
        run.model,
        backbone,
        source=source,
        labels=run.labels,
        split=split,
        folder=folder,
        asks_answers=answers,
    )


def _chosen(evaluation: Evaluation, routings: Sequence[str] | None) -> tuple[list[str], str | None]:
    if routings is None:
        return study_routings(evaluation)
    return with_learned(routings), None
