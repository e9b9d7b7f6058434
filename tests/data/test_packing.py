"""Training batches whose rows hold several examples."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from polylab.data import DataModule, JsonlFolder, TaskCollection
from polylab.data.dataset import EncodedExample
from polylab.data.packing import PackingCollator, pack


def _random_sizes(seed: int, dimensions: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    longest = draw.choice([3, 60, 128, 129, 700])
    number = draw.randint(1, 70)
    return [tuple(draw.randint(1, longest) for _ in range(dimensions)) for _ in range(number)]


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_every_example_is_in_one_row_that_it_fits(seed: int, dimensions: int) -> None:
    sizes = _random_sizes(seed, dimensions)
    rows = pack(sizes)
    assert sorted(i for row in rows for i in row) == [*range(len(sizes))]
    capacity = [max(128, *(size[d] for size in sizes), 0) for d in range(dimensions)]
    for row in rows:
        assert 1 <= len(row) <= 8
        assert all(sum(sizes[i][d] for i in row) <= capacity[d] for d in range(dimensions))
    assert pack(sizes) == rows
    # first fit: what a row holds had no room in an earlier one that could hold one more
    for earlier, row in enumerate(rows):
        free = [capacity[d] - sum(sizes[i][d] for i in row) for d in range(dimensions)]
        if len(row) < 8:
            for later in rows[earlier + 1 :]:
                assert not any(
                    all(sizes[i][d] <= free[d] for d in range(dimensions)) for i in later
                )


def test_rows_are_filled_with_the_longest_first() -> None:
    assert pack([(50,), (200,), (150,), (50,), (40,)]) == [[1], [2, 0], [3, 4]]
    assert pack([(100, 9), (20, 120), (8, 3)]) == [[1, 2], [0]]  # the second's target is large
    assert [len(row) for row in pack([(2,)] * 20)] == [8, 8, 4]


def _items() -> list[EncodedExample]:
    """Of 3 + 2, 126 + 5, 4 + 1 and 120 + 3 tokens."""
    sizes, next_id = [(3, 2), (126, 5), (4, 1), (120, 3)], 10
    items = []
    for row, (n, m) in enumerate(sizes):
        ids = np.arange(next_id, next_id + n + m, dtype=np.int32)
        next_id += n + m
        items.append(EncodedExample((4, 2, 0, 2)[row], 30 + row, ids[:n], ids[n:]))
    return items


def _split(row: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    ends = np.cumsum(lengths)
    return [list(row[end - n : end]) for end, n in zip(ends, lengths, strict=True)]


def test_a_decoder_only_batch() -> None:
    items = _items()
    batch = PackingCollator(pad_id=7, n_tasks=5, is_encoder_decoder=False)(items)
    assert batch["packed_lengths"] == [[131], [123, 5], [5]]
    assert batch["task_ids"].tolist() == [2, 2, 4, 0]
    assert batch["rows"].tolist() == [31, 33, 30, 32]
    order = [items[1], items[3], items[0], items[2]]
    lengths = batch["packed_lengths"]
    found = [
        example
        for tokens, labels, row in zip(batch["input_ids"], batch["labels"], lengths, strict=True)
        for example in zip(_split(tokens, row), _split(labels, row), strict=True)
    ]
    for item, (tokens, labels) in zip(order, found, strict=True):
        assert tokens == [*item.input_ids, *item.target_ids]
        assert labels == [-100] * len(item.input_ids) + list(item.target_ids)
    assert batch["attention_mask"].sum(1).tolist() == [131, 128, 5]
    assert set(batch["input_ids"][2, 5:].tolist()) == {7}
    assert set(batch["labels"][2, 5:].tolist()) == {-100}


def test_an_encoder_decoder_batch() -> None:
    items = _items()
    batch = PackingCollator(pad_id=7, n_tasks=5, is_encoder_decoder=True)(items)
    assert batch["packed_lengths"] == [[126], [120, 4, 3]]
    assert batch["decoder_packed_lengths"] == [[5], [3, 1, 2]]
    assert batch["rows"].tolist() == [31, 33, 32, 30]
    assert batch["labels"].tolist() == [
        [*items[1].target_ids, -100],
        [*items[3].target_ids, *items[2].target_ids, *items[0].target_ids],
    ]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 127)


def test_targets_are_of_another_width_than_inputs() -> None:
    ids = np.arange(5, dtype=np.int32)
    items = [EncodedExample(0, row, ids, ids) for row in range(2)]
    batch = PackingCollator(pad_id=7, n_tasks=1, is_encoder_decoder=True)(items)
    assert batch["input_ids"].shape == (1, 10)
    assert batch["labels"].tolist() == [[*ids, *ids, -100]]


def test_an_id_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"task ids \[4\] · valid are 0 to 3"):
        PackingCollator(pad_id=7, n_tasks=4, is_encoder_decoder=True)(_items())


@pytest.fixture
def make(collection: TaskCollection, byt5: PreTrainedTokenizerBase) -> Any:
    def make_module(**changes: Any) -> DataModule:
        return DataModule(
            lambda: collection,
            byt5,
            **{"is_encoder_decoder": True, "batch_size": 9, **changes},
        )

    return make_module


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("is_encoder_decoder", [True, False])
def test_batches_hold_the_examples_of_unpacked_ones(
    make: Any, is_encoder_decoder: bool, num_workers: int
) -> None:
    changes = {"is_encoder_decoder": is_encoder_decoder, "num_workers": num_workers}
    plain, packed = (list(make(**changes, packing=p).train_dataloader()) for p in (False, True))
    assert len(plain) == len(packed) > 2
    for one, other in zip(plain, packed, strict=True):
        place = other["rows"].argsort()
        assert torch.equal(other["rows"][place], one["rows"].sort().values)
        assert torch.equal(other["task_ids"][place], one["task_ids"][one["rows"].argsort()])
        assert len(other["input_ids"]) < len(one["input_ids"])
        for key in ("input_ids", "labels"):
            mine, theirs = other[key], one[key]
            assert torch.equal(mine[mine > 0].sort().values, theirs[theirs > 0].sort().values)


def test_evaluation_is_not_packed(make: Any) -> None:
    packed, plain = (make(packing=p).val_dataloader() for p in (True, False))
    for one, other in zip(packed, plain, strict=True):
        assert one["input_ids"].tolist() == other["input_ids"].tolist()
        assert "packed_lengths" not in one


def test_an_encoder_alone_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.packing=true: the backbone is an encoder alone"):
        make(is_encoder_decoder=False, is_encoder=True, packing=True)


def test_real_examples_leave_less_padding(shared_data: Any, byt5: PreTrainedTokenizerBase) -> None:
    padding = {}
    for packing in (False, True):
        module = DataModule(
            JsonlFolder(shared_data / "instruction_induction"),
            byt5,
            is_encoder_decoder=False,
            packing=packing,
            steps_per_epoch=20,
        )
        masks = [batch["attention_mask"] for batch in module.train_dataloader()]
        tokens, places = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
        padding[packing] = 1 - tokens / places
    assert padding[False] > 0.5
    assert padding[True] < 0.15
