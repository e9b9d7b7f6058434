"""Rows of JSONL files, good and bad."""

from pathlib import Path

import pytest

from polylab.data import Example
from polylab.data.rows import parse_row, read_examples


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "task.jsonl"


def test_a_plain_row() -> None:
    row = {"input": " a ", "target": "b\nc ", "options": ["b", "d"]}
    assert parse_row(row, "f:1") == Example(" a ", "b\nc ", ("b\nc ",), ("b", "d"))


@pytest.mark.parametrize(
    ("row", "references"),
    [
        ({"target": ["b", "c", "b"]}, ("b", "c")),
        ({"references": ["c", "b"]}, ("c", "b")),
        ({"target": "b", "references": ["c", "b"]}, ("b", "c")),
        ({"target": "", "references": ["c"]}, ("c",)),
        ({"target": None, "references": ["c"]}, ("c",)),
        ({"target": ["", "b"]}, ("b",)),
    ],
)
def test_several_references(row: dict[str, object], references: tuple[str, ...]) -> None:
    example = parse_row({"input": "a", **row}, "f:1")
    assert example is not None
    assert (example.target, example.references) == (references[0], references)


def test_a_row_may_carry_its_instruction() -> None:
    example = parse_row({"input": "a", "target": "b", "instruction": "Do it."}, "f:1")
    assert example is not None
    assert (example.input, example.instruction) == ("a", "Do it.\na")


def test_an_instruction_may_be_the_whole_input() -> None:
    example = parse_row({"input": "", "target": "b", "instruction": "Do it."}, "f:1")
    assert example is not None
    assert example.instruction == "Do it."


def test_null_options_and_instructions_are_none() -> None:
    row = {"input": "a", "target": "b", "options": None, "instruction": None}
    assert parse_row(row, "f:1") == Example("a", "b")


@pytest.mark.parametrize("target", ["", " \n", [], [""], None])
def test_an_empty_target_gives_no_example(target: object) -> None:
    assert parse_row({"input": "a", "target": target}, "f:1") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"target": "b", "inputs": "a"},
            r"f:7: no \"input\" among the keys \['inputs', 'target'\]",
        ),
        ({"input": "a", "output": "b"}, r"f:7: no \"target\" among the keys \['input', 'output'\]"),
        ({"input": 12, "target": "b"}, r"f:7: \"input\" has 12 \(int\) · it must be a string"),
        ({"input": None, "target": "b"}, r"\"input\" has null \(NoneType\)"),
        ({"input": "a", "target": 1.5}, r"\"target\" has 1.5 \(float\) .* or a list of strings"),
        ({"input": "a", "target": ["b", 3]}, r"\"target\" has 3 \(int\) .* a list of strings"),
        ({"input": "a", "references": "b"}, r"\"references\" has \"b\" \(str\) .* list of strings"),
        (
            {"input": "a", "target": "b", "options": {"c": 1}},
            r"\"options\" has {\"c\": 1} \(dict\)",
        ),
        ({"input": "a", "target": "b", "options": [True]}, r"\"options\" has true \(bool\)"),
        ({"input": "a", "target": "b", "instruction": 5}, r"\"instruction\" has 5 \(int\)"),
        ({"input": ["x" * 99], "target": "b"}, r"\"input\" has \[\"x{55}\.\.\. \(list\)"),
        ({"input": "ab\ud800", "target": "b"}, r"\"input\" .* surrogate '\\ud800' at character 2"),
        ({"input": "a", "target": "\udc01"}, r"\"target\" .* surrogate '\\udc01' at character 0"),
    ],
)
def test_a_wrong_row_is_named_with_its_value(row: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_row(row, "f:7")


def test_a_malformed_line_is_named(path: Path) -> None:
    path.write_text('{"input": "a", "target": "b"}\n\n{"input": "c" "target": "d"}\n')
    with pytest.raises(ValueError, match=r"task\.jsonl:3: not valid JSON \(Expecting ',' delimi"):
        read_examples(path)


def test_deep_nesting_is_a_malformed_line(path: Path) -> None:
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"task\.jsonl:1: not valid JSON"):
        read_examples(path)


@pytest.mark.parametrize(("line", "kind"), [("[1]", "list"), ('"a"', "str"), ("null", "NoneType")])
def test_a_line_that_is_no_object(path: Path, line: str, kind: str) -> None:
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=rf"task\.jsonl:1: a JSON {kind} · every line"):
        read_examples(path)


def test_a_line_that_is_not_utf8(path: Path) -> None:
    path.write_bytes(b'{"input": "a", "target": "b"}\n{"input": "\xe9", "target": "b"}\n')
    with pytest.raises(ValueError, match=r"task\.jsonl:2: byte 0xe9 at column 12 is not UTF-8"):
        read_examples(path)


@pytest.mark.parametrize("separator", "\x85\u2028\u2029\x7f\u200b")
def test_only_a_newline_ends_a_row(path: Path, separator: str) -> None:
    rows = [f'{{"input": "a{separator}{i}", "target": "{separator}b"}}' for i in range(3)]
    path.write_bytes("\n".join(rows).encode())
    examples = read_examples(path).examples
    assert [example.input for example in examples] == [f"a{separator}{i}" for i in range(3)]
    assert {example.target for example in examples} == {f"{separator}b"}


@pytest.mark.parametrize("control", [0x01, 0x0B, 0x0C, 0x0D, 0x1C, 0x1E])
def test_escaped_control_characters_stay(path: Path, control: int) -> None:
    path.write_text(f'{{"input": "a\\u{control:04x}b", "target": "c"}}\n')
    assert read_examples(path).examples[0].input == f"a{chr(control)}b"


def test_byte_order_mark_crlf_and_blank_lines(path: Path) -> None:
    lines = ['{"input": "a\\r", "target": "b"}', "", '\ufeff{"input": "\ufeffc", "target": "d"}']
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert [example.input for example in read_examples(path).examples] == ["a\r", "\ufeffc"]


def test_empty_targets_and_unknown_keys_are_counted(path: Path) -> None:
    path.write_text(
        '{"input": "a", "target": "b", "id": 1}\n{"input": "c", "target": "", "id": 2, "x": 3}\n'
    )
    report = read_examples(path)
    assert report.examples == [Example("a", "b")]
    assert report.empty_targets == 1
    assert report.ignored_keys == {"id": 2, "x": 1}


def test_an_empty_file(path: Path) -> None:
    path.write_bytes(b"")
    assert read_examples(path).examples == []
