r"""Is the input fast enough? Start-up, tokens per second, memory and padding of the data module.

    python experiments/speed/input.py --save experiments/speed/results/input_cpu.json

generates 1,600 tasks of a million examples in a temporary folder (or in `--folder`, and reads them
there the next time), measures every setting in a process of its own, and prints two tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from input_data import write_tasks
from input_runs import RUNS

LIBRARIES = ("torch", "torchdata", "transformers", "tokenizers", "numpy")
LOADING = (
    ("workers", "workers", "{}"),
    ("grouped", "group", "{}"),
    ("read s", "read_seconds", "{:.1f}"),
    ("first batch s", "first_batch_seconds", "{:.1f}"),
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
    ("of needed", "of_needed", "{:.1f}x"),
    ("waiting", "waiting_share", "{:.1%}"),
    ("padding", "padding", "{:.1%}"),
    ("examples MB", "source_mb", "{:.0f}"),
    ("main MB", "main_mb", "{:.0f}"),
    ("private MB a worker", "worker_mb", "{}"),
)
PADDING = (
    ("data", "data", "{}"),
    ("tokens", "kind", "{}"),
    ("prompt", "prompt", "{}"),
    ("batch", "batch_size", "{}"),
    ("steps an epoch", "steps", "{}"),
    ("as drawn", "drawn", "{:.1%}"),
    ("grouped", "grouped", "{:.1%}"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; save if asked to."""
    options = parser().parse_args(arguments)
    if options.run:
        name, given = options.run
        print(json.dumps(RUNS[name](**json.loads(given))))
        return
    print(f"{cpu()} · {os.cpu_count()} cores · load {os.getloadavg()[0]:.1f}\n", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure_loading(options, folder=Path(options.folder or temporary))
    print(table(LOADING, rows), "\n", flush=True)
    padding = measure_padding(options)
    print(table(PADDING, padding) if padding else "padding of real data: not measured, no data")
    if options.save:
        save(Path(options.save), options, loading=rows, padding=padding)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    found.add_argument("--tasks", type=int, default=1600)
    found.add_argument("--examples", type=int, default=1_000_000)
    found.add_argument("--batch-size", type=int, default=64)
    found.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    found.add_argument("--group", type=int, default=500, help="data.group_by_length")
    found.add_argument("--needed", type=float, default=230_000, help="tokens per second")
    found.add_argument("--folder", help="where the generated tasks are or go")
    found.add_argument("--save", help="a JSON file")
    found.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    return found


def measure_loading(options: argparse.Namespace, *, folder: Path) -> list[dict[str, Any]]:
    """A row per number of workers, as drawn and grouped."""
    tasks, tokenizer = folder / "tasks", folder / "tokenizer"
    if not tasks.is_dir():
        write_tasks(tasks, tasks=options.tasks, examples=options.examples, seed=0)
    own_process("prepare", folder=str(tasks), tokenizer=str(tokenizer))
    rows = []
    for workers, group in itertools.product(options.workers, (0, options.group)):
        row = own_process(
            "loading",
            folder=str(tasks),
            tokenizer=str(tokenizer),
            batch_size=options.batch_size,
            workers=workers,
            group=group,
            stretch=options.group,
            needed=options.needed,
        )
        private = row["worker_private_mb"]
        row["worker_mb"] = f"{sum(private) / len(private):.0f}" if private else "-"
        row["of_needed"] = row["tokens_per_second"] / options.needed
        rows.append({"workers": workers, "group": group or "-", **row})
    return rows


def measure_padding(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two rows per real data set, tokenizer and prompt."""
    checkout = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("POLYLAB_SHARED_DATA", checkout.parent / "shared" / "data"))
    if not folder.is_dir():
        return []
    settings = itertools.product(
        ("instruction_induction", "natural_instructions"),
        ("bytes", "subwords"),
        ("none", "instruction"),
    )
    rows = []
    for data, kind, prompt in settings:
        given = {"data": data, "kind": kind, "prompt": prompt, "batch_size": options.batch_size}
        found = own_process("padding", folder=str(folder), group=options.group, **given)
        rows += [{**given, **row} for row in found]
    return rows


def own_process(name: str, **given: Any) -> Any:
    """The result of a run in a new process: its memory and caches are its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--run", name, json.dumps(given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(columns: Sequence[tuple[str, str, str]], rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, aligned."""
    cells = [[title for title, _, _ in columns]]
    cells += [[form.format(row[key]) for _, key, form in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [
        " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    return "\n".join(f"| {line} |" for line in lines)


def save(path: Path, options: argparse.Namespace, **tables: Any) -> None:
    """Write the tables with what they were measured on."""
    given = {k: v for k, v in vars(options).items() if k not in ("save", "run", "folder")}
    content = {
        "options": given,
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        **tables,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
