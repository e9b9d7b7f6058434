"""What a finished run says: the scores of every task, one line of all, and where to look next."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polylab.config.files import read_json
from polylab.config.paths import path_override
from polylab.config.tracking import offline_run
from polylab.terminal.rows import WIDTH, Row, format_rows, wrap
from polylab.terminal.table import number, task_table


def split_results(values: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return `{"loss": ..., "macro": {...}}` from the logged `SPLIT/NAME`.

    For modules that keep no results of their own.
    """
    prefix = f"{split}/"
    named = {k.removeprefix(prefix): float(v) for k, v in values.items() if k.startswith(prefix)}
    loss = {"loss": named.pop("loss")} if "loss" in named else {}
    return loss | {"macro": named}


def say_outcome(folder: Path, *, commands: bool, table: bool = True) -> None:
    """Print the scores of every task, one line for the whole run, and where to look next.

    Args:
        folder: Of the run; it has its `metrics.json`.
        commands: Whether the folder is a run's, from which other commands go on.
        table: Whether to print the scores of every task.
    """
    metrics = read_json(folder / "metrics.json")
    split = _reported(metrics)
    if table and (metrics.get(split) or {}).get("tasks"):
        print(f"\n{task_table(metrics[split], title=f'{split} metrics by task')}\n")
    print(*wrap(summary_line(metrics), WIDTH - 2), sep="\n  ")
    print(format_rows(_next(folder, commands=commands)), flush=True)


def stopped_line(folder: Path, *, steps: int) -> str:
    """Return one line for a run that a signal ended: where it was, and how to go on."""
    last = folder / "checkpoints" / "last.ckpt"
    text = f"stopped by a signal after {steps:,} step{'' if steps == 1 else 's'}"
    if last.is_file():
        return f"{text} · go on with {path_override('ckpt_path', last)}"
    return f"{text}, before the first checkpoint · callbacks.checkpoint.every_n_steps saves earlier"


def summary_line(metrics: Mapping[str, Any]) -> str:
    """Return one line: the macro metrics, which weights they belong to, and the time."""
    split = _reported(metrics)
    macro = (metrics.get(split) or {}).get("macro", {})
    scores = [f"{name} {number(value)}" for name, value in sorted(macro.items())]
    recovery = (metrics.get("recovery") or {}).get("aligned")
    if recovery is not None:
        scores.append(f"recovery {number(recovery)}")
    kept = f"{split}, {metrics['checkpoint']} weights"
    without = "the loss alone" if "loss" in (metrics.get(split) or {}) else "no metrics"
    return f"{kept}: {' · '.join(scores) or without} · {metrics['seconds']:.0f} s"


def _next(folder: Path, *, commands: bool) -> Iterator[Row]:
    given = path_override("run", folder)
    yield "folder", str(folder)
    yield "all scores", shlex.quote(str(folder / "metrics.json"))
    if (folder / "figures").is_dir():
        yield "figures", shlex.quote(str(folder / "figures"))
    if commands:
        yield "report", f"python -m polylab.report {given}"
    if commands and (folder / "adapter").is_dir():
        yield "evaluate", f"python -m polylab.evaluate {given}"
    if (run := offline_run(folder)) is not None:
        yield "upload", f"wandb sync {shlex.quote(str(run))}"


def _reported(metrics: Mapping[str, Any]) -> str:
    return next((split for split in ("test", "val", "train") if metrics.get(split)), "val")
