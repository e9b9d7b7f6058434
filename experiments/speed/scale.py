r"""Does start-up grow with the number of examples? `data.cache`, measured.

    python experiments/speed/scale.py --examples 150000 1500000 15000000

For each number it generates 1,600 tasks in a folder, fills the cache in one process, and then opens
it in another, as every later run does: seconds until the tasks are there, and until the first
batch; memory of its own, beside pages of
mapped files; tokens per second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from input import own_process, save, table
from input_data import write_tasks

COLUMNS = (
    ("examples", "examples", "{:,}"),
    ("JSONL MB", "text_mb", "{:,.0f}"),
    ("cache MB", "cache_mb", "{:,.0f}"),
    ("filling s", "filling", "{:.0f}"),
    ("filling peak MB", "filling_mb", "{:,.0f}"),
    ("opening s", "opening", "{:.2f}"),
    ("first batch s", "first_batch", "{:.2f}"),
    ("own MB", "own_mb", "{:.0f}"),
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; save if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--examples", type=int, nargs="+", default=[150_000, 1_500_000])
    parser.add_argument("--tasks", type=int, default=1600)
    parser.add_argument("--shorter", type=float, default=4, help="texts of 60 / this words")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--folder", help="where the generated tasks and caches are or go")
    parser.add_argument("--save", help="a JSON file")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for examples in options.examples:
            folder = Path(options.folder or temporary) / str(examples)
            rows.append({"examples": examples, **_measure(folder, examples, options)})
    print(table(COLUMNS, rows))
    if options.save:
        save(Path(options.save), options, scale=rows)


def _measure(folder: Path, examples: int, options: argparse.Namespace) -> dict[str, float]:
    tasks, tokenizer = folder / "tasks", folder / "tokenizer"
    if not tasks.is_dir():
        sizes = {"tasks": options.tasks, "examples": examples, "shorter": options.shorter}
        write_tasks(tasks, **sizes, seed=0)
    if not tokenizer.is_dir():
        own_process("prepare", folder=str(tasks), tokenizer=str(tokenizer))
    given = {
        "folder": str(tasks),
        "tokenizer": str(tokenizer),
        "cache": str(folder / "cache"),
        "batch_size": options.batch_size,
    }
    filled = folder / "filled.json"  # a folder that was kept has its cache already
    if not filled.is_file():
        filled.write_text(json.dumps(own_process("cached", **given)), "utf-8")
    first, then = json.loads(filled.read_text()), own_process("cached", **given)
    return {
        "text_mb": _megabytes(tasks),
        "cache_mb": _megabytes(folder / "cache"),
        "filling": first["opening"] + first["first_batch"],
        "filling_mb": first["peak_mb"],
        **then,
    }


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


if __name__ == "__main__":
    main()
