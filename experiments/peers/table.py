"""`python experiments/peers/table.py`: ask both libraries everything, write the table of README.md.

The text outside the two marker lines stays as it is.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.peers.checks import (
    CHECKS,
    POLYLAB_ONLY,
    defect_of,
    question_of,
    run,
)
from experiments.peers.libraries import (
    LIBRARIES,
    Library,
    NotChecked,
    Wrong,
    open_library,
)

__all__ = [
    "COMMAND",
    "README",
    "WORKS",
    "main",
    "outcome",
    "parse",
    "render",
    "versions",
    "written",
]

README = Path(__file__).with_name("README.md")
COMMAND = "python experiments/peers/table.py"
WORKS = "works"
BEGIN = f"<!-- written by {COMMAND} -->"
END = "<!-- end of the table -->"
_SECONDS = 120  # a check takes under five
_LENGTH = 80


def outcome(name: str, lib: Library) -> str:
    """The table's text for one check on one library."""
    try:
        with _time_limit(_SECONDS):
            run(name, lib)
    except Wrong as error:
        return f"wrong: {_short(str(error))}"
    except NotChecked as error:
        return f"not checked: {error}"
    except Exception as error:
        is_missing = isinstance(error, (TypeError, AttributeError))
        if is_missing and name in POLYLAB_ONLY and lib.name != "polylab":
            return "no such feature"
        text = _short(str(error))
        return f"`{type(error).__name__}: {text}`" if text else f"`{type(error).__name__}`"
    return WORKS


def render(results: Mapping[str, Mapping[str, str]]) -> str:
    """The block between the markers, from the text of each check and library."""
    titles = [open_library(lib).title for lib in LIBRARIES]
    counts = [
        f"{sum(texts[lib] == WORKS for texts in results.values())} in {title}"
        for lib, title in zip(LIBRARIES, titles, strict=True)
    ]
    lines = [
        BEGIN,
        f"`{COMMAND}` with {versions()}, on the CPU. Of {len(results)} questions, answered by "
        f"`{WORKS}`: {', '.join(counts)}.",
        "",
        f"| defect | question | {' | '.join(titles)} |",
        "| --- | --- | --- | --- |",
    ]
    for name, texts in results.items():
        cells = [
            defect_of(name),
            question_of(name),
            *(texts[lib] for lib in LIBRARIES),
        ]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, END])


def written(text: str, block: str) -> str:
    """`text` with the block between its markers replaced.

    Raises:
        ValueError: If a marker is missing.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end:
        raise ValueError(f"{README.name} needs the lines {BEGIN!r} and {END!r}, in this order.")
    return text[:begin] + block + text[end + len(END) :]


def parse(text: str) -> list[tuple[str, ...]]:
    """The table's rows: defect, question, and a cell for each library."""
    block = text[text.find(BEGIN) : text.find(END)]
    lines = [line for line in block.splitlines() if line.startswith("| D")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [tuple(cell.strip().replace(r"\|", "|") for cell in row) for row in cells]


def versions() -> str:
    """What the texts depend on."""
    names = {"PEFT": "peft", "torch": "torch", "transformers": "transformers"}
    # without the build: 2.13.0+cpu says what 2.13.0 says
    return ", ".join(f"{title} {version(name).split('+')[0]}" for title, name in names.items())


def main() -> None:
    """Write the table."""
    libraries = [open_library(name) for name in LIBRARIES]
    results: dict[str, dict[str, str]] = {}
    for name in CHECKS:
        results[name] = {lib.name: outcome(name, lib) for lib in libraries}
        print(name, *results[name].values(), sep=" | ")
    README.write_text(written(README.read_text(encoding="utf-8"), render(results)), "utf-8")


def _short(message: str) -> str:
    """The first words of an error, the same at each run and fit for a cell."""
    line = next(iter(message.strip().splitlines()), "").replace("`", "")
    line = re.sub(r"0x[0-9a-f]+", "0x...", " ".join(line.split()))
    if len(line) <= _LENGTH:
        return line
    return line[:_LENGTH].rpartition(" ")[0] + " ..."


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread when the time is over."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    main()
