"""Tiny tokenizers, hand-written tasks and the folder of real data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from polylab.data import Example, TaskCollection, TaskData

Rows = list[dict[str, Any]]


@pytest.fixture
def byt5() -> ByT5Tokenizer:
    """Byte values plus 3; `</s>` = 1 ends inputs and targets; padding = 0."""
    return ByT5Tokenizer()


def _byte_level(**special: str) -> PreTrainedTokenizerFast:
    vocabulary = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if "bos_token" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def gpt2_like() -> PreTrainedTokenizerFast:
    """Byte-level, no padding token, no token around a text; `</s>` = 1 ends it."""
    return _byte_level(eos_token="</s>")


@pytest.fixture
def llama_like() -> PreTrainedTokenizerFast:
    """Byte-level, no padding token, `<s>` = 0 before a text."""
    return _byte_level(bos_token="<s>", eos_token="</s>")


@pytest.fixture
def endless() -> PreTrainedTokenizerFast:
    """A tokenizer without an end-of-sequence token."""
    return _byte_level()


@pytest.fixture
def write_tasks(tmp_path: Path) -> Callable[..., Path]:
    """Writes {file name without .jsonl: rows} into a folder and returns it."""

    def write(tasks: dict[str, Rows], *, folder: str = "tasks") -> Path:
        root = tmp_path / folder
        root.mkdir(parents=True, exist_ok=True)
        for name, rows in tasks.items():
            path = root / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return root

    return write


@pytest.fixture
def make_rows() -> Callable[..., Rows]:
    """Makes a number of distinct rows."""

    def make(count: int, prefix: str = "item") -> Rows:
        return [{"input": f"{prefix} {i}", "target": f"answer {i}"} for i in range(count)]

    return make


@pytest.fixture
def collection() -> TaskCollection:
    """Three tasks of 29, 11 and 5 training examples with known skills; `tiny` has no held-out."""

    def examples(name: str, split: str, count: int) -> list[Example]:
        return [
            Example(
                input=f"{name} {split} {i}",
                target=f"{name[0]}{i}",
                instruction=f"Do {name}.\n{name} {split} {i}",
            )
            for i in range(count)
        ]

    def task(name: str, train: int, validation: int, test: int) -> TaskData:
        return TaskData(
            name,
            examples(name, "train", train),
            examples(name, "validation", validation),
            examples(name, "test", test),
        )

    return TaskCollection(
        [task("tiny", 5, 0, 0), task("big", 29, 7, 6), task("mid", 11, 3, 4)],
        skills={"big": ("copy", "add"), "mid": ("add",), "tiny": ("zip",)},
        notes=("tasks without a test split of their own: tiny",),
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("POLYLAB_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set POLYLAB_SHARED_DATA to its folder")
    return folder
