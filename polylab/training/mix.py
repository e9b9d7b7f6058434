"""`mix.csv`: how much of each task a run was to see, and has seen."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from polylab.training.files import write_atomically

COLUMNS = (
    *("task", "id", "source", "train_examples", "target_share"),
    *("examples_seen", "realised_share", "passes"),
)


def write_mix(
    path: str | os.PathLike[str], planned: Sequence[Mapping[str, Any]], seen: Mapping[str, int]
) -> None:
    """Write a row for each task in `planned`, in one step.

    Args:
        path: Usually `RUN_DIR/mix.csv`.
        planned: The first five columns (`DataModule.mix`).
        seen: Training examples of each task (`PolyModule.examples_seen`).
    """
    total = sum(seen.values())
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in planned:
        count = seen[row["task"]]
        shares = {
            "target_share": row["target_share"],
            "realised_share": count / max(1, total),
            "passes": count / row["train_examples"],
        }
        shown = {name: f"{value:.6g}" for name, value in shares.items()}
        writer.writerow({**row, "examples_seen": count, **shown})
    write_atomically(path, lambda file: file.write(out.getvalue().encode()))
