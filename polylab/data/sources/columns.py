"""Which column of a table is the input, the target, ...: named by the user, or by usual names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from polylab.data.example import Example
from polylab.data.rows import KEYS, parse_row
from polylab.data.tasks import quote

# what hub datasets call them
ALIASES: dict[str, tuple[str, ...]] = {
    "input": (
        "inputs_pretokenized", "input", "inputs", "source", "prompt", "question", "instruction",
    ),
    "target": (
        "targets_pretokenized", "target", "targets", "output", "completion", "response", "answer",
    ),
    "task": ("task", "task_name", "_task_name", "Task"),
    "split": ("split",),
    "options": ("options", "answer_choices"),
    "references": ("references",),
    "instruction": ("instruction",),
    "messages": ("messages",),
    # of FLAN: the collection that a task comes from, and the form of its prompts
    "collection": ("task_source", "_task_source"),
    "template": ("template_type", "_template_type"),
}  # fmt: skip
LISTS = ("options", "references")
# the plain names beside these are token ids
_FIRST = ("inputs_pretokenized", "targets_pretokenized")


@dataclass(frozen=True)
class Roles:
    """The columns of a table that are read.

    Args:
        names: Column of each role that there is.
        joins: Whether input and instruction are two halves of one prompt.
    """

    names: Mapping[str, str]
    joins: bool = False

    @property
    def read(self) -> list[str]:
        """The columns that examples are made of."""
        return [*dict.fromkeys(self.names[key] for key in KEYS if key in self.names)]

    def example(self, cells: dict[str, Any], where: str) -> Example | None:
        """The example in a row, or None if its targets are empty.

        Raises:
            ValueError: Starting with `where`, if a cell has the wrong type.
        """
        if self.joins and cells.get(self.names["input"], "") is None:
            cells = {**cells, self.names["input"]: ""}
        example = parse_row(cells, where, self.names)
        if self.joins and example is not None and example.instruction is not None:
            return replace(example, input=example.instruction)
        return example

    def from_text(self, cells: Mapping[str, str], where: str) -> dict[str, Any]:
        """Cells of a format that has no lists and no null: lists are JSON, an empty one is null.

        Raises:
            ValueError: Starting with `where`, if a list is not one.
        """
        found: dict[str, Any] = dict(cells)
        for role in (*LISTS, "instruction"):
            name = self.names.get(role)
            if name is None or name not in found:
                continue
            if not found[name].strip():
                found[name] = None
            elif role in LISTS:
                found[name] = _read_list(found[name], name, where)
        return found


def _read_list(text: str, name: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(
            f'{where}: "{name}" has {text[:60]!r} · it must be a JSON list of strings like '
            '["yes", "no"], or empty · mend the cell.'
        ) from None


def find_roles(columns: Sequence[str], given: Mapping[str, str | None], where: str) -> Roles:
    """The roles that columns have.

    Args:
        columns: Of the table.
        given: What the user said: the column of a role.
        where: The table, for errors.

    Raises:
        ValueError: If a column that was named is not there, there is no input or target, or
            several columns could be it.
    """
    names: dict[str, str] = {}
    for role in ALIASES:
        name = _given(role, columns, given, where) or _usual(role, columns, where)
        if name is not None:
            names[role] = name
    _check_complete(names, columns, where)
    split_prompt = names.get("instruction") is not None and not given.get("instruction")
    if split_prompt and names["instruction"] == names["input"]:
        del names["instruction"]
    return Roles(names, joins=split_prompt and "instruction" in names)


def check_columns(given: Mapping[str, str | None]) -> None:
    """Accept known roles only.

    Raises:
        ValueError: If one is unknown.
    """
    unknown = sorted(set(given) - set(ALIASES))
    if unknown:
        raise ValueError(
            f"data.columns has {quote(unknown)} · valid: {', '.join(ALIASES)} · rename them."
        )


def _given(
    role: str, columns: Sequence[str], given: Mapping[str, str | None], where: str
) -> str | None:
    name = given.get(role)
    if name is not None and name not in columns:
        raise ValueError(
            f"data.columns.{role}={name!r} is no column of {where} · it has "
            f"{quote(columns)} · name one of them."
        )
    return name


def _usual(role: str, columns: Sequence[str], where: str) -> str | None:
    found = [name for name in ALIASES[role] if name in columns]
    if found and found[0] in _FIRST:
        return found[0]
    if len(found) > 1 and role == "input":
        found = [name for name in found if name != "instruction"]  # the other half of the prompt
    if len(found) > 1:
        raise ValueError(
            f"{where}: each of {quote(found)} could be the {role} · a table has one column for it "
            f"· say which: data.columns.{role}=NAME."
        )
    return found[0] if found else None


def _check_complete(names: Mapping[str, str], columns: Sequence[str], where: str) -> None:
    missing = [role for role in ("input", "target") if role not in names]
    if "target" in missing and "references" in names:
        missing.remove("target")
    if "messages" in names:
        missing = []
    if missing:
        raise ValueError(
            f"{where}: no column is the {missing[0]} (found: {quote(columns) or 'none'}) · usual "
            f"names: {', '.join(ALIASES[missing[0]])} · say which: data.columns.{missing[0]}=NAME."
        )
