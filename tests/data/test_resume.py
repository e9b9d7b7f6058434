"""Continuation in mid-epoch: the examples seen are those of an uninterrupted run."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import PreTrainedTokenizerBase

from polylab.data import DataModule, TaskCollection

Seen = list[tuple[list[list[int]], list[int], list[int]]]


class _Recorder(LightningModule):
    """Notes every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: Seen = []

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen.append(_content(batch))
        return self.layer(batch["rows"][:, None].float()).mean()

    def validation_step(self, batch: dict[str, Any]) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def _content(batch: dict[str, torch.Tensor]) -> tuple[list[list[int]], list[int], list[int]]:
    return batch["input_ids"].tolist(), batch["task_ids"].tolist(), batch["rows"].tolist()


@pytest.fixture
def make(collection: TaskCollection, byt5: PreTrainedTokenizerBase) -> Any:
    def make_module(**changes: Any) -> DataModule:
        arguments = {"batch_size": 6, "temperature": 3.0, "eval_examples_per_task": 2}
        return DataModule(
            lambda: collection, byt5, is_encoder_decoder=True, **{**arguments, **changes}
        )

    return make_module


def _fit(module: DataModule, folder: Path, *, steps: int, ckpt: Path | None = None) -> Seen:
    recorder = _Recorder()
    trainer = Trainer(
        max_steps=steps,
        default_root_dir=folder,
        accelerator="cpu",
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        val_check_interval=5,
        callbacks=[
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about few workers and intervals, by Lightning
        trainer.fit(recorder, datamodule=module, ckpt_path=ckpt)
    return recorder.seen


@pytest.mark.parametrize("filled", [{}, {"group_by_length": 3}, {"tasks_per_batch": 2}])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_trainer_sees_the_same_examples_after_a_resume(
    make: Any, tmp_path: Path, num_workers: int, filled: dict[str, int]
) -> None:
    """8 steps of 2 micro-batches an epoch: within, at the end of, and after the first epoch."""
    changes = {"num_workers": num_workers, **filled}
    whole = _fit(make(**changes), tmp_path / "whole", steps=19)
    assert len(whole) == 38
    assert whole[:16] != whole[16:32]
    for step in (5, 8, 11):
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        torch.load(checkpoint, weights_only=True)
        resumed = _fit(make(**changes, seed=9), tmp_path / "resumed", steps=19, ckpt=checkpoint)
        assert resumed == whole[2 * step :]


@pytest.mark.parametrize("filled", [{}, {"group_by_length": 3}, {"tasks_per_batch": 1}])
def test_workers_do_not_change_the_examples(
    make: Any, tmp_path: Path, filled: dict[str, int]
) -> None:
    runs = [_fit(make(num_workers=n, **filled), tmp_path / str(n), steps=9) for n in (0, 1, 3)]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("stop", "finishes"), [(0, False), (3, False), (8, False), (8, True)])
def test_a_plain_loop_resumes(make: Any, num_workers: int, stop: int, finishes: bool) -> None:
    loader = make(num_workers=num_workers).train_dataloader()
    epochs = [[_content(batch) for batch in loader] for _ in range(4)]
    assert [len(epoch) for epoch in epochs] == [8] * 4
    loader = make(num_workers=num_workers).train_dataloader()
    list(loader)
    batches = iter(loader)
    seen = [_content(next(batches)) for _ in range(stop)]
    assert seen == epochs[1][:stop]
    if finishes:
        assert next(batches, None) is None
    resumed = make(num_workers=num_workers, seed=9).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    rest = [[_content(batch) for batch in resumed] for _ in range(2)]
    assert rest == ([epochs[1][stop:], epochs[2]] if stop < 8 else epochs[2:])


def test_resuming_with_other_lengths_is_refused(make: Any) -> None:
    loader = make(group_by_length=3).train_dataloader()
    next(iter(loader))
    for changes, message in (
        ({"prompt": "name"}, r"token_lengths was \d+ and is \d+"),
        ({"max_input_length": 8}, r"token_lengths was \d+ and is \d+"),
    ):
        other = make(group_by_length=3, **changes).train_dataloader()
        other.load_state_dict(loader.state_dict())
        with pytest.raises(ValueError, match=message):
            next(iter(other))


def test_resuming_with_other_data_is_refused(make: Any) -> None:
    loader = make().train_dataloader()
    next(iter(loader))
    other = make(temperature=1.0).train_dataloader()
    other.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match=r"temperature was 3\.0 and is 1\.0"):
        next(iter(other))
