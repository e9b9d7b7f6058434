"""The data module without a Trainer."""

import logging
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from polylab.data import DataModule, Example, TaskCollection, TaskData
from polylab.data.encoding import TextEncoder


@pytest.fixture
def make(collection: TaskCollection, byt5: PreTrainedTokenizerBase) -> Any:
    def make_module(source: Any = None, **changes: Any) -> DataModule:
        return DataModule(
            source or (lambda: collection),
            changes.pop("tokenizer", byt5),
            **{"is_encoder_decoder": True, "batch_size": 9, **changes},
        )

    return make_module


def _trainer(**changes: Any) -> Any:
    settings = {"global_rank": 0, "world_size": 1, "accumulate_grad_batches": 1}
    return SimpleNamespace(**{**settings, "overfit_batches": 0, **changes})


def _inputs(tokenizer: PreTrainedTokenizerBase, batch: dict[str, Any]) -> list[str]:
    return tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)


def test_facts(make: Any) -> None:
    module = make()
    assert module.task_names == ["big", "mid", "tiny"]
    assert module.sizes == {"big": 29, "mid": 11, "tiny": 5}
    assert module.describe() == (
        "3 tasks · 45 train / 10 validation / 10 test examples · prompt=none · temperature=1 · "
        "cut: 0.0% of inputs, 0.0% of targets"
    )


def test_the_source_is_read_once(make: Any, collection: TaskCollection) -> None:
    calls: list[int] = []

    def source() -> TaskCollection:
        calls.append(1)
        return collection

    module = make(source)
    assert calls == []
    module.describe()
    module.setup("fit")
    module.train_dataloader()
    assert calls == [1]


def test_skills_follow_the_ids(make: Any, collection: TaskCollection) -> None:
    matrix, names = make(known_tasks=["tiny", "gone"]).skill_matrix
    assert names == ["add", "copy", "zip"]
    assert matrix.int().tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert make(lambda: TaskCollection(collection.tasks)).skill_matrix is None


def test_known_tasks_keep_their_ids(make: Any, byt5: PreTrainedTokenizerBase) -> None:
    module = make(known_tasks=["tiny", "gone"])
    assert module.task_names == ["tiny", "gone", "big", "mid"]
    for batch in module.train_dataloader():
        names = [module.task_names[i] for i in batch["task_ids"].tolist()]
        assert [text.split()[0] for text in _inputs(byt5, batch)] == names


def test_an_epoch_of_training_batches(make: Any, byt5: PreTrainedTokenizerBase) -> None:
    batches = list(make().train_dataloader())
    assert [batch["rows"].tolist() for batch in batches] == [list(range(9))] * 5
    texts = [text for batch in batches for text in _inputs(byt5, batch)]
    assert len(set(texts)) == 45
    assert all(" train " in text for text in texts)


@pytest.mark.parametrize("temperature", [float("inf"), "inf"])
def test_an_infinite_temperature_is_uniform(make: Any, temperature: Any) -> None:
    module = make(temperature=temperature, steps_per_epoch=10)
    drawn = Counter(i for b in module.train_dataloader() for i in b["task_ids"].tolist())
    assert drawn == {0: 30, 1: 30, 2: 30}


def test_ranks_and_accumulation_share_the_global_batch(make: Any) -> None:
    whole = list(make(batch_size=12).train_dataloader())
    module = make(batch_size=12)
    module.trainer = _trainer(global_rank=1, world_size=3, accumulate_grad_batches=2)
    part = list(module.train_dataloader())
    assert len(part) == 2 * len(whole)
    assert part[3]["rows"].tolist() == [8, 9]
    assert part[3]["task_ids"].tolist() == whole[1]["task_ids"][8:10].tolist()


def test_the_global_batch_must_divide(make: Any) -> None:
    module = make(batch_size=10)
    module.trainer = _trainer(world_size=2, accumulate_grad_batches=4)
    with pytest.raises(
        ValueError, match=r"data\.batch_size=10 .* 2 ranks x .*=4 = 8 · use 8 or 16"
    ):
        module.setup("fit")
    module.setup("test")


def test_overfitting_repeats_the_batches(make: Any) -> None:
    module = make()
    module.trainer = _trainer(overfit_batches=2)
    loader = module.train_dataloader()
    first, second = list(loader), list(loader)
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True)
    )


def test_validation_is_bounded_and_the_test_is_whole(
    make: Any, byt5: PreTrainedTokenizerBase
) -> None:
    module = make(eval_examples_per_task=2, batch_size=3)
    validation = list(module.val_dataloader())
    assert Counter(i for b in validation for i in b["task_ids"].tolist()) == {0: 2, 1: 2}
    again = list(make(eval_examples_per_task=2, batch_size=3).val_dataloader())
    assert [b["inputs"] for b in validation] == [b["inputs"] for b in again]
    test = list(module.test_dataloader())
    assert sorted(row for b in test for row in b["rows"].tolist()) == list(range(10))
    assert all(b["inputs"] == _inputs(byt5, b) for b in test)
    assert {t for b in test for refs in b["references"] for t in refs} == {
        *(f"b{i}" for i in range(6)),
        *(f"m{i}" for i in range(4)),
    }


def test_training_examples_can_be_evaluated(make: Any) -> None:
    batches = list(make(eval_examples_per_task=4).evaluation_dataloader("train"))
    assert Counter(i for b in batches for i in b["task_ids"].tolist()) == {0: 4, 1: 4, 2: 4}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_an_evaluation(make: Any, world_size: int) -> None:
    rows = []
    for rank in range(world_size):
        module = make(eval_batch_size=6)
        module.trainer = _trainer(global_rank=rank, world_size=world_size)
        rows.extend(row for b in module.test_dataloader() for row in b["rows"].tolist())
    assert sorted(rows) == list(range(10))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_filler_makes_up_the_number_of_batches_of_a_rank(make: Any, num_workers: int) -> None:
    counts, fillers, rows = [], [], []
    for rank in range(4):
        module = make(eval_batch_size=4, num_workers=num_workers)
        module.trainer = _trainer(global_rank=rank, world_size=4)
        batches = list(module.test_dataloader())
        counts.append(len(batches))
        fillers += [batch for batch in batches if batch.get("filler")]
        rows += [batch["rows"].tolist() for batch in batches if "filler" not in batch]
    assert counts == [3] * 4
    assert sorted(rows) == [[row] for row in range(10)]
    assert len(fillers) == 2
    for batch in fillers:
        assert batch["rows"].tolist() == [-1]
        assert batch["input_ids"].shape[0] == len(batch["inputs"]) == 1


def test_without_held_out_examples_there_is_no_loader(make: Any) -> None:
    module = make(lambda: TaskCollection([TaskData("a", [Example("in", "out")])]))
    assert module.val_dataloader() == []
    assert module.test_dataloader() == []


def test_tasks_without_training_examples_are_only_evaluated(make: Any) -> None:
    module = make(lambda: TaskCollection([TaskData("new", [], test=[Example("in", "out")])]))
    assert len(list(module.test_dataloader())) == 1
    with pytest.raises(ValueError, match="no training examples in 'new'"):
        module.train_dataloader()


@pytest.mark.parametrize("prompt", ["none", "name", "instruction"])
def test_prompts(make: Any, prompt: str) -> None:
    (batch,) = make(prompt=prompt, eval_batch_size=30).val_dataloader()
    start = {"none": "big", "name": "big: big", "instruction": "Do big.\nbig"}[prompt]
    assert f"{start} validation 3" in batch["inputs"]


def test_instructions_must_exist(make: Any) -> None:
    source = lambda: TaskCollection([TaskData("bare", [Example("in", "out")])])  # noqa: E731
    with pytest.raises(ValueError, match=r"examples of 'bare' have no instruction"):
        make(source, prompt="instruction").setup("fit")


def test_a_decoder_only_backbone(make: Any, gpt2_like: PreTrainedTokenizerBase) -> None:
    module = make(tokenizer=gpt2_like, is_encoder_decoder=False)
    batch = next(iter(module.train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape
    texts = gpt2_like.batch_decode(next(iter(module.val_dataloader()))["prompt_ids"])
    assert all(text.endswith("\n") for text in texts)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_leave_the_global_generator_alone(make: Any, num_workers: int) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    module = make(num_workers=num_workers)
    list(module.train_dataloader())
    list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["byt5", "gpt2_like"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_groups_of_like_lengths(
    make: Any, kind: str, num_workers: int, request: pytest.FixtureRequest
) -> None:
    """A slow and a fast tokenizer, measured in this process and beside two others."""
    tokenizer = request.getfixturevalue(kind)
    changes = {
        "tokenizer": tokenizer,
        "is_encoder_decoder": kind == "byt5",
        "prompt": "name",
        "num_workers": num_workers,
    }
    plain, grouped = (
        list(make(**changes, group_by_length=k).train_dataloader()) for k in (None, 500)
    )
    assert sorted(_texts_of(plain)) == sorted(_texts_of(grouped))
    assert len(_texts_of(grouped)) == 45
    widths = [[batch["input_ids"].shape[1] for batch in batches] for batches in (plain, grouped)]
    assert min(widths[1]) < min(widths[0])
    assert sum(widths[1]) < sum(widths[0])


def _texts_of(batches: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    return [
        (*ids[mask.bool()].tolist(), -1, *labels[labels >= 0].tolist())
        for batch in batches
        for ids, mask, labels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        )
    ]


def test_what_is_measured_is_encoded_once(
    make: Any, gpt2_like: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    encode = TextEncoder.encode_inputs

    def noting(self: TextEncoder, inputs: Sequence[str]) -> Any:
        texts.extend(inputs)
        return encode(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode_inputs", noting)
    loader = make(tokenizer=gpt2_like, group_by_length=2).train_dataloader()
    for _ in range(3):
        list(loader)
    assert len(texts) == len(set(texts)) == 45


def test_notes_are_logged_once_by_the_first_rank(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="polylab.data")
    other = make()
    other.trainer = _trainer(global_rank=1, world_size=3)
    other.setup("fit")
    assert caplog.messages == []
    module = make()
    module.setup("fit")
    module.setup("test")
    assert caplog.messages == ["tasks without a test split of their own: tiny"]


def test_a_checkpoint_of_other_tasks_is_refused(make: Any) -> None:
    module = make()
    state = module.state_dict()
    assert state == {"task_names": ["big", "mid", "tiny"]}
    module.load_state_dict(state)
    module.load_state_dict({"task_names": ["big", "mid"]})
    with pytest.raises(
        ValueError, match="has the tasks 'mid', 'big' and the data 'big', 'mid', 't"
    ):
        module.load_state_dict({"task_names": ["mid", "big"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "task"}, r"data\.prompt='task'"),
        ({"temperature": 0}, r"data\.temperature=0\.0 "),
        ({"batch_size": 0}, r"data\.batch_size=0 .* use 1\."),
        ({"steps_per_epoch": 0}, r"data\.steps_per_epoch=0 · it must be at least 1"),
        ({"eval_batch_size": -2}, r"data\.eval_batch_size=-2 · it must be at least 1"),
        ({"eval_examples_per_task": 0}, r"data\.eval_examples_per_task=0 "),
        ({"test_examples_per_task": -1}, r"data\.test_examples_per_task=-1 "),
        ({"keep_input": "left"}, r"data\.keep_input='left'"),
        ({"group_by_length": 0}, r"data\.group_by_length=0 · it must be at least 1, or null"),
    ],
)
def test_wrong_arguments_fail_before_the_source_is_read(
    make: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
