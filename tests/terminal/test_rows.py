"""Aligned lines, and streams that know few letters."""

import io
import sys

import pytest

from polylab.config.streams import make_printable
from polylab.terminal.rows import format_rows, shorten, wrap


def test_rows_are_aligned_and_paths_whole() -> None:
    path = "/" + "x" * 90
    text = format_rows([("a", "1"), ("folder", path), ("data", " · ".join(["word"] * 14))])
    assert text.splitlines() == [
        "a       1",
        f"folder  {path}",
        "data    " + " · ".join(["word"] * 10),
        "        " + " · ".join(["word"] * 4),
    ]
    assert max(len(line) for line in text.splitlines() if path not in line) <= 80


def test_lines_break_at_separators_alone() -> None:
    command = "python -m polylab.report run=/some/folder"
    assert wrap(command, 10) == [command]
    assert wrap("aaa · bbb · a, c", 9) == ["aaa · bbb", "a, c"]


@pytest.mark.parametrize("width", [5, 8, 11, 26])
def test_names_are_shortened_in_the_middle(width: int) -> None:
    name = "abcdefghijklmnopqrstuvwxyz"
    short = shorten(name, width)
    assert len(short) == width
    head, _, tail = short.partition("..")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert shorten("abc", 5) == "abc"


def test_a_stream_of_ascii_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # as a notebook's: left alone
    make_printable()
    print("a · b … é", end="", flush=True)
    assert raw.getvalue() == b"a | b ... ?"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", errors="polylab")
