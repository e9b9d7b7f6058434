"""The data module of pretraining: generated text, no files."""

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from polylab.pretraining.corpus import PretrainingCorpus


class PretrainingData(L.LightningDataModule):
    """Serves `PretrainingCorpus`; validation text is drawn with another seed.

    Args:
        batch_size: Lines a batch.
        num_workers: Processes that write lines; each has its own stream, so that the number of
            workers is part of what a run is reproduced from.
        input_length: Longest source in tokens.
        target_length: Longest target in tokens.
        seed: Chooses the lines.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        num_workers: int = 0,
        input_length: int = 112,
        target_length: int = 12,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.input_length, self.target_length = input_length, target_length
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless."""
        return self._loader(str(self.seed), self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Endless: bound it with `trainer.limit_val_batches`."""
        return self._loader(f"{self.seed}/validation", 0)

    def _loader(self, seed: str, num_workers: int) -> DataLoader[Any]:
        corpus = PretrainingCorpus(
            batch_size=self.batch_size,
            input_length=self.input_length,
            target_length=self.target_length,
            seed=seed,
        )
        return DataLoader(
            corpus,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            pin_memory=torch.cuda.is_available(),
        )
