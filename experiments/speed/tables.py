"""The tables of the README, from `results/`: `python experiments/speed/tables.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHAPES = ("t5-base", "t5-xl", "llama-1b", "llama-8b")


def read(name: str) -> dict[str, Any] | None:
    """The results of one command, if they are there."""
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def steps(mode: str) -> list[str]:
    """Time and memory of a step, by backbone and contender."""
    found = {shape: read(f"steps_{shape}_{mode}") for shape in SHAPES}
    found = {shape: result for shape, result in found.items() if result}
    names = list(dict.fromkeys(r["contender"] for d in found.values() for r in d["rows"]))
    lines = ["| / PEFT LoRA | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    for name in names:
        cells = []
        for result in found.values():
            rows = {row["contender"]: row for row in result["rows"]}
            own, lora = rows.get(name), rows["peft-lora"]
            cells.append("-" if own is None else _step(own, lora))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def decode() -> list[str]:
    """Time of a decoded token."""
    lines = ["| backbone | contender | / PEFT LoRA | / backbone |", "| --- | --- | --- | --- |"]
    for shape in SHAPES:
        result = read(f"decode_{shape}")
        for row in result["rows"] if result else ():
            ratio = f"{row['of LoRA']:.2f} ({row['quartiles']})"
            cells = shape, row["contender"], ratio, f"{row['of the backbone']:.2f}"
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _step(own: dict[str, Any], lora: dict[str, Any]) -> str:
    text = f"{own['of LoRA']:.2f} ({own['quartiles']})"
    if own is lora or own["GiB"] is None:
        return text
    return f"{text}, {own['GiB'] / lora['GiB']:.2f}"


def main() -> None:
    """Print all."""
    for title, lines in (
        ("eager", steps("eager")),
        ("compiled", steps("compiled")),
        ("decoding", decode()),
    ):
        print(f"{title}\n", *lines, "", sep="\n")


if __name__ == "__main__":
    main()
