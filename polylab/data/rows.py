"""One row of a file into one example, with errors that name the file and the line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polylab.data.conversations import read_conversation
from polylab.data.example import Example
from polylab.data.texts import check_text, join_instruction, wrong_type

KEYS = ("input", "target", "references", "options", "instruction", "messages")
OWN_NAMES = {key: key for key in KEYS}
ROW_FORM = '{"input": "...", "target": "..."}'


@dataclass
class RowReport:
    """The examples of one file, and what was left out."""

    examples: list[Example] = field(default_factory=list)
    empty_targets: int = 0
    ignored_keys: Counter[str] = field(default_factory=Counter)


def read_examples(path: Path) -> RowReport:
    r"""The examples of a JSONL file; rows with an empty target are counted and left out.

    Lines end at `\n` only (other line separators are text), a byte-order mark and blank lines are
    skipped.

    Raises:
        ValueError: With `FILE:LINE`, if a line is not a row of the expected form.
    """
    report = RowReport()
    for where, row in _read_rows(path):
        report.ignored_keys.update(key for key in row if key not in KEYS)
        example = parse_row(row, where)
        if example is None:
            report.empty_targets += 1
        else:
            report.examples.append(example)
    return report


def parse_row(
    row: Mapping[str, Any], where: str, names: Mapping[str, str] = OWN_NAMES
) -> Example | None:
    """The example in `row`, or None if its targets are empty.

    Args:
        row: Keys and values.
        where: The place of the row, for errors.
        names: The key in `row` of each of `KEYS` that rows may have.

    Raises:
        ValueError: Starting with `where`, if a key is missing or a value has the wrong type.
    """
    if row.get(names.get("messages", "")) is not None:
        return read_conversation(row[names["messages"]], where)
    text = _text(row, names.get("input"), where)
    if text is None:
        raise ValueError(
            f'{where}: no "{names.get("input", "input")}" among the keys {sorted(row)} · a row is '
            f"{ROW_FORM} · rename or add the key."
        )
    answers = _answers(row, where, names)
    if not answers:
        return None
    instruction = _text(row, names.get("instruction"), where, optional=True)
    return Example(
        input=text,
        target=answers[0],
        references=answers,
        options=_texts(row, names.get("options"), where) or None,
        instruction=None if instruction is None else join_instruction(instruction, text),
    )


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:  # bytes end a line at \n only, whatever the text holds
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            text = decode_line(line, where)
            if text.strip():
                yield where, parse_object(text, where)


def decode_line(line: bytes, where: str, encoding: str = "utf-8-sig") -> str:
    """The text of a line.

    Raises:
        ValueError: Starting with `where`, if it is not UTF-8.
    """
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: byte {error.object[error.start]:#04x} at column {error.start + 1} is not "
            "UTF-8 · files must be UTF-8 · convert the file."
        ) from None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        ValueError: Starting with `where`, if it is none.
    """
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{where}: not valid JSON ({error}) · every line must be one object like {ROW_FORM} · "
            "mend or remove the line."
        ) from None
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: a JSON {type(row).__name__} · every line must be one object like "
            f"{ROW_FORM} · mend or remove the line."
        )
    return row


def _answers(row: Mapping[str, Any], where: str, names: Mapping[str, str]) -> tuple[str, ...]:
    key = names.get("target", "target")
    target = row.get(key)
    targets = _texts(row, key, where) if isinstance(target, list) else ()
    if isinstance(target, str):
        targets = (check_text(target, key, where),)
    elif target is not None and not isinstance(target, list):
        raise wrong_type(where, key, target, "a string or a list of strings")
    references = _texts(row, names.get("references"), where)
    if key not in row and names.get("references") not in row:
        raise ValueError(
            f'{where}: no "{key}" among the keys {sorted(row)} · a row is {ROW_FORM} · '
            "rename or add the key."
        )
    return tuple(dict.fromkeys(text for text in (*targets, *references) if text.strip()))


def _text(
    row: Mapping[str, Any], key: str | None, where: str, *, optional: bool = False
) -> str | None:
    if key is None:
        return None
    value = row.get(key)
    if value is None and (key not in row or optional):
        return None
    if not isinstance(value, str):
        raise wrong_type(where, key, value, "a string")
    return check_text(value, key, where)


def _texts(row: Mapping[str, Any], key: str | None, where: str) -> tuple[str, ...]:
    values = None if key is None else row.get(key)
    if key is None or values is None:
        return ()
    if not isinstance(values, list):
        raise wrong_type(where, key, values, "a list of strings")
    for value in values:
        if not isinstance(value, str):
            raise wrong_type(where, key, value, "a list of strings")
    return tuple(check_text(value, key, where) for value in values)
