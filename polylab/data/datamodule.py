"""The Lightning data module: task names and ids, loaders, exact resume."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jaxtyping import Bool
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from polylab.data.cache import Streamed, cached_tasks
from polylab.data.collate import Collator
from polylab.data.dataset import EncodedExamples, length_grouping
from polylab.data.encoding import TextEncoder, padding_id
from polylab.data.evaluation import EvaluationBatchSampler, evaluation_order
from polylab.data.labels import ClassEncoder, LabelSets, label_set
from polylab.data.loaders import ResumableLoader, evaluation_loader, training_loader
from polylab.data.mixing import Mixing, planned_rows
from polylab.data.packing import PackingCollator
from polylab.data.prompts import check_instructions, check_prompt
from polylab.data.sampling import (
    MixtureBatchSampler,
    check_counts,
    check_either,
    slice_size,
)
from polylab.data.tasks import (
    SPLITS,
    TaskCollection,
    TaskData,
    TaskSource,
    check_saved_names,
    check_trainable,
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
        is_encoder: Of the backbone: an encoder alone, whose targets are classes (`label_sets`).
        batch_size: The global batch: all ranks and accumulation together.
        temperature: Tasks are mixed by `size ** (1 / temperature)`; `inf` is uniform (`Mixing`).
        cap: Larger tasks count as of this size.
        weights: Of tasks, over what follows from their sizes.
        prompt: What of the task the input carries: `none`, `name` or `instruction`.
        max_input_length: In tokens; a longer input loses its start (see `keep_input`).
        max_target_length: In tokens.
        keep_input: Which side of a long input stays, `end` or `start`.
        separator: Between input and target for decoder-only models.
        chat: Whether decoder-only models get their tokenizer's chat template where it has one,
            instead of the separator.
        steps_per_epoch: Optimiser steps per epoch; by default one pass over the examples.
        eval_batch_size: Over all ranks; by default `batch_size`.
        eval_examples_per_task: Bounds validation; None is all.
        test_examples_per_task: Bounds the test; None is all.
        known_tasks: Names that have ids already, in their order; new names follow.
        seed: Of the order and of the evaluation subsets.
        num_workers: Loader processes.
        group_by_length: Fill training batches with examples of like lengths, of this many batches
            or more at a time; None leaves them as drawn.
        packing: Put several examples of a training batch into one row, as `PackingCollator` says,
            for a `PolyModel` in a `PolyModule`.
        tasks_per_batch: Each training batch holds examples of exactly so many tasks; None leaves
            them as drawn. The mix stays the same (`TaskBatches`).
        cache: A folder where the tasks, and the token ids of their training examples, lie in files
            that are mapped instead of kept in memory. They are made by the first process that
            needs them. None keeps everything in memory, and tokenises when it is needed.
        max_labels: A task with more labels than that is no classification.
        known_labels: Of tasks that have heads already, in the order of their classes.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        source: TaskSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        is_encoder_decoder: bool,
        is_encoder: bool = False,
        batch_size: int = 64,
        temperature: int | float | str = 1.0,
        cap: int | None = None,
        weights: Mapping[str, float] | None = None,
        prompt: str = "none",
        max_input_length: int = 512,
        max_target_length: int = 128,
        keep_input: str = "end",
        separator: str = "\n",
        chat: bool = True,
        steps_per_epoch: int | None = None,
        eval_batch_size: int | None = None,
        eval_examples_per_task: int | None = 50,
        test_examples_per_task: int | None = None,
        known_tasks: Sequence[str] = (),
        seed: int = 0,
        num_workers: int = 0,
        group_by_length: int | None = None,
        packing: bool = False,
        tasks_per_batch: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        max_labels: int = 64,
        known_labels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        check_prompt(prompt)
        check_counts(
            steps_per_epoch=steps_per_epoch,
            eval_batch_size=eval_batch_size,
            eval_examples_per_task=eval_examples_per_task,
            test_examples_per_task=test_examples_per_task,
            group_by_length=group_by_length,
            tasks_per_batch=tasks_per_batch,
            max_labels=max_labels,
        )
        check_either(tasks_per_batch, group_by_length)
        slice_size(batch_size, world_size=1, accumulate=1)
        if packing and is_encoder:
            raise ValueError(
                "data.packing=true: the backbone is an encoder alone, whose examples are read "
                "whole · set data.packing=false."
            )
        self._mixing = Mixing(float(temperature), cap, weights or {})
        self._source = source
        kind = ClassEncoder if is_encoder else TextEncoder
        self._encoder = kind(
            tokenizer,
            is_encoder_decoder=is_encoder_decoder or is_encoder,  # no separator, no joint row
            max_input_length=max_input_length,
            max_target_length=max_target_length,
            separator=separator,
            keep_input=keep_input,
            chat=chat,
        )
        self._pad_id = padding_id(tokenizer)
        self._is_encoder_decoder = is_encoder_decoder or is_encoder
        self._max_labels = max_labels
        self._known_labels = dict(known_labels or {})
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size or batch_size
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
        self._group_by_length = group_by_length
        self._packing = packing
        self._tasks_per_batch = tasks_per_batch
        self._cache = cache
        self._was_noted = False

    @cached_property
    def collection(self) -> TaskCollection:
        """The tasks, read from the source at the first use.

        Raises:
            ValueError: If the prompt needs instructions that a task does not have.
        """
        collection = self._source() if self._cache is None else self._from_cache(self._cache)
        if self._prompt == "instruction":
            check_instructions(collection)
        return collection

    @cached_property
    def task_names(self) -> list[str]:
        """Task names; the index is the id."""
        return self.collection.appended(self._known_tasks)

    @cached_property
    def label_sets(self) -> LabelSets | None:
        """The labels of each task, for an encoder; None for a model that generates.

        Raises:
            ValueError: If a task is no classification.
        """
        if not isinstance(self._encoder, ClassEncoder):
            return None
        tasks, known = {task.name: task for task in self.collection.tasks}, self._known_labels
        absent = [name for name in self.task_names if name not in {*tasks, *known}]
        if absent:
            raise ValueError(
                f"data.known_tasks: {absent[0]!r} has no data, which its labels come from · give "
                "its data, or leave it out."
            )
        return LabelSets(
            [
                known.get(name) or label_set(tasks[name], max_labels=self._max_labels)
                for name in self.task_names
            ]
        )

    @property
    def skill_matrix(self) -> tuple[Bool[Tensor, "tasks skills"], list[str]] | None:
        """Which task needs which skill and the skills' names, where the source knows them."""
        skills = self.collection.skills
        return None if skills is None else skill_matrix(skills, self.task_names)

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """The categories of each task that has some."""
        return self.collection.categories

    @property
    def sizes(self) -> dict[str, int]:
        """Training examples per task."""
        return {task.name: len(task.train) for task in self.collection.tasks}

    @property
    def mix(self) -> list[dict[str, Any]]:
        """Of each task with data, by id: where it is from and its share of the training rows.

        Raises:
            ValueError: If a weight is of no task, or a task has no training examples.
        """
        return planned_rows(self._mixing, self.collection, self.task_names)

    def describe(self) -> str:
        """One line of facts."""
        tasks = self.collection.tasks
        counts = [f"{sum(len(task.split(s)) for task in tasks):,} {s}" for s in SPLITS]
        inputs, targets = self._dataset("train").truncated(sample=256)
        template = "" if self._encoder.chat is None else "chat template · "
        return (
            f"{len(self.task_names)} tasks · {' / '.join(counts)} examples · prompt={self._prompt} "
            f"· {template}temperature={self._mixing.temperature:g} · cut: {inputs:.1%} of inputs, "
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
            if self.label_sets is not None:
                for note in self.label_sets.notes(self.collection.tasks, self._ids):
                    logger.info(note)

    def train_dataloader(self) -> ResumableLoader:
        """The resumable loader of this rank's share of the mixture.

        Raises:
            ValueError: If a task has no training examples.
        """
        check_trainable(self.sizes)
        dataset = self._dataset("train", with_texts=False)
        if self._cache is not None:
            assert self.collection.fingerprint is not None
            dataset.store(self._cache, fingerprint=self.collection.fingerprint)
        sampler = MixtureBatchSampler(
            list(self.sizes.values()),
            batch_size=self._batch_size,
            seed=self._seed,
            temperature=self._mixing.temperature,
            probabilities=self._mixing.probabilities(self.collection),
            steps_per_epoch=self._steps_per_epoch,
            rank=self._rank,
            world_size=self._world_size,
            accumulate=self._accumulate,
            reshuffle=not getattr(self.trainer, "overfit_batches", 0),
            tasks_per_batch=self._tasks_per_batch,
            grouping=length_grouping(
                dataset,
                self._group_by_length,
                joined=not self._is_encoder_decoder,
                with_ids=self._num_workers == 0,  # else the workers make them
            ),
        )
        return training_loader(
            dataset,
            sampler,
            collator=self._packing_collator() if self._packing else self._collator(),
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

        `rows` of its batches number the evaluated examples, task by task in order of the names. All
        ranks have as many batches, some of which may be fillers (`filler`): not to be counted.
        """
        tasks, dataset = self._tasks_with(split), self._dataset(split)
        order = evaluation_order(
            [len(task.split(split)) for task in tasks],
            lambda index: len(dataset.text(index)),
            names=[task.name for task in tasks],
            limit=self._limits[split],
            seed=self._seed,
        )
        if not order:
            return []
        sampler = EvaluationBatchSampler(
            order,
            batch_size=self._eval_batch_size,
            rank=self._rank,
            world_size=self._world_size,
        )
        return evaluation_loader(
            dataset,
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
        check_saved_names(state_dict["task_names"], self.task_names)

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def _from_cache(self, folder: str | os.PathLike[str]) -> TaskCollection:
        if isinstance(self._source, Streamed):
            return cached_tasks(self._source, folder)
        collection = self._source()  # read already, maybe from the same cache
        if collection.fingerprint is None:
            raise ValueError(
                f"data.cache={folder}: the source makes its tasks anew whenever they are needed, "
                "and has nothing to cache · set data.cache=null."
            )
        return collection

    def _tasks_with(self, split: str) -> list[TaskData]:
        return [task for task in self.collection.tasks if task.split(split)]

    @property
    def _ids(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.task_names)}

    def _dataset(self, split: str, *, with_texts: bool = True) -> EncodedExamples:
        tasks, ids = self._tasks_with(split), self._ids
        if isinstance(self._encoder, ClassEncoder) and self.label_sets is not None:
            self._encoder.use(self.label_sets)
        return EncodedExamples(
            [task.split(split) for task in tasks],
            task_names=[task.name for task in tasks],
            task_ids=[ids[task.name] for task in tasks],
            encoder=self._encoder,
            prompt=self._prompt,
            with_texts=with_texts,
        )

    def _packing_collator(self) -> PackingCollator:
        return PackingCollator(
            pad_id=self._pad_id,
            n_tasks=len(self.task_names),
            is_encoder_decoder=self._is_encoder_decoder,
        )

    def _collator(self, *, evaluation: bool = False) -> Collator:
        return Collator(
            pad_id=self._pad_id,
            n_tasks=len(self.task_names),
            is_encoder_decoder=self._is_encoder_decoder,
            evaluation=evaluation,
            label_sets=self.label_sets,
        )
