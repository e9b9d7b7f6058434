"""Real files: the 24 tasks of instruction_induction and one file per loader breaker."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerBase

from polylab.data import (
    CsvFiles,
    DataModule,
    Example,
    JsonlFolder,
    ParquetFiles,
    TaskCollection,
    TaskData,
)
from polylab.data.rows import read_examples
from polylab.data.sources.base import FileSource
from polylab.data.splitting import split_task, split_text
from polylab.training.metrics import exact_match

TINY = ["cause_and_effect", "common_concept", "informal_to_formal"]


@pytest.fixture(scope="session")
def induction(shared_data: Path) -> JsonlFolder:
    return JsonlFolder(shared_data / "instruction_induction")


@pytest.fixture(scope="session")
def quirks(shared_data: Path) -> Path:
    return shared_data / "quirks"


def _raw_rows(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))


def _examples(folder: Path, name: str) -> list[Example]:
    return read_examples(folder / f"{name}.jsonl").examples


def test_all_tasks_load_with_their_test_files(induction: JsonlFolder) -> None:
    collection = induction()
    assert len(collection.names) == 24
    assert "translation_en-de" in collection.names
    held_in = sum(len(task.train) + len(task.validation) for task in collection.tasks)
    assert held_in == 20_862 - 7 - 5  # in a test file; exact duplicates
    for task in collection.tasks:
        assert len(task.test) == _raw_rows(Path(induction.path) / "test" / f"{task.name}.jsonl")
        inputs = {split_text(example) for example in task.train}
        assert not inputs & {split_text(e) for e in (*task.validation, *task.test)}
    assert [task.name for task in collection.tasks if not task.validation] == TINY
    assert any("sentence_similarity 1" in note and "test" in note for note in collection.notes)


def test_real_instructions(induction: JsonlFolder, byt5: PreTrainedTokenizerBase) -> None:
    module = DataModule(induction, byt5, is_encoder_decoder=True, prompt="instruction")
    batch = next(iter(module.val_dataloader()))
    assert all("\n" in text for text in batch["inputs"])


@pytest.fixture(scope="session")
def natural(shared_data: Path) -> TaskCollection:
    """The natural_instructions files; some hold lists where others hold strings."""
    tasks = []
    for path in sorted((shared_data / "natural_instructions" / "tasks").glob("*.json")):
        answers = [
            (row["input"], row["output"] if isinstance(row["output"], str) else row["output"][0])
            for row in json.loads(path.read_text("utf-8"))["Instances"]
        ]
        tasks.append(TaskData(path.stem, [Example(x, y) for x, y in answers if y.strip()]))
    return TaskCollection(tasks)


def _padding(module: DataModule) -> float:
    paid = tokens = 0
    for batch in module.train_dataloader():
        tokens += int(batch["attention_mask"].sum() + (batch["labels"] != -100).sum())
        paid += batch["input_ids"].numel() + batch["labels"].numel()
    return 1 - tokens / paid


@pytest.mark.parametrize("prompt", ["none", "instruction"])
def test_groups_of_induction_pad_less_than_5_percent(
    induction: JsonlFolder, byt5: PreTrainedTokenizerBase, prompt: str
) -> None:
    """Of input and target together; 500 steps an epoch, since one pass of 64 is but 294."""
    paddings = [
        _padding(
            DataModule(
                induction,
                byt5,
                is_encoder_decoder=True,
                batch_size=64,
                prompt=prompt,
                steps_per_epoch=500,
                group_by_length=k,
            )
        )
        for k in (None, 500)
    ]
    assert paddings[0] > 0.7
    assert paddings[1] < 0.05


def test_groups_of_natural_instructions_pad_less_than_5_percent(
    natural: TaskCollection, byt5: PreTrainedTokenizerBase
) -> None:
    paddings = [
        _padding(
            DataModule(
                lambda: natural,
                byt5,
                is_encoder_decoder=True,
                batch_size=64,
                steps_per_epoch=500,
                group_by_length=k,
            )
        )
        for k in (None, 500)
    ]
    assert paddings[0] > 0.5
    assert paddings[1] < 0.05


def test_rhymes_share_their_references(induction: JsonlFolder) -> None:
    (rhymes,) = [task for task in induction().tasks if task.name == "rhymes"]
    assert max(len(example.references) for example in rhymes.train) > 1


# what SOURCE.md lists: how many rows of each file are trained on; with none the file is refused
QUIRKS = {
    "astral_unicode": 12,
    "bom_no_final_newline": 3,
    "carriage_return": 12,
    "conflicting_targets": 24,
    "control_characters": 12,
    "crlf_file": 3,
    "empty_input": 1,
    "empty_target": 0,
    "mojibake": 12,
    "nbsp_or_zero_width": 12,
    "replacement_character": 12,
    "target_edge_whitespace": 12,
    "target_is_in_many_lines": 12,
    "unicode_line_separators": 12,
    "very_long_input": 6,
    "zero_rows": 0,
}


def _parsed(path: Path) -> list[tuple[str, str]]:
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    return [(row["input"], row["target"]) for row in rows]


def _as_jsonl(quirks: Path, _: Path) -> FileSource:
    return JsonlFolder(quirks, on_empty="skip")


def _as_csv(quirks: Path, folder: Path) -> FileSource:
    for path in quirks.glob("*.jsonl"):
        with (folder / f"{path.stem}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("input", "target"), *_parsed(path)])
    return CsvFiles(path=folder, on_empty="skip")


def _as_parquet(quirks: Path, folder: Path) -> FileSource:
    for path in quirks.glob("*.jsonl"):
        columns = [*zip(*_parsed(path), strict=True)] or [(), ()]
        arrays = [pa.array(column, pa.string()) for column in columns]
        table = pa.Table.from_arrays(arrays, ["input", "target"])
        pq.write_table(table, folder / f"{path.stem}.parquet")
    return ParquetFiles(path=folder, on_empty="skip")


@pytest.mark.parametrize("make", [_as_jsonl, _as_csv, _as_parquet])
def test_every_row_with_a_target_is_trained_on_to_the_byte(
    quirks: Path,
    tmp_path: Path,
    byt5: PreTrainedTokenizerBase,
    make: Callable[[Path, Path], FileSource],
) -> None:
    """From the file to the token ids of the batches, which are the bytes of the texts plus 3."""
    assert {path.stem for path in quirks.glob("*.jsonl")} == {*QUIRKS}
    source = make(quirks, tmp_path)
    module = DataModule(
        source,
        byt5,
        is_encoder_decoder=True,
        batch_size=8,
        max_input_length=30_000,
        max_target_length=3_000,
    )
    found: dict[str, Counter[tuple[bytes, bytes]]] = {name: Counter() for name in QUIRKS}
    for batch in module.evaluation_dataloader("train"):
        for task, ids, labels in zip(
            batch["task_ids"], batch["input_ids"], batch["labels"], strict=True
        ):
            texts = [[i for i in its.tolist() if i > 0] for its in (ids, labels)]  # not the padding
            assert all(text.pop() == byt5.eos_token_id for text in texts)
            text, target = (bytes(i - 3 for i in text) for text in texts)
            found[module.task_names[task]][text, target] += 1
    for name, count in QUIRKS.items():
        wanted = [pair for pair in _parsed(quirks / f"{name}.jsonl") if pair[1].strip()]
        assert len(wanted) == count
        assert found[name] == Counter((x.encode(), y.encode()) for x, y in wanted)


def test_white_space_around_a_target_does_not_count(quirks: Path) -> None:
    targets = [target for _, target in _parsed(quirks / "target_edge_whitespace.jsonl")]
    assert all(target != target.strip() for target in targets)
    for target in targets:
        assert exact_match(target.strip(), [target]) == exact_match(target, [target.strip()]) == 1
        assert exact_match(f"{target.strip()}x", [target]) == 0


@pytest.mark.parametrize("name", [name for name, count in QUIRKS.items() if not count])
def test_files_without_a_target_are_refused_by_name(
    quirks: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / f"{name}.jsonl").symlink_to(quirks / f"{name}.jsonl")
    with pytest.raises(ValueError, match=rf"no usable training rows in '{name}' of {tmp_path}"):
        JsonlFolder(tmp_path)()
    with pytest.raises(ValueError, match="no usable training rows in 'empty_target', 'zero_rows'"):
        JsonlFolder(quirks)()


def test_the_other_files_load(quirks: Path) -> None:
    collection = JsonlFolder(quirks, on_empty="skip")()
    assert len(collection.names) == 14
    assert sum(len(task.train) for task in collection.tasks) == 157 - 12
    assert "rows with an empty target, dropped: 12 (empty_target 12)" in collection.notes
    assert "tasks without usable rows, skipped: empty_target, zero_rows" in collection.notes


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("carriage_return", "\r"),
        ("control_characters", "[\x00-\x08\x0e-\x1f\x7f]"),
        ("target_is_in_many_lines", "\n"),
        ("astral_unicode", "[\U00010000-\U0010ffff]"),
        ("replacement_character", "\ufffd"),
        ("nbsp_or_zero_width", "[\u00a0\u200b-\u200f]"),
        ("unicode_line_separators", "\u0085"),
        ("target_edge_whitespace", r"^\s|\s$"),
    ],
)
def test_text_is_unchanged(quirks: Path, name: str, pattern: str) -> None:
    examples = _examples(quirks, name)
    assert len(examples) == 12
    assert all(
        re.search(pattern, e.input + e.target) or re.search(pattern, e.target) for e in examples
    )


def test_conflicting_targets_stay_on_one_side(quirks: Path) -> None:
    examples = _examples(quirks, "conflicting_targets")
    task = split_task(TaskData("a", examples), validation_share=0.3, test_share=0.3, min_inputs=1)
    sides = [task.train, task.validation, task.test]
    assert sum(map(len, sides)) == 24
    assert all(sides)
    assert all(len({split_text(e) for e in side}) * 2 == len(side) for side in sides)


def test_a_very_long_input_keeps_its_end_and_its_target(
    quirks: Path, byt5: PreTrainedTokenizerBase
) -> None:
    module = DataModule(
        JsonlFolder(quirks, on_empty="skip"),
        byt5,
        is_encoder_decoder=True,
        max_input_length=64,
        max_target_length=512,
    )
    assert "% of inputs" in module.describe()
    examples = {e.input: e for e in _examples(quirks, "very_long_input")}
    assert len(examples) == 6
    task_id = module.task_names.index("very_long_input")
    found = 0
    for batch in module.evaluation_dataloader("train"):
        for row in (batch["task_ids"] == task_id).nonzero().flatten().tolist():
            example = examples[batch["inputs"][row]]
            ids = batch["input_ids"][row].tolist()
            assert ids == [byte + 3 for byte in example.input.encode()[-63:]] + [1]
            labels = [i for i in batch["labels"][row].tolist() if i != -100]
            assert labels == [byte + 3 for byte in example.target.encode()] + [1]
            found += 1
    assert found == 6
