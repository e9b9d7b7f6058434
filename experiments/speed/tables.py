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


def read_scaling() -> list[dict[str, Any]]:
    """All lines of `scaling.py`, if there are some."""
    files = sorted((HERE / "results").glob("scaling*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def scaling(rows: list[dict[str, Any]]) -> list[str]:
    """Steps and memory on several GPUs, and what callbacks and metrics take there."""
    if not rows:
        return []
    heads = "shape", "strategy", "GPUs", "run", "step ms", "tokens/s", "efficiency", "GiB of each"
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [str(row[key]) for key in ("shape", "strategy", "devices", "run")]
        cells.append(f"{row['step ms']:.1f} ({row['min ms']:.1f} to {row['max ms']:.1f})")
        cells += [f"{row['tokens/s']:,.0f}", _efficiency(row), _memory(row)]
        lines.append("| " + " | ".join(cells) + " |")
    looked = [row for row in rows if "look ms" in row]
    if not looked:
        return lines
    heads = (
        *("shape", "strategy", "GPUs", "callbacks in a step %", "a log line ms", "%"),
        *("a look ms", "metrics ms", "%", "a checkpoint ms", "ends s"),
    )
    lines += ["", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    return lines + [_cost(row) for row in looked]


def _efficiency(row: dict[str, Any]) -> str:
    if "efficiency" not in row:
        return "-"
    low, high = min(row["efficiencies"]), max(row["efficiencies"])
    return f"{row['efficiency']:.3f} ({low:.3f} to {high:.3f})"


def _memory(row: dict[str, Any]) -> str:
    """Tensors and, where it is known, what the allocator holds: a pair for each device."""
    pairs = zip(row["allocated GiB"], row["reserved GiB"], strict=True)
    return ", ".join(f"{a:.2f}" if r is None else f"{a:.2f} / {r:.2f}" for a, r in pairs)


def _cost(row: dict[str, Any]) -> str:
    def share(name: str) -> str:
        return f"{100 * row[name]:.2f}" if name in row else "-"

    log = "-" if row["log ms"] is None else f"{row['log ms']:.1f}"
    cells = [row["shape"], row["strategy"], str(row["devices"]), share("step share"), log]
    cells += [share("log share"), f"{row['look ms']:.0f}", f"{row['metrics ms']:.0f}"]
    cells += [share("look share"), f"{row['checkpoint ms']:.0f}", f"{row['ends s']:.1f}"]
    return "| " + " | ".join(cells) + " |"


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
        ("several GPUs", scaling(read_scaling())),
    ):
        print(f"{title}\n", *lines, "", sep="\n")


if __name__ == "__main__":
    main()
