"""Loaders that leave the global random generator alone and resume exactly."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from polylab.data.collate import Collator
from polylab.data.dataset import EncodedExamples
from polylab.data.evaluation import EvaluationBatchSampler
from polylab.data.packing import PackingCollator
from polylab.data.sampling import MixtureBatchSampler
from polylab.data.transport import Receiver, Sender


class ResumableLoader(StatefulDataLoader[Any]):
    """A loader that goes on with the next epoch when its state was taken after the last batch."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position; our sampler begins the next epoch itself.

        A state marked as finished would make torchdata begin twice, and its worker processes
        fetch ahead each time: an epoch would be lost.
        """
        super().load_state_dict({**state_dict, "_iterator_finished": False})

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The batches; workers begin with them now."""
        batches = super().__iter__()
        return Receiver(batches) if self.num_workers else batches


def training_loader(
    dataset: EncodedExamples,
    sampler: MixtureBatchSampler,
    *,
    collator: Collator | PackingCollator,
    num_workers: int,
    seed: int,
) -> ResumableLoader:
    """A loader whose state resumes in mid-epoch."""
    with warnings.catch_warnings():  # torchdata calls a deprecated function of torch
        warnings.filterwarnings("ignore", message=".*set_vital.*")
        return ResumableLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=Sender(collator) if num_workers else collator,
            **_process_arguments(num_workers, seed),
        )


def evaluation_loader(
    dataset: EncodedExamples,
    sampler: EvaluationBatchSampler,
    *,
    collator: Collator,
    num_workers: int,
    seed: int,
) -> DataLoader[Any]:
    """A loader over a fixed list of batches."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator,
        **_process_arguments(num_workers, seed),
    )


def _process_arguments(num_workers: int, seed: int) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "worker_init_fn": _start_worker,
        # without a generator of its own a loader would draw from the global one
        "generator": torch.Generator().manual_seed(seed),
    }


def _start_worker(_worker: int) -> None:
    # a fast tokenizer that was used before the fork would complain about its thread pool
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
