"""The Lightning data module: task names and ids, loaders, exact resume."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jaxtyping import Bool
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from polylab.data.collate import Collator
from polylab.data.dataset import EncodedExamples
from polylab.data.encoding import TextEncoder, padding_id
from polylab.data.evaluation import EvaluationBatchSampler, evaluation_order
from polylab.data.loaders import ResumableLoader, evaluation_loader, training_loader
from polylab.data.prompts import check_instructions, check_prompt
from polylab.data.sampling import (
    Key,
    MixtureBatchSampler,
    check_counts,
    mixing_probabilities,
    slice_size,
)
from polylab.data.tasks import (
    SPLITS,
    TaskCollection,
    TaskData,
    TaskSource,
    quote,
    skill_matrix,
)

logger = logging.getLogger(__name__)


class DataModule(LightningDataModule):
    """Multi-task batches tagged with task ids.

    Use it in a Trainer with `use_distributed_sampler=False`: its samplers know the ranks. The
    source is read when first needed. Rows of a training batch are the same for any number of
    ranks, accumulation steps and workers.

    Args:
        source: Gives the tasks.
        tokenizer: Of the backbone.
        is_encoder_decoder: Of the backbone.
        batch_size: The global batch: all ranks and accumulation together.
        temperature: Tasks are mixed by `size ** (1 / temperature)`; `inf` is uniform.
        prompt: What of the task the input carries: `none`, `name` or `instruction`.
        max_input_length: In tokens; a longer input loses its start (see `keep_input`).
        max_target_length: In tokens.
        keep_input: Which side of a long input stays, `end` or `start`.
        separator: Between input and target for decoder-only models.
        steps_per_epoch: Optimiser steps per epoch; by default one pass over the examples.
        eval_batch_size: Over all ranks; by default `batch_size`.
        eval_examples_per_task: Bounds validation; None is all.
        test_examples_per_task: Bounds the test; None is all.
        known_tasks: Names that have ids already, in their order; new names follow.
        seed: Of the order and of the evaluation subsets.
        num_workers: Loader processes.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        source: TaskSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        is_encoder_decoder: bool,
        batch_size: int = 64,
        temperature: int | float | str = 1.0,
        prompt: str = "none",
        max_input_length: int = 512,
        max_target_length: int = 128,
        keep_input: str = "end",
        separator: str = "\n",
        steps_per_epoch: int | None = None,
        eval_batch_size: int | None = None,
        eval_examples_per_task: int | None = 50,
        test_examples_per_task: int | None = None,
        known_tasks: Sequence[str] = (),
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_prompt(prompt)
        check_counts(
            steps_per_epoch=steps_per_epoch,
            eval_batch_size=eval_batch_size,
            eval_examples_per_task=eval_examples_per_task,
            test_examples_per_task=test_examples_per_task,
        )
        slice_size(batch_size, world_size=1, accumulate=1)
        mixing_probabilities([1], temperature=float(temperature))
        self._source = source
        self._encoder = TextEncoder(
            tokenizer,
            is_encoder_decoder=is_encoder_decoder,
            max_input_length=max_input_length,
            max_target_length=max_target_length,
            separator=separator,
            keep_input=keep_input,
        )
        self._pad_id = padding_id(tokenizer)
        self._is_encoder_decoder = is_encoder_decoder
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size or batch_size
        self._temperature = float(temperature)
        self._prompt = prompt
        self._steps_per_epoch = steps_per_epoch
        self._limits = {
            "train": eval_examples_per_task,
            "validation": eval_examples_per_task,
            "test": test_examples_per_task,
        }
        self._known_tasks = list(known_tasks)
        self._seed = seed
        self._num_workers = num_workers
        self._was_noted = False

    @cached_property
    def collection(self) -> TaskCollection:
        """The tasks, read from the source at the first use.

        Raises:
            ValueError: If the prompt needs instructions that a task does not have.
        """
        collection = self._source()
        if self._prompt == "instruction":
            check_instructions(collection)
        return collection

    @cached_property
    def task_names(self) -> list[str]:
        """Task names; the index is the id."""
        return self.collection.appended(self._known_tasks)

    @property
    def skill_matrix(self) -> tuple[Bool[Tensor, "tasks skills"], list[str]] | None:
        """Which task needs which skill and the skills' names, where the source knows them."""
        skills = self.collection.skills
        return None if skills is None else skill_matrix(skills, self.task_names)

    @property
    def sizes(self) -> dict[str, int]:
        """Training examples per task."""
        return {task.name: len(task.train) for task in self.collection.tasks}

    def describe(self) -> str:
        """One line of facts."""
        tasks = self.collection.tasks
        counts = [f"{sum(len(task.split(s)) for task in tasks):,} {s}" for s in SPLITS]
        inputs, targets = self._dataset("train").truncated(sample=256)
        return (
            f"{len(self.task_names)} tasks · {' / '.join(counts)} examples · prompt={self._prompt} "
            f"· temperature={self._temperature:g} · cut: {inputs:.1%} of inputs, "
            f"{targets:.1%} of targets"
        )

    def setup(self, stage: str) -> None:
        """Read the tasks, check the batch against the trainer and log what was noticed.

        Raises:
            ValueError: If the global batch cannot be divided over ranks and accumulation.
        """
        if stage == "fit":
            slice_size(self._batch_size, world_size=self._world_size, accumulate=self._accumulate)
        if self._rank == 0 and not self._was_noted:
            self._was_noted = True
            for note in self.collection.notes:
                logger.info(note)

    def train_dataloader(self) -> ResumableLoader:
        """The resumable loader of this rank's share of the mixture.

        Raises:
            ValueError: If a task has no training examples.
        """
        untrained = [name for name, size in self.sizes.items() if size == 0]
        if untrained:
            raise ValueError(
                f"no training examples in {quote(untrained)} · every task needs at least one to "
                "train · leave these tasks out."
            )
        sampler = MixtureBatchSampler(
            list(self.sizes.values()),
            batch_size=self._batch_size,
            seed=self._seed,
            temperature=self._temperature,
            steps_per_epoch=self._steps_per_epoch,
            rank=self._rank,
            world_size=self._world_size,
            accumulate=self._accumulate,
            reshuffle=not getattr(self.trainer, "overfit_batches", 0),
        )
        return training_loader(
            self._dataset("train"),
            sampler,
            collator=self._collator(evaluation=False),
            num_workers=self._num_workers,
            seed=self._seed,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The bounded validation subset; an empty list if no task has a validation split."""
        return self.evaluation_dataloader("validation")

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The test split; an empty list if no task has one."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> DataLoader[Any] | list[Any]:
        """This rank's share of a split, each example on one rank, similar lengths together.

        `rows` of its batches number the evaluated examples, task by task in order of the names.
        """
        order = self._evaluation_order(split)
        if not order:
            return []
        sampler = EvaluationBatchSampler(
            order,
            batch_size=self._eval_batch_size,
            rank=self._rank,
            world_size=self._world_size,
        )
        return evaluation_loader(
            self._dataset(split),
            sampler,
            collator=self._collator(evaluation=True),
            num_workers=self._num_workers,
            seed=self._seed,
        )

    def state_dict(self) -> dict[str, Any]:
        """The names in order of their ids. The position is in the training loader's state."""
        return {"task_names": self.task_names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept a checkpoint whose ids are those of these data.

        Raises:
            ValueError: If an id would mean another task.
        """
        saved = state_dict["task_names"]
        if self.task_names[: len(saved)] != saved:
            raise ValueError(
                f"the checkpoint has the tasks {quote(saved)} and the data {quote(self.task_names)}"
                " · ids must stay · use the same data, or start a new run with init_from=."
            )

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def _tasks_with(self, split: str) -> list[TaskData]:
        return [task for task in self.collection.tasks if task.split(split)]

    def _dataset(self, split: str) -> EncodedExamples:
        tasks = self._tasks_with(split)
        ids = {name: i for i, name in enumerate(self.task_names)}
        return EncodedExamples(
            [task.split(split) for task in tasks],
            task_names=[task.name for task in tasks],
            task_ids=[ids[task.name] for task in tasks],
            encoder=self._encoder,
            prompt=self._prompt,
        )

    def _evaluation_order(self, split: str) -> list[Key]:
        tasks = self._tasks_with(split)
        return evaluation_order(
            [[len(example.input) for example in task.split(split)] for task in tasks],
            names=[task.name for task in tasks],
            limit=self._limits[split],
            seed=self._seed,
        )

    def _collator(self, *, evaluation: bool) -> Collator:
        return Collator(
            pad_id=self._pad_id,
            n_tasks=len(self.task_names),
            is_encoder_decoder=self._is_encoder_decoder,
            evaluation=evaluation,
        )
