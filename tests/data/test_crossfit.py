"""CrossFit's files: samples of several seeds, partitions, several targets, broken files."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from polylab.data import CrossFitSource, DataModule, Example, TaskData
from polylab.data.cache import cached_tasks

SEEDS = (13, 21, 87)
SHOTS = {"color": 4, "glue-say": 5, "num_14": 6, "zebra": 2}
Rows = Sequence[tuple[str, ...]]


def write(root: Path, task: str, seed: int, **splits: Rows) -> None:
    folder = root / task
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = "".join("\t".join(row) + "\n" for row in rows)
        path = folder / f"{task}_{SHOTS[task]}_{seed}_{split}.tsv"
        path.write_text(text, encoding="utf-8", newline="")


@pytest.fixture
def gym(tmp_path: Path) -> Path:
    """Labels (3 of `color`, 2 of `zebra`) and texts; all seeds draw from one pool."""
    root = tmp_path / "data"
    labels = {"color": ("red", "green", "blue"), "zebra": ("no", "yes")}
    for task, shots in SHOTS.items():
        answers = labels.get(task)
        for seed in SEEDS:
            rng = random.Random(f"{task} {seed}")
            train: list[tuple[str, ...]] = []
            dev: list[tuple[str, ...]] = []
            for answer in answers or ("",):
                pool = [f"{task} {answer} {i}" for i in range(3 * shots)]
                drawn = [(x, answer) if answer else (x, f"{x}!", f"{x[-1]}?") for x in pool]
                rng.shuffle(drawn)
                train += drawn[:shots]
                dev += drawn[shots : 2 * shots]
            test = [(f"{task} test {i}", (answers or ("x",))[0]) for i in range(3 + shots)]
            write(root, task, seed, train=train, dev=dev, test=test)
    (root / "color" / "color_4_13-BartTokenized.json").write_text("[]")  # CrossFit leaves these
    (root / "train-multi-BartTokenized.json").write_text("[]")
    return root


@pytest.fixture
def partition(tmp_path: Path) -> Path:
    path = tmp_path / "random.json"
    lists = {"train": ["num_14", "color"], "dev": ["glue-say"], "test": ["zebra"]}
    path.write_text(json.dumps(lists))
    return path


def slow_rows(gym: Path, task: str, seed: int, split: str) -> list[tuple[str, ...]]:
    text = (gym / task / f"{task}_{SHOTS[task]}_{seed}_{split}.tsv").read_text("utf-8")
    return [tuple(line.split("\t")) for line in text.split("\n") if line]


def as_rows(examples: Sequence[Example]) -> list[tuple[str, ...]]:
    return [(example.input, *example.references) for example in examples]


@pytest.mark.parametrize("seeds", [None, [13], [87, 21]], ids=str)
def test_tasks_are_what_the_files_hold(gym: Path, seeds: list[int] | None) -> None:
    """Against a reading of one file after another."""
    collection = CrossFitSource(gym, seeds=seeds)()
    assert collection.names == sorted(SHOTS)
    met = 0
    for task in collection.tasks:
        files = {
            split: [slow_rows(gym, task.name, seed, split) for seed in seeds or SEEDS]
            for split in ("train", "dev", "test")
        }
        pooled = [row for rows in files["train"] for row in rows]
        dev = [row for rows in files["dev"] for row in rows]
        assert as_rows(task.train) == [*dict.fromkeys(pooled)]
        trained = {row[0] for row in pooled}
        apart = [row for row in dict.fromkeys(dev) if row[0] not in trained]
        assert as_rows(task.validation) == apart
        met += len({*dev}) - len(apart)
        assert as_rows(task.test) == files["test"][0]
        assert all(example.target == example.references[0] for example in task.train)
    assert (met > 0) == (seeds != [13])
    removed = f"validation rows with an input that is trained on, removed: {met} "
    assert any(note.startswith(removed) for note in collection.notes) == (met > 0)
    pooled_note = "data.seeds=null: the files of the seeds 13, 21, 87 are pooled"
    assert (pooled_note in collection.notes) == (seeds is None)


def test_a_row_is_in_the_test_as_often_as_in_one_file(gym: Path) -> None:
    first = [("a", "x"), ("b", "y"), ("b", "y"), ("c", "x", "z")]
    write(gym, "zebra", 13, test=first)
    write(gym, "zebra", 21, test=[("b", "y"), ("d", "y"), ("a", "x"), ("a", "x"), ("a", "q")])
    write(gym, "zebra", 87, test=first)
    task = CrossFitSource(gym)().tasks[-1]
    assert task.name == "zebra"
    wanted = [*first, ("d", "y"), ("a", "x"), ("a", "q")]
    assert [(e.input, e.target) for e in task.test] == [row[:2] for row in wanted]
    (task,) = [task for task in CrossFitSource(gym, seeds=[13])().tasks if task.name == "zebra"]
    assert as_rows(task.test) == first


def test_labels_are_options_where_the_shots_are_of_each_label(gym: Path) -> None:
    def options(task: TaskData) -> set[Any]:
        splits = (task.train, task.validation, task.test)
        return {example.options for split in splits for example in split}

    found = {task.name: options(task) for task in CrossFitSource(gym)().tasks}
    assert found == {
        "color": {("blue", "green", "red")},
        "glue-say": {None},
        "num_14": {None},
        "zebra": {("no", "yes")},
    }


@pytest.mark.parametrize(
    "train",
    [
        [("a", "yes"), ("b", "yes")],  # the shots are of all rows
        [("a", "yes"), ("b", "yes"), ("c", "no", "never")],  # an answer with two texts
        [("a", "yes"), ("b", "no"), ("c", "maybe")],  # no answer has its two shots
        [("a", "yes"), ("b", "yes"), ("c", "yes"), ("d", "no")],  # one has more
    ],
)
def test_targets_that_are_not_labels(gym: Path, train: Rows) -> None:
    write(gym, "zebra", 13, train=train)
    task = CrossFitSource(gym, seeds=[13])().tasks[-1]
    assert {example.options for example in task.train} == {None}
    assert len(task.train) == len(train)


@pytest.mark.parametrize(
    ("tasks", "names", "says"),
    [
        ("auto", ["color", "num_14"], "data.tasks=auto: the 2 training tasks of {} are read"),
        ("train", ["color", "num_14"], None),
        ("dev", ["glue-say"], None),
        ("test", ["zebra"], None),
        ("all", sorted(SHOTS), "data.tasks=all: 2 dev and test tasks of {} are among those read"),
    ],
)
def test_partitions(
    gym: Path, partition: Path, tasks: str, names: list[str], says: str | None
) -> None:
    collection = CrossFitSource(gym, tasks, partition)()
    assert collection.names == names
    about = [note for note in collection.notes if note.startswith("data.tasks=")]
    assert len(about) == (says is not None)
    assert all(note.startswith(str(says).format(partition)) for note in about)


def test_without_a_partition_all_tasks_are_read(gym: Path) -> None:
    says = "data.tasks=auto: no data.partition, so that all 4 tasks are read"
    assert says in CrossFitSource(gym)().notes
    with pytest.raises(ValueError, match=r"^data.tasks=dev without data.partition · .* · set data"):
        CrossFitSource(gym, "dev")


def test_files_of_other_shots_are_left(gym: Path) -> None:
    wanted = CrossFitSource(gym)().tasks[-1]
    for path in [*(gym / "zebra").iterdir()]:
        path.with_name(path.name.replace("_2_", "_9_")).write_text("other\trow\n")
    with pytest.raises(ValueError, match=r"zebra has files of 2, 9 shots · .* · set data.shots\."):
        CrossFitSource(gym)()
    with pytest.raises(ValueError, match=r"^data.shots=2: .*color has files of 4 shots · .* · set"):
        CrossFitSource(gym, shots=2)()
    for name in {*SHOTS} - {"zebra"}:
        (gym / name).rename(gym.parent / name)
    assert CrossFitSource(gym, shots=2)().tasks == [wanted]


def test_texts_stay_as_they_are(gym: Path) -> None:
    path = gym / "zebra" / "zebra_2_13_train.tsv"
    path.write_bytes(
        b'\xef\xbb\xbf"a\tb"\r\n\n  c \t d \n \r\n' + "e\x85f\x0cg\t\u200eh\n".encode() + b"i\rj\tk"
    )
    task = CrossFitSource(gym, seeds=[13])().tasks[-1]
    assert [(e.input, e.target) for e in task.train] == [
        ('"a', 'b"'),
        ("  c ", " d "),
        ("e\x85f\x0cg", "\u200eh"),
        ("i\rj", "k"),
    ]


def test_empty_targets_are_dropped_and_counted(gym: Path) -> None:
    write(gym, "zebra", 13, train=[("a", ""), ("", "yes"), ("b", " ", "no"), ("c", "", "")])
    collection = CrossFitSource(gym, seeds=[13])()
    assert as_rows(collection.tasks[-1].train) == [("", "yes"), ("b", "no")]
    assert "rows with an empty target, dropped: 2 (zebra 2)" in collection.notes


PATH = "zebra/zebra_2_21_"
Damage = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda gym: (gym / f"{PATH}train.tsv").write_text("a\tb\n\nno tab here\nc\td\n"),
            r"zebra_2_21_train\.tsv:3: no TAB in 'no tab here' · a row is .* · mend",
        ),
        (
            lambda gym: (gym / f"{PATH}test.tsv").write_bytes(b"a\tb\nc\t\xff\n"),
            r"zebra_2_21_test\.tsv:2: byte 0xff at column 3 is not UTF-8",
        ),
        (
            lambda gym: (gym / f"{PATH}dev.tsv").unlink(),
            r"zebra_2_21_dev\.tsv is missing, and zebra_2_21_t\w+\.tsv is there · .* · build it",
        ),
        (
            lambda gym: [(gym / f"{PATH}{s}.tsv").unlink() for s in ("train", "dev", "test")],
            r"^data.seeds=null \(all\): .*zebra has the seeds 13, 87 and lacks 21 · .* · build",
        ),
        (
            lambda gym: (gym / f"{PATH}dev.tsv").rename(gym / "zebra" / "dev.tsv"),
            r"zebra/dev\.tsv is not named zebra_SHOTS_SEED_train\.tsv, .* · rename or remove",
        ),
        (
            lambda gym: (gym / "zebra").rename(gym / "horse"),
            r"horse/zebra_2_13_dev\.tsv is not named horse_SHOTS_SEED_train\.tsv",
        ),
        (lambda gym: gym.rename(gym.with_name("gone")), r"^data.path=.* is not a folder · it must"),
        (
            lambda gym: [path.unlink() for path in gym.glob("*/*.tsv")],
            r"^data.path=.* holds no TASK/TASK_SHOTS_SEED_train\.tsv · .* · correct",
        ),
        (
            lambda gym: [write(gym, "zebra", seed, train=[("a", "")]) for seed in SEEDS],
            r"no usable training rows in 'zebra'",
        ),
    ],
)
def test_broken_folders(gym: Path, damage: Damage, says: str) -> None:
    damage(gym)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        CrossFitSource(gym)()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tasks": "some"}, r"^data.tasks='some' · valid: auto, train, dev, test, all · choose"),
        ({"shots": 0}, r"^data.shots=0 · it must be at least 1 · raise it"),
        ({"seeds": []}, r"^data.seeds=\[\] · one or more distinct seeds are needed · name"),
        ({"seeds": [13, 13]}, r"^data.seeds=\[13, 13\] · .* · name each once"),
        (
            {"seeds": [13, 100]},
            r"^data.seeds=\[13, 100\]: .*color has the seeds 13, 21, 87 and lacks",
        ),
    ],
)
def test_settings_that_are_not_valid(gym: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CrossFitSource(gym, **given)()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"train":\n ["color",]}', r"random\.json:2: not valid JSON .* · mend the file"),
        ('["color"]', r"random\.json has list · a partition has the lists train, dev, test"),
        ('{"train": ["color"], "seen": []}', r"random\.json has \['seen', 'train'\] · a partition"),
        ('{"train": "color"}', r"random\.json: 'train' has color · it must be a list of names"),
        (
            '{"train": ["color"], "test": ["color"]}',
            r"'color' is in 'train' and in 'test' · .* rem",
        ),
        (
            '{"dev": ["color"]}',
            r"random\.json: no task in its list 'train' \(data.tasks=auto\) · ch",
        ),
        ('{"train": ["color", "horse"]}', r"lacks 1 of the 2 tasks of .*, as 'horse' · build them"),
        (None, r"^data.partition=.*random\.json: there is no such file · .* · correct"),
    ],
)
def test_broken_partitions(gym: Path, partition: Path, content: str | None, says: str) -> None:
    partition.unlink() if content is None else partition.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        CrossFitSource(gym, partition=partition)()


def test_a_cached_one_is_the_same(gym: Path, partition: Path, tmp_path: Path) -> None:
    source = CrossFitSource(gym, partition=partition)
    wanted = source()
    found = cached_tasks(source, tmp_path / "cache")
    assert found.tasks == wanted.tasks
    assert found.notes == wanted.notes
    before = source.fingerprint()
    partition.write_text('{"train": ["color", "num_14"], "dev": [], "test": []}')
    assert source.fingerprint() != before  # a note counts those of the other lists
    partition.write_text('{"train": ["zebra"]}')
    assert cached_tasks(source, tmp_path / "cache").names == ["zebra"]


def test_batches_and_references(gym: Path, byt5: Any) -> None:
    module = DataModule(
        CrossFitSource(gym), byt5, is_encoder_decoder=True, batch_size=7, prompt="name"
    )
    seen: Counter[str] = Counter()
    for batch in module.evaluation_dataloader("validation"):
        for text, references in zip(batch["inputs"], batch["references"], strict=True):
            name, _, rest = text.partition(": ")
            seen[name] += 1
            labels = {"color": 1, "zebra": 1}
            assert len(references) == labels.get(name, 2)
            assert rest.startswith(name)
    assert {*seen} == {*SHOTS}
