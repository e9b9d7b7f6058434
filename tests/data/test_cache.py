"""Tasks and ids that lie in files are what they would be in memory."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from polylab.data import DataModule, Example, JsonlFolder, TaskCollection, TaskData
from polylab.data.cache import cached_tasks, made_once
from polylab.data.encoding import TextEncoder
from polylab.data.sources.notes import Notes
from polylab.data.tokens import StoredTokens

SIZES = {"big": 130, "mid": 70, "tiny": 5}


@pytest.fixture
def folder(write_tasks: Any, make_rows: Any) -> Path:
    tasks = {name: make_rows(size, name) for name, size in SIZES.items()}
    tasks["mid"][0] |= {"options": ["yes", "answer 0"], "references": ["zero", "answer 0"]}
    tasks["big"] += [{"input": "empty", "target": ""}]
    return write_tasks(tasks)


def _source(folder: Path) -> JsonlFolder:
    return JsonlFolder(folder)


def test_a_cached_collection_is_the_same(folder: Path, tmp_path: Path) -> None:
    (folder / "instructions.json").write_text('{"tiny": ["Say it.", "Tell it."]}')
    wanted = _source(folder)()
    for _ in range(2):  # written, then opened
        found = cached_tasks(_source(folder), tmp_path / "cache")
        assert found.tasks == wanted.tasks
        assert found.notes == wanted.notes
        assert found.fingerprint
        assert replace(found, fingerprint=None) == wanted


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    source = JsonlFolder(shared_data / "quirks", on_empty="skip")
    assert replace(cached_tasks(source, tmp_path), fingerprint=None) == source()


def test_what_is_known_of_a_task_is_kept(tmp_path: Path) -> None:
    rows = [Example("a lone \ud800 surrogate", "1"), Example("", "2", options=("2", ""))]
    task = TaskData("t", rows, rows[:1], (), ("Sums", "Maths"), "Add up.", "b")

    class Source:
        shares: ClassVar = {"a": 2.0, "b": 1.0}

        def fingerprint(self) -> str:
            return "f"

        def stream(self, notes: Notes) -> Iterator[TaskData]:
            notes.say("seen")
            yield task

        __call__ = None

    found = cached_tasks(Source(), tmp_path)  # type: ignore[arg-type]
    assert found == TaskCollection([task], None, ("seen",), Source.shares, "f")


def test_rows_are_read_once_and_again_when_a_file_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    stream = JsonlFolder.stream

    def counted(self: JsonlFolder, notes: Notes) -> Iterator[TaskData]:
        reads.append(1)
        return stream(self, notes)

    monkeypatch.setattr(JsonlFolder, "stream", counted)
    first = cached_tasks(_source(folder), tmp_path / "cache")
    cached_tasks(_source(folder), tmp_path / "cache")
    assert len(reads) == 1
    with (folder / "tiny.jsonl").open("a") as file:
        file.write('{"input": "another", "target": "one"}\n')
    second = cached_tasks(_source(folder), tmp_path / "cache")
    assert len(reads) == 2
    assert len(second.tasks[2].train) == len(first.tasks[2].train) + 1
    cached_tasks(replace(_source(folder), test_share=0.2), tmp_path / "cache")
    assert len(reads) == 3


def test_a_source_of_other_data_cannot_be_cached(collection: TaskCollection, byt5: Any) -> None:
    module = DataModule(lambda: collection, byt5, is_encoder_decoder=True, cache="folder")
    with pytest.raises(ValueError, match=r"data\.cache=folder: .* nothing to cache"):
        _ = module.collection
    with pytest.raises(ValueError, match=r"data\.cache=folder: function makes"):
        cached_tasks(lambda: collection, "folder")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_memory(
    folder: Path, tmp_path: Path, gpt2_like: PreTrainedTokenizerFast, workers: int
) -> None:
    def batches(cache: Path | None) -> list[dict[str, torch.Tensor]]:
        module = DataModule(
            _source(folder),
            gpt2_like,
            is_encoder_decoder=False,
            batch_size=7,
            steps_per_epoch=30,
            group_by_length=10,
            num_workers=workers,
            cache=cache,
        )
        return list(module.train_dataloader())

    wanted = batches(None)
    for _ in range(2):
        for batch, other in zip(batches(tmp_path / "cache"), wanted, strict=True):
            assert batch.keys() == other.keys()
            assert all(torch.equal(batch[key], other[key]) for key in batch)


def test_texts_are_tokenised_once(
    folder: Path, tmp_path: Path, gpt2_like: PreTrainedTokenizerFast, monkeypatch: Any
) -> None:
    seen: list[int] = []
    encode = TextEncoder.encode_inputs
    monkeypatch.setattr(
        TextEncoder,
        "encode_inputs",
        lambda self, texts: seen.append(len(texts)) or encode(self, texts),
    )

    def first(**changes: Any) -> dict[str, torch.Tensor]:
        module = DataModule(
            _source(folder),
            gpt2_like,
            is_encoder_decoder=False,
            cache=tmp_path / "cache",
            **changes,
        )
        n = sum(module.sizes.values())
        batch = next(iter(module.train_dataloader()))
        assert seen in ([], [n])
        return batch

    first()
    assert seen
    seen.clear()
    first()
    assert not seen
    for changes in ({"max_input_length": 4}, {"prompt": "name"}, {"separator": " "}):
        first(**changes)
        assert seen, changes
        seen.clear()


def _cache(folder: Path, cache: Path, slow: float) -> int:
    source = _Slow(folder, slow=slow) if slow else _source(folder)
    return len(cached_tasks(source, cache).tasks)


class _Slow(JsonlFolder):
    """Says in a file that it has begun, and takes its time."""

    def __init__(self, path: Path, *, slow: float) -> None:
        super().__init__(path)
        object.__setattr__(self, "slow", slow)

    def fingerprint(self) -> str:
        return "slow"

    def stream(self, notes: Notes) -> Iterator[TaskData]:
        for task in super().stream(notes):
            yield task
            with (Path(self.path) / "begun").open("a") as file:
                file.write(f"{task.name}\n")
            time.sleep(self.slow)  # type: ignore[attr-defined]


def test_of_processes_that_start_at_once_one_reads(folder: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(_cache, [(folder, tmp_path / "cache", 0.2)] * 3)
    assert found == [3, 3, 3]
    assert (folder / "begun").read_text().split() == ["big", "mid", "tiny"]


def test_a_killed_process_leaves_nothing_in_the_way(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=_cache, args=(folder, cache, 60))
    process.start()
    while not (folder / "begun").is_file():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["tasks-slow.partial"]
    assert _cache(folder, cache, 0.001) == 3
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["tasks-slow"]


def test_a_full_disk(folder: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            _cache(folder, tmp_path / "cache", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"] == []


@pytest.mark.parametrize("name", ["examples.arrow", "tasks.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 20)])
def test_damaged_files(folder: Path, tmp_path: Path, name: str, damage: Callable[..., Any]) -> None:
    cached_tasks(_source(folder), tmp_path / "cache")
    (place,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    damage(place / name)
    with pytest.raises(ValueError, match=rf"{place.name}: cannot be read .* remove this folder"):
        cached_tasks(_source(folder), tmp_path / "cache")


@pytest.mark.parametrize("name", ["ids.int32", "lengths.npy", "ends.npy"])
def test_damaged_ids(tmp_path: Path, name: str) -> None:
    StoredTokens.write(tmp_path, [[_pair([1, 2], [3])], [_pair([4], [5])]])
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 4)
    with pytest.raises(ValueError, match=r"cannot be read .* remove this folder"):
        StoredTokens(tmp_path)


def test_what_travels_to_a_worker_is_small(folder: Path, tmp_path: Path) -> None:
    for task in cached_tasks(_source(folder), tmp_path / "cache").tasks:
        sent = pickle.dumps(task)
        assert len(sent) < 2000
        assert pickle.loads(sent) == task
    pairs = [_pair([*range(500)], [*range(i)]) for i in range(1, 4)]
    StoredTokens.write(tmp_path, [pairs])
    sent = pickle.dumps(StoredTokens(tmp_path))
    assert len(sent) < 500
    tokens = pickle.loads(sent)
    for index, (text, target) in enumerate(pairs):
        found = tokens.get(index)
        assert np.array_equal(found[0], text)
        assert np.array_equal(found[1], target)


def test_nothing_is_made_twice(tmp_path: Path) -> None:
    for wanted in (True, False):
        with made_once(tmp_path / "place") as partial:
            assert (partial is not None) == wanted
            if partial is not None:
                (partial / "file").write_text("x")
    assert (tmp_path / "place" / "file").read_text() == "x"


def _pair(text: list[int], target: list[int]) -> tuple[Any, Any]:
    return np.array(text, np.int32), np.array(target, np.int32)


def test_a_tokenizer_is_the_same_in_every_process(
    byt5: Any, gpt2_like: PreTrainedTokenizerFast, llama_like: PreTrainedTokenizerFast
) -> None:
    tokenizers = [byt5, gpt2_like, llama_like, ByT5Tokenizer(extra_ids=3)]
    here = [_fingerprint(tokenizer) for tokenizer in tokenizers]
    assert len(set(here)) == 4
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # strings hash otherwise there
        assert pool.map(_fingerprint, tokenizers) == here


def _fingerprint(tokenizer: Any) -> str:
    settings = {"is_encoder_decoder": True, "max_input_length": 9, "max_target_length": 8}
    return TextEncoder(tokenizer, **settings).fingerprint()
