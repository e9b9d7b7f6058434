"""What a worker sends is what arrives."""

import pickle
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from polylab.data import DataModule, TaskCollection, transport
from polylab.data.transport import Sender, received


def _collate(items: Any) -> dict[str, Any]:
    return {"ids": torch.tensor(items), "mask": torch.ones(3, 5, dtype=torch.bool), "texts": ["a"]}


def test_small_tensors_leave_as_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "INLINE_BYTES", 15)
    sent = Sender(_collate)([[1, 2], [3, 4]])
    assert {key: type(value).__name__ for key, value in sent.items()} == {
        "ids": "Tensor",
        "mask": "ndarray",
        "texts": "list",
    }


def test_a_batch_arrives_as_it_was() -> None:
    batch = received(pickle.loads(pickle.dumps(Sender(_collate)([[1, 2], [3, 4]]))))
    expected = _collate([[1, 2], [3, 4]])
    assert batch.keys() == expected.keys()
    for key in ("ids", "mask"):
        assert torch.equal(batch[key], expected[key])
        assert batch[key].dtype == expected[key].dtype
        batch[key].zero_()  # it is the receiver's own
    assert batch["texts"] == ["a"]


@pytest.mark.parametrize("limit", [0, 100, 10**9])
def test_workers_give_the_batches_of_the_main_process(
    collection: TaskCollection,
    byt5: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    monkeypatch.setattr(transport, "INLINE_BYTES", limit)
    own, sent = (
        list(
            DataModule(
                lambda: collection, byt5, is_encoder_decoder=True, batch_size=9, num_workers=n
            ).train_dataloader()
        )
        for n in (0, 2)
    )
    assert len(own) == len(sent) == 5
    for batch, other in zip(own, sent, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[key], other[key]) for key in batch)
        assert all(batch[key].dtype == other[key].dtype for key in batch)
