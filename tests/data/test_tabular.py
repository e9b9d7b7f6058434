"""CSV and Parquet files."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polylab.data import CsvFiles, Example, JsonlFolder, ParquetFiles, TaskCollection

Rows = list[dict[str, Any]]
MakeRows = Callable[..., Rows]
SOURCES: dict[str, type[CsvFiles] | type[ParquetFiles]] = {"csv": CsvFiles, "parquet": ParquetFiles}


def _columns(rows: Rows) -> list[str]:
    return [*dict.fromkeys(key for row in rows for key in row)] or ["input", "target"]


def write_csv(path: Path, rows: Rows, *, columns: list[str] | None = None) -> Path:
    """Lists as JSON, what is missing as an empty cell; rows end with a carriage return too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = columns or _columns(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(names)
        for row in rows:
            cells = [row.get(name, "") for name in names]
            writer.writerow([json.dumps(c) if isinstance(c, list) else c for c in cells])
    return path


def write_parquet(path: Path, rows: Rows, *, columns: list[str] | None = None) -> Path:
    """In row groups of seven."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = columns or _columns(rows)
    cells = {name: [row.get(name) for row in rows] for name in names}
    table = (
        pa.table(cells) if rows else pa.table({name: pa.array([], pa.string()) for name in names})
    )
    pq.write_table(table, path, row_group_size=7)
    return path


WRITE: dict[str, Callable[..., Path]] = {"csv": write_csv, "parquet": write_parquet}
each_format = pytest.mark.parametrize("kind", ["csv", "parquet"])


def _read_rows(path: Path) -> Rows:
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


@each_format
@pytest.mark.parametrize("folder", ["instruction_induction", "quirks"])
def test_real_files_give_what_jsonl_gives(
    shared_data: Path, tmp_path: Path, kind: str, folder: str
) -> None:
    source = shared_data / folder
    for path in (*source.glob("*.jsonl"), *source.glob("test/*.jsonl")):
        target = tmp_path / path.relative_to(source).with_name(f"{path.stem}.{kind}")
        WRITE[kind](target, _read_rows(path))
    expected = JsonlFolder(source, on_empty="skip")()
    if (source / "instructions.json").exists():
        expected = JsonlFolder(_without_instructions(source, tmp_path), on_empty="skip")()
    assert SOURCES[kind](path=tmp_path, on_empty="skip")() == expected


def _without_instructions(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "linked"
    folder.mkdir()
    for path in (*source.glob("*.jsonl"), source / "test"):
        (folder / path.name).symlink_to(path)
    return folder


@each_format
def test_a_real_task_column_gives_what_files_give(
    shared_data: Path, tmp_path: Path, kind: str
) -> None:
    source = shared_data / "instruction_induction"
    folder = _without_instructions(source, tmp_path)
    rows: Rows = []
    for split, paths in {
        "train": source.glob("*.jsonl"),
        "dev": (source / "test").glob("*.jsonl"),
    }.items():
        rows += [
            {**row, "task": path.stem, "split": split} for path in paths for row in _read_rows(path)
        ]
    rows = rows[::3] + rows[1::3] + rows[2::3]  # tasks and splits all over the file
    file = WRITE[kind](tmp_path / f"all.{kind}", rows)
    found = SOURCES[kind](path=file, splits={"test": "dev"})()
    expected = JsonlFolder(folder)()
    assert found.names == expected.names
    for ours, its in zip(found.tasks, expected.tasks, strict=True):
        assert _set(ours.train) == _set(its.train)
        assert _set(ours.validation) == _set(its.validation)
        assert _set(ours.test) == _set(its.test)


def _set(examples: Any) -> set[tuple[Any, ...]]:
    return {(e.input, e.target, frozenset(e.references), e.options) for e in examples}


@each_format
def test_the_files_of_a_folder(tmp_path: Path, kind: str, make_rows: MakeRows) -> None:
    for name, count in {"en-de": 4, "squad1.1_qa": 3, "test/en-de": 2}.items():
        WRITE[kind](tmp_path / f"{name}.{kind}", make_rows(count, name))
    (tmp_path / "README.md").write_text("no table")
    source = SOURCES[kind](path=tmp_path)
    a, b = source().tasks
    assert (a.name, len(a.train), len(a.validation), len(a.test)) == ("en-de", 4, 0, 2)
    assert (b.name, len(b.train), len(b.test)) == ("squad1.1_qa", 3, 0)
    assert len(source.files()) == 3
    before = source.fingerprint()
    assert SOURCES[kind](path=tmp_path).fingerprint() == before
    WRITE[kind](tmp_path / f"en-de.{kind}", make_rows(5))
    assert SOURCES[kind](path=tmp_path).fingerprint() != before


@each_format
def test_files_named_after_splits(tmp_path: Path, kind: str, make_rows: MakeRows) -> None:
    for name, count in {"train": 6, "valid": 3, "test": 2}.items():
        WRITE[kind](tmp_path / "qa" / f"{name}.{kind}", make_rows(count, name))
    (task,) = SOURCES[kind](path=tmp_path / "qa")().tasks
    assert (task.name, len(task.train), len(task.validation), len(task.test)) == ("qa", 6, 3, 2)


@each_format
def test_one_file_is_one_task(tmp_path: Path, kind: str, make_rows: MakeRows) -> None:
    file = WRITE[kind](tmp_path / f"sums.{kind}", make_rows(9))
    (task,) = SOURCES[kind](path=file)().tasks
    assert (task.name, len(task.train)) == ("sums", 9)
    assert [example.input for example in task.train] == [f"item {i}" for i in range(9)]


ROWS = [
    {"q": "a", "a": "x", "of": "one", "refs": ["x", "y"], "choices": ["x", "z"], "do": "Do."},
    {"q": "b", "a": "y", "of": "two/2", "refs": [], "choices": [], "do": ""},
    {"q": "c", "a": "", "of": "one", "refs": [], "choices": [], "do": "Do."},
    {"q": "d", "a": "z", "of": "one", "refs": [], "choices": [], "do": "Do."},
]
NAMES = {
    "input": "q", "target": "a", "task": "of", "references": "refs", "options": "choices",
    "instruction": "do",
}  # fmt: skip


@each_format
def test_columns_by_name(tmp_path: Path, kind: str) -> None:
    rows = [{**row, "do": row["do"] or None} for row in ROWS] if kind == "parquet" else ROWS
    file = WRITE[kind](tmp_path / f"t.{kind}", rows)
    collection = SOURCES[kind](path=file, columns=NAMES)()
    one, two = collection.tasks
    assert (one.name, two.name) == ("one", "two_2")
    assert one.train == [
        Example("a", "x", ("x", "y"), ("x", "z"), "Do.\na"),
        Example("d", "z", instruction="Do.\nd"),
    ]
    assert two.train == [Example("b", "y")]
    assert "rows with an empty target, dropped: 1 (one 1)" in collection.notes


@each_format
def test_usual_names_join_the_halves_of_a_prompt(tmp_path: Path, kind: str) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3", "id": "i"},
        {"instruction": "Sing.", "input": "", "output": "la", "id": "j"},
    ]
    collection = SOURCES[kind](path=WRITE[kind](tmp_path / f"t.{kind}", rows))()
    assert collection.tasks[0].train == [
        Example("Add.\n1 2", "3", instruction="Add.\n1 2"),
        Example("Sing.", "la", instruction="Sing."),
    ]
    assert "rows with the column 'id', ignored: 2 (t 2)" in collection.notes


def test_null_is_an_empty_half_of_a_prompt_and_nowhere_else_a_text(tmp_path: Path) -> None:
    rows = [{"instruction": "Sing.", "input": None, "output": "la"}, {"input": "b", "output": "c"}]
    file = write_parquet(tmp_path / "t.parquet", rows)
    first, second = ParquetFiles(path=file)().tasks[0].train
    assert (first.input, second.input) == ("Sing.", "b")
    rows = [{"input": "a", "target": "b"}, {"input": None, "target": "c"}]
    with pytest.raises(ValueError, match=r't\.parquet:row 2: "input" has null \(NoneType\)'):
        ParquetFiles(path=write_parquet(file, rows))()


def test_an_instruction_alone_is_the_input(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", [{"instruction": "Sing.", "response": "la"}])
    assert CsvFiles(path=file)().tasks[0].train == [Example("Sing.", "la")]


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (["source", "prompt", "target"], {}, "'source', 'prompt' could be the input"),
        (["input", "label"], {}, r"no column is the target \(found: 'input', 'label'\)"),
        (["text", "target"], {}, "no column is the input .* data.columns.input=NAME"),
        (["input", "target"], {"task": "kind"}, "data.columns.task='kind' is no column of .*t.csv"),
        (["input", "target"], {"inputs": "input"}, "data.columns has 'inputs' · valid: input, "),
    ],
)
def test_columns_that_cannot_be_found(
    tmp_path: Path, columns: list[str], given: dict[str, str | None], message: str
) -> None:
    file = write_csv(tmp_path / "t.csv", [dict.fromkeys(columns, "a")])
    with pytest.raises(ValueError, match=message):
        CsvFiles(path=file, columns=given)()


def test_the_pretokenized_columns_of_p3_come_first(tmp_path: Path) -> None:
    row = {
        "inputs": [3, 4],
        "targets": [5],
        "inputs_pretokenized": "a",
        "targets_pretokenized": "b",
    }
    file = write_parquet(tmp_path / "t.parquet", [row])
    assert ParquetFiles(path=file)().tasks[0].train == [Example("a", "b")]


def test_parquet_values_that_are_no_strings(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "t.parquet", [{"input": "a", "target": 4}])
    with pytest.raises(ValueError, match=r't\.parquet:row 1: "target" has 4 \(int\)'):
        ParquetFiles(path=file)()
    rows = [{"input": "a", "target": "b", "task": "t", "options": ["c"]}] * 9
    file = write_parquet(tmp_path / "t.parquet", [*rows, {**rows[0], "options": [None]}])
    with pytest.raises(ValueError, match=r't\.parquet:row 10: "options" has null'):
        ParquetFiles(path=file)()
    file = write_parquet(tmp_path / "t.parquet", [*rows, {**rows[0], "task": None}])
    with pytest.raises(ValueError, match=r't\.parquet:row 10: "task" has None'):
        ParquetFiles(path=file)()
    file = write_parquet(tmp_path / "t.parquet", [{**rows[0], "task": 7}])
    with pytest.raises(ValueError, match=r't\.parquet:row 1: "task" has 7'):
        ParquetFiles(path=file)()


HEADER = "input,target,options\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"a\n\nb",x,\nc,y\n', r"t\.csv:5: 2 cells · the header has 3 \('input', 'target', 'opti"),
        ("a,x,\n\n\nb,y,[1]\n", r't\.csv:5: "options" has 1 \(int\) · it must be a list'),
        ('a,x,\n"b,y,\nc,z,\n', r"t\.csv:3: not valid CSV \(unexpected end of data\)"),
        ('a,x,\n"b"c,y,\n', r"t\.csv:3: not valid CSV \(',' expected after '\"'\)"),
        ("a,x,yes|no\n", r"""t\.csv:2: "options" has 'yes\|no' · it must be a JSON list"""),
        ('"a\u2028\x85\nb",x,\n,,,\n', r"t\.csv:4: 4 cells"),
    ],
)
def test_a_malformed_row_of_csv_is_named_by_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes((HEADER + text).encode())
    with pytest.raises(ValueError, match=message):
        CsvFiles(path=file)()


def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(HEADER.encode() + b'"a\n\xff",x,\n')
    with pytest.raises(ValueError, match=r"t\.csv:3: byte 0xff at column 1 is not UTF-8"):
        CsvFiles(path=tmp_path)()


def test_lines_are_right_for_rows_found_by_their_task(tmp_path: Path) -> None:
    text = 'task,input,target,options\nb,"1\n2",x,\na,"3\n4",y,\nb,5,z,[1]\n'
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=r't\.csv:6: "options" has 1 \(int\)'):
        CsvFiles(path=tmp_path / "t.csv")()
    (tmp_path / "t.csv").write_text('task,input,target\nb,"1\n2",x\n" ",3,y\n')
    with pytest.raises(ValueError, match=r"""t\.csv:4: "task" has ' ' · it must be a non-empty"""):
        CsvFiles(path=tmp_path / "t.csv")()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", r"t\.csv:1: no header"), ("a,b,a\n1,2,3\n", r"t\.csv:1: the header has 'a' more than")],
)
def test_headers(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        CsvFiles(path=tmp_path)()


def test_csv_is_text_as_it_stands(tmp_path: Path) -> None:
    cells = ["007", "NA", "", "1e3", " x ", "\ufeffb", 'say ""hi""', "a\r\nb", "x" * 200_000]
    text = "".join(f'"{cell}","{cell or "empty"}"\r\n' for cell in cells)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + f'"input","target"\r\n{text}'.encode())
    (task,) = CsvFiles(path=tmp_path)().tasks
    assert [example.input for example in task.train] == [c.replace('""', '"') for c in cells]
    text = "input;target\na,b;c\n"
    (tmp_path / "t.csv").write_text(text)
    assert CsvFiles(path=tmp_path, delimiter=";")().tasks[0].train == [Example("a,b", "c")]
    with pytest.raises(ValueError, match="delimiter=', ' · it must be one character"):
        CsvFiles(path=tmp_path, delimiter=", ")


@each_format
def test_a_cap_takes_the_same_rows_whatever_the_format(
    tmp_path: Path, kind: str, make_rows: MakeRows
) -> None:
    rows = make_rows(60)
    WRITE[kind](tmp_path / f"big.{kind}", rows)
    WRITE[kind](tmp_path / f"few.{kind}", rows[:5])
    WRITE[kind](tmp_path / "test" / f"big.{kind}", make_rows(30, "test"))
    big, few = SOURCES[kind](path=tmp_path, max_examples_per_task=20)().tasks
    inputs = [example.input for example in big.train]
    assert (len(inputs), len(big.test), len(few.train)) == (20, 30, 5)
    order = [row["input"] for row in rows]
    assert inputs == sorted(inputs, key=order.index)
    assert inputs != order[:20]
    with_column = [{**row, "task": "big"} for row in rows]
    file = WRITE[kind](tmp_path / "all" / f"all.{kind}", with_column)
    (task,) = SOURCES[kind](path=file, max_examples_per_task=20)().tasks
    assert [example.input for example in task.train] == inputs
    with pytest.raises(ValueError, match=r"data\.max_examples_per_task=0 · it must be at least 1"):
        SOURCES[kind](path=file, max_examples_per_task=0)


@each_format
def test_empty_tables(tmp_path: Path, kind: str, make_rows: MakeRows) -> None:
    WRITE[kind](tmp_path / f"full.{kind}", make_rows(2))
    WRITE[kind](tmp_path / f"none.{kind}", [])
    with pytest.raises(ValueError, match="no usable training rows in 'none' of"):
        SOURCES[kind](path=tmp_path)()
    assert SOURCES[kind](path=tmp_path, on_empty="skip")().names == ["full"]
    file = WRITE[kind](tmp_path / "x" / f"x.{kind}", [], columns=["task", "input", "target"])
    with pytest.raises(ValueError, match="0 tasks were given"):
        SOURCES[kind](path=file)()


@each_format
def test_tables_that_disagree(tmp_path: Path, kind: str, make_rows: MakeRows) -> None:
    WRITE[kind](tmp_path / f"a.{kind}", [{**row, "task": "t"} for row in make_rows(2)])
    WRITE[kind](tmp_path / f"b.{kind}", make_rows(2))
    with pytest.raises(ValueError, match=rf"a\.{kind} has a column for the task and .*b\.{kind} h"):
        SOURCES[kind](path=tmp_path)()
    assert SOURCES[kind](path=tmp_path, tasks="files")().names == ["a", "b"]
    with pytest.raises(ValueError, match=rf"data.tasks=column, and \S*b\.{kind} has no column"):
        SOURCES[kind](path=tmp_path / f"b.{kind}", tasks="column")()
    with pytest.raises(ValueError, match=r"data\.tasks='configs' · valid: auto, column, files"):
        SOURCES[kind](path=tmp_path, tasks="configs")


def test_names_of_tasks_do_not_collide(tmp_path: Path) -> None:
    rows = [{"input": "a", "target": "b", "task": name} for name in ("x/y", "x y", "z")]
    with pytest.raises(ValueError, match="tasks 'x/y' and 'x y' would both be named 'x_y'"):
        CsvFiles(path=write_csv(tmp_path / "t.csv", rows))()


def _split_file(tmp_path: Path, *splits: str) -> Path:
    rows = [{"input": s, "target": "b", "task": "t", "split": s} for s in splits]
    return write_csv(tmp_path / "t.csv", rows)


def test_a_split_column(tmp_path: Path) -> None:
    file = _split_file(tmp_path, "train", "dev", "test", "extra")
    collection = CsvFiles(path=file)()
    (task,) = collection.tasks
    assert [e.input for e in (*task.train, *task.validation, *task.test)] == [
        "train", "dev", "test",
    ]  # fmt: skip
    assert "rows of the split 'extra', not read: 1 (t 1)" in collection.notes
    (task,) = CsvFiles(path=file, splits={"train": "extra"})().tasks
    assert [e.input for e in task.train] == ["extra"]


@pytest.mark.parametrize(
    ("splits", "given", "message"),
    [
        (["dev", "test"], {}, r"has no training split \(found: 'dev', 'test'\)"),
        (["train", "dev", "val"], {}, "each of 'val', 'dev' could be the validation split"),
        (
            ["train"],
            {"test": "x"},
            r"data.splits.test='x' is no split of \S*t.csv · it has 'train'",
        ),
        (["train"], {"valid": "x"}, "data.splits has 'valid' · valid: train, validation, test"),
    ],
)
def test_splits_that_cannot_be_found(
    tmp_path: Path, splits: list[str], given: dict[str, str | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CsvFiles(path=_split_file(tmp_path, *splits), splits=given)()


def test_a_split_that_is_said_twice(tmp_path: Path) -> None:
    rows = [{"input": "a", "target": "b", "part": "train"}]
    write_csv(tmp_path / "t.csv", rows)
    write_csv(tmp_path / "test" / "t.csv", rows)
    with pytest.raises(
        ValueError, match=r"data\.columns\.split=part, and the tables are of the spl"
    ):
        CsvFiles(path=tmp_path, columns={"split": "part"})()


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.path=\S*x is not a folder .* TASK\.csv"):
        CsvFiles(path=tmp_path / "x")()
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"a\.parquet: not a Parquet file"):
        ParquetFiles(path=tmp_path)()


def test_a_task_in_a_big_parquet_file_is_read_alone(tmp_path: Path) -> None:
    rows = [{"input": f"{i}", "target": "b", "task": f"t{i % 5}"} for i in range(2_500)]
    file = write_parquet(tmp_path / "t.parquet", rows)
    first, *others = ParquetFiles(path=file).readers()
    assert [reader.name for reader in (first, *others)] == ["t0", "t1", "t2", "t3", "t4"]
    collection: TaskCollection = ParquetFiles(path=file, test_share=0.0, validation_share=0.0)()
    assert [e.input for e in collection.tasks[3].train] == [f"{i}" for i in range(3, 2_500, 5)]


def test_lines_end_at_newlines_only_and_only_the_first_has_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes('input,target\n"a\rb",x\n\ufeffc,y\nd\n'.encode())
    with pytest.raises(ValueError, match=r"t\.csv:4: 1 cells"):
        CsvFiles(path=file)()
    file.write_bytes('input,target\n"a\rb",x\n\ufeffc,y\n'.encode())
    assert [e.input for e in CsvFiles(path=file)().tasks[0].train] == ["a\rb", "\ufeffc"]


def test_a_file_without_rows_is_an_empty_task_beside_a_split_column(tmp_path: Path) -> None:
    rows = [{"input": "a", "target": "b", "split": "train"}]
    write_csv(tmp_path / "full.csv", rows)
    write_csv(tmp_path / "none.csv", [], columns=[*rows[0]])
    with pytest.raises(ValueError, match="no usable training rows in 'none' of"):
        CsvFiles(path=tmp_path)()
