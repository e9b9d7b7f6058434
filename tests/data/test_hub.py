"""Datasets in the forms that the hub has, from local folders."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polylab.data import Example, FlanSource, HubSource, JsonlFolder, P3Source

Rows = list[dict[str, Any]]
MakeRows = Callable[..., Rows]


def write_parquet(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)


def write_jsonl(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_card(folder: Path, *configs: str) -> None:
    """A README.md that lists configurations, a folder each."""
    lines = [f"- config_name: {c}\n  data_dir: {c}\n" for c in configs]
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n# A dataset\n")


def _inputs(examples: Any) -> list[str]:
    return [example.input for example in examples]


def test_shards_of_parquet_with_task_column(tmp_path: Path) -> None:
    rows = [{"inputs": f"{i}", "targets": "x", "task": f"t{i % 3}"} for i in range(10)]
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:4])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[4:])
    write_parquet(
        tmp_path / "data" / "validation-00000-of-00001.parquet", [{**rows[0], "inputs": "v"}]
    )
    collection = HubSource(path=str(tmp_path))()
    assert collection.names == ["t0", "t1", "t2"]
    assert [_inputs(task.train) for task in collection.tasks] == [
        ["0", "3", "6", "9"], ["1", "4", "7"], ["2", "5", "8"],
    ]  # fmt: skip
    assert [_inputs(task.validation) for task in collection.tasks] == [["v"], [], []]


def test_a_change_of_the_files_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    write_parquet(file, [{"input": "a", "target": "b"}])
    source = HubSource(path=str(tmp_path))
    before = source.fingerprint()
    assert source.fingerprint() == before
    write_parquet(file, [{"input": "c", "target": "d"}])
    assert source().tasks[0].train == [Example("c", "d")]
    assert source.fingerprint() != before


def test_a_change_of_the_files_of_a_configuration_is_seen(tmp_path: Path) -> None:
    for text in ("old", "new"):
        for config in ("a", "b"):
            row = {"input": f"{text} {config}", "target": "x"}
            write_parquet(tmp_path / config / "train.parquet", [row])
        write_card(tmp_path, "a", "b")
        tasks = HubSource(path=str(tmp_path))().tasks
        assert [_inputs(task.train) for task in tasks] == [[f"{text} a"], [f"{text} b"]]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_json_is_text_as_it_stands(tmp_path: Path, suffix: str) -> None:
    """The JSON reader of `datasets` makes times and quoted strings of these."""
    targets = ["2020-01-01", "2021-02-03"]
    rows = [{"input": f"{i}", "target": target} for i, target in enumerate(targets)]
    write_jsonl(tmp_path / f"train.{suffix}", rows)
    assert [e.target for e in HubSource(path=str(tmp_path))().tasks[0].train] == targets
    write_jsonl(tmp_path / f"train.{suffix}", [*rows, {"input": "b", "target": 7}])
    message = rf'train\.{suffix}:3: "target" has 7 \(int\)'
    with pytest.raises(ValueError, match=message):
        HubSource(path=str(tmp_path))()


def test_a_row_is_named_as_the_user_spelled_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "mine" / "data" / "train.jsonl", [{"input": "a", "target": 7}])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'^mine/data/train\.jsonl:1: "target" has 7'):
        HubSource(path="mine")()


def test_csv_is_text_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('input,target\n007,NA\n"a\nb",1.0\n')
    (task,) = HubSource(path=str(tmp_path))().tasks
    assert task.train == [Example("007", "NA"), Example("a\nb", "1.0")]


def test_configurations_are_tasks(tmp_path: Path, make_rows: MakeRows) -> None:
    for config, count in {"sports": 3, "snarks": 5}.items():
        write_jsonl(tmp_path / config / "train.jsonl", make_rows(count, config))
    write_card(tmp_path, "sports", "snarks")
    collection = HubSource(path=str(tmp_path))()
    assert {t.name: len(t.train) for t in collection.tasks} == {"snarks": 5, "sports": 3}
    (task,) = HubSource(path=str(tmp_path), tasks="one")().tasks
    assert (task.name, len(task.train)) == (tmp_path.name, 8)
    (task,) = HubSource(path=str(tmp_path), config_name="snarks")().tasks
    assert (task.name, len(task.train)) == (tmp_path.name, 5)
    (task,) = HubSource(path=str(tmp_path), config_name=["snarks"], tasks="configs")().tasks
    assert task.name == "snarks"
    with pytest.raises(ValueError, match=r"data\.tasks=one with data\.columns\.task=input · a col"):
        HubSource(path=str(tmp_path), tasks="one", columns={"task": "input"})
    with pytest.raises(
        ValueError, match=r"cannot be read: .*'snark' not found. Available: \['sports', 'snarks'\]"
    ):
        HubSource(path=str(tmp_path), config_name="snark")()


def test_real_rows_give_what_jsonl_gives(shared_data: Path, tmp_path: Path) -> None:
    """As one table with a task column, two shards a split."""
    source = shared_data / "instruction_induction"
    plain = tmp_path / "plain"
    plain.mkdir()
    splits: dict[str, Rows] = {"train": [], "test": []}
    for path in sorted(source.glob("*.jsonl")):
        (plain / path.name).symlink_to(path)
        for split, file in {"train": path, "test": source / "test" / path.name}.items():
            lines = file.read_text(encoding="utf-8").split("\n")
            new = {"options": None, "task_name": path.stem}
            splits[split] += [{**new, **json.loads(x)} for x in lines if x]
    (plain / "test").symlink_to(source / "test")
    for split, rows in splits.items():
        half = len(rows) // 2 + 1
        for number, part in enumerate((rows[:half], rows[half:])):
            write_parquet(
                tmp_path / "hub" / "data" / f"{split}-0000{number}-of-00002.parquet", part
            )
    assert HubSource(path=str(tmp_path / "hub"))() == JsonlFolder(plain)()


@pytest.mark.parametrize("path", ["nobody/nothing", "nothing_of_that_name"])
def test_a_hub_name_that_is_not_cached_gets_one_line_offline(path: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^data\.path={path} cannot be read: .+ · check the name"
    ):
        HubSource(path=path)()


@pytest.mark.parametrize("path", ["./nothing", "no/such/folder", "/no/folder"])
def test_a_folder_that_does_not_exist_is_no_hub_name(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"data.path={path} is neither a folder nor a hub"):
        HubSource(path=path)()


def test_values_that_are_no_strings_are_named_by_their_row(tmp_path: Path) -> None:
    rows = [{"input": "a", "target": "b", "task": "t", "label": 0}] * 3
    write_parquet(tmp_path / "train.parquet", [*rows, {**rows[0], "input": None}])
    place = rf'{tmp_path} \(train\):row 4: "input" has null'
    with pytest.raises(ValueError, match=place):
        HubSource(path=str(tmp_path))()
    with pytest.raises(ValueError, match=r'\(train\):row 1: "label" has 0 \(int\)'):
        HubSource(path=str(tmp_path), columns={"target": "label"})()


def test_a_broken_file_is_named_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.parquet").write_text("nothing")
    with pytest.raises(ValueError, match=rf"^data.path={tmp_path} cannot be read: .*[Pp]arquet"):
        HubSource(path=str(tmp_path))()
    assert capfd.readouterr().err == ""


P3 = {
    "glue_mrpc_equivalent": {
        "train": [("Same? a b", "yes"), ("Same? c d", "no"), ("Same? e f", "")],
        "validation": [("Same? g h", "yes")],
    },
    "glue_mrpc_replace": {"train": [("Replace a b", "yes")]},
    "super_glue_copa_choose": {"train": [("Pick: i", "one"), ("Pick: j", "two")]},
}


def _p3_row(text: str, target: str, **more: Any) -> dict[str, Any]:
    return {
        "inputs": [3, 4, 5], "inputs_pretokenized": text, "targets": [6],
        "targets_pretokenized": target, **more,
    }  # fmt: skip


def _score_rows(*examples: tuple[str, dict[str, bool]]) -> Rows:
    return [
        _p3_row(
            text,
            option,
            answer_choices=[*options],
            idx=[number, place],
            is_correct=right,
            weight=1.0,
        )
        for number, (text, options) in enumerate(examples)
        for place, (option, right) in enumerate(options.items())
    ]


@pytest.fixture
def p3(tmp_path: Path) -> Path:
    folder = tmp_path / "P3"
    for config, splits in P3.items():
        for split, rows in splits.items():
            write_parquet(
                folder / config / f"{split}-00000-of-00001.parquet", [_p3_row(*row) for row in rows]
            )
    scored = {
        "train": _score_rows(
            ("Pick: i", {"one": True, "two": False}), ("Pick: j", {"one": False, "two": True})
        ),
        "test": _score_rows(("Pick: k", {"one": True, "two": True, "six": False})),
    }
    for split, rows in scored.items():
        write_parquet(folder / "super_glue_copa_choose_score_eval" / f"{split}-0.parquet", rows)
    write_card(folder, *P3, "super_glue_copa_choose_score_eval")
    return folder


def test_p3_templates_as_tasks(p3: Path) -> None:
    collection = P3Source(path=str(p3))()
    assert collection.names == [*P3]
    equivalent, _, copa = collection.tasks
    assert equivalent.train == [Example("Same? a b", "yes"), Example("Same? c d", "no")]
    assert _inputs(equivalent.validation) == ["Same? g h"]
    assert "rows with an empty target, dropped: 1 (glue_mrpc_equivalent 1)" in collection.notes
    assert copa.train == [
        Example("Pick: i", "one", options=("one", "two")),
        Example("Pick: j", "two", options=("one", "two")),
    ]
    assert copa.test == [Example("Pick: k", "one", ("one", "two"), ("one", "two", "six"))]


def test_p3_datasets_as_tasks(p3: Path) -> None:
    collection = P3Source(path=str(p3), p3_tasks="datasets")()
    assert collection.names == ["glue_mrpc", "super_glue_copa"]
    assert _inputs(collection.tasks[0].train) == ["Same? a b", "Same? c d", "Replace a b"]
    (copa,) = P3Source(path=str(p3), config_name=["super_glue_copa_choose"])().tasks
    assert copa.train[0] == Example("Pick: i", "one")


def test_p3_without_options(p3: Path) -> None:
    copa = P3Source(path=str(p3), options=False)().tasks[2]
    assert copa.train == [Example("Pick: i", "one"), Example("Pick: j", "two")]
    assert list(copa.test) == []


def test_p3_cap_counts_examples_not_options(tmp_path: Path) -> None:
    rows = _score_rows(*((f"q{i}", {"a": True, "b": False, "c": False}) for i in range(9)))
    write_parquet(tmp_path / "new_set_ask_score_eval" / "train-0.parquet", rows)
    write_card(tmp_path, "new_set_ask_score_eval")
    (task,) = P3Source(path=str(tmp_path), max_examples_per_task=4)().tasks
    assert (task.name, len(task.train)) == ("new_set_ask", 4)
    assert all(e.options == ("a", "b", "c") for e in task.train)
    with pytest.raises(ValueError, match="'new_set_ask' begins with no known dataset"):
        P3Source(path=str(tmp_path), p3_tasks="datasets")()
    source = P3Source(path=str(tmp_path), p3_tasks="datasets", datasets=["new_set"])
    assert source().names == ["new_set"]
    with pytest.raises(ValueError, match=r"data\.p3\.tasks='prompts' · valid: templates, datasets"):
        P3Source(path=str(tmp_path), p3_tasks="prompts")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs_pretokenized": "other"}, r"row 2: another input than .*row 1 with the same idx"),
        ({"idx": None}, r"row 2: 'idx' has None · it must be a number"),
        ({"is_correct": None}, r'row 2: "is_correct" has None \(NoneType\) · it must be a bool'),
    ],
)
def test_p3_options_that_make_no_sense(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rows = _score_rows(("q", {"a": True, "b": False}))
    rows[1] |= change
    write_parquet(tmp_path / "x_y_score_eval" / "train-0.parquet", rows)
    write_card(tmp_path, "x_y_score_eval")
    with pytest.raises(ValueError, match=message):
        P3Source(path=str(tmp_path))()


# input, target, task, collection, template in each of the usual datasets
FLAN: dict[str, tuple[str, ...]] = {
    "Muennighoff/flan": ("inputs", "targets", "task"),
    "DataProvenanceInitiative": ("inputs", "targets", "task_name", "task_source", "template_type"),
    "Open-Orca": ("inputs", "targets", "_task_name", "_task_source", "_template_type"),
    "chiayewken": ("source", "target", "task_name", "task_source", "template_type"),
}
FLAN_ROWS = [
    ("Is it? a", "yes", "glue_mrpc", "Flan2021", "zs_opt"),
    ("Is it? b", "no", "glue_mrpc", "P3", "fs_noopt"),
    ("Why c", "because", "task001:x/y", "NIv2", "zs_noopt"),
    ("Why d", "", "task001:x/y", "NIv2", "zs_opt"),
]


@pytest.fixture(params=[(name, kind) for name in FLAN for kind in ("parquet", "jsonl.gz")])
def flan(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, kind = request.param
    rows = [{**dict(zip(FLAN[name], row, strict=False)), "template_idx": 3} for row in FLAN_ROWS]
    if kind == "parquet":
        write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows)
    else:
        write_jsonl(tmp_path / "train.jsonl.gz", rows)
    return tmp_path


def test_flan_from_its_usual_datasets(flan: Path) -> None:
    collection = FlanSource(path=str(flan))()
    tasks = {task.name: [(e.input, e.target) for e in task.train] for task in collection.tasks}
    assert tasks.pop("task001_x_y") == [("Why c", "because")]
    first, second = ("Is it? a", "yes"), ("Is it? b", "no")
    if len(tasks) == 1:  # no column says of which collection
        assert tasks == {"glue_mrpc": [first, second]}
    else:
        assert tasks == {"Flan2021.glue_mrpc": [first], "P3.glue_mrpc": [second]}
        zero_shot = FlanSource(path=str(flan), templates=["zs_opt", "zs_noopt"])()
        assert zero_shot.names == ["glue_mrpc", "task001_x_y"]
        assert FlanSource(path=str(flan), collections=["NIv2"])().names == ["task001_x_y"]
    assert "rows with an empty target, dropped: 1 (task001_x_y 1)" in collection.notes
    assert any("'template_idx', ignored" in note for note in collection.notes)
    with pytest.raises(
        ValueError, match=r"no rows of the template 'zs'.* · it has (no|'fs_noopt')"
    ):
        FlanSource(path=str(flan), templates=["zs_opt", "zs"])()


def test_flan_split_by_a_column(tmp_path: Path) -> None:
    rows = [
        {"source": s, "target": "b", "task_name": "t", "split": s}
        for s in ("train", "validation", "test")
    ]
    write_jsonl(tmp_path / "train.json", rows)
    (task,) = FlanSource(path=str(tmp_path), columns={"input": "source"})().tasks
    assert [_inputs(s) for s in (task.train, task.validation, task.test)] == [
        ["train"], ["validation"], ["test"],
    ]  # fmt: skip


def test_flan_needs_a_task_column(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"inputs": "a", "targets": "b"}])
    with pytest.raises(ValueError, match=r"data\.tasks=column, and \S+ has no column for the task"):
        FlanSource(path=str(tmp_path))()
