"""Training on several GPUs of one host: `python experiments/speed/scaling.py --help`.

One device, several, and the one again; each a training of polylab's stack in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import results
import scaling_runs
import torch
from shapes import SHAPES
from tables import scaling as tables_of

BATCHES = {"llama-8b": 8}  # of a device, where that of `SHAPES` does not fit into 80 GB
EVERY = 250  # steps between two validations, as conf/trainer/default.yaml has it
LOG_EVERY = 10  # steps between two log lines there


def main() -> None:
    """Parse, measure, print, save."""
    options = _parser().parse_args()
    _check(options)
    rows = []
    for name in options.shape.replace("_", "-").split(","):
        for strategy in options.strategy.split(","):
            rows += measure(name, strategy, options)
    print("\n".join(tables_of(rows)))
    if options.save:
        where = results.where(options.device)
        options.save.parent.mkdir(parents=True, exist_ok=True)
        with options.save.open("a") as file:
            file.writelines(json.dumps({**row, **where}) + "\n" for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    # by NVML: a parent that has asked CUDA itself could not fork
    device = "cuda" if torch.cuda.device_count() else "cpu"
    dtype = "bfloat16" if device == "cuda" else "float32"
    parser.add_argument("--shape", default="t5-xl", help=f"some of {', '.join(SHAPES)}")
    parser.add_argument(
        "--strategy", default="ddp", help=f"some of {', '.join(scaling_runs.STRATEGIES)}"
    )
    parser.add_argument("--devices", default="1,2", help="numbers, 1 among them for efficiency")
    parser.add_argument(
        "--runs",
        default="none,default",
        help="some of none, default (the default callbacks), bare (a loop without Lightning); a "
        "device alone has no default unless it is the only number",
    )
    parser.add_argument("--batch", type=int, help="rows of each device")
    parser.add_argument("--rank", type=int, default=4, help="of the skills")
    parser.add_argument("--skills", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=3, help="steps")
    parser.add_argument("--steps", type=int, default=16, help="that are timed")
    parser.add_argument("--log-every", type=int, default=4, help="steps")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=dtype)
    parser.add_argument("--start", choices=("fork", "spawn"), default="fork", help="of processes")
    parser.add_argument("--save", type=Path, help="a JSONL file, which gets a line a measurement")
    return parser


def _check(options: argparse.Namespace) -> None:
    known = {
        "shape": (options.shape.replace("_", "-"), [*SHAPES]),
        "strategy": (options.strategy, [*scaling_runs.STRATEGIES]),
        "runs": (options.runs, [*scaling_runs.RUNS]),
    }
    for name, (given, valid) in known.items():
        wrong = [item for item in given.split(",") if item not in valid]
        if wrong:
            raise SystemExit(f"--{name}: no {', '.join(wrong)} · valid: {', '.join(valid)}")
    numbers = [int(number) for number in options.devices.split(",")]
    most = torch.cuda.device_count() if options.device == "cuda" else max(numbers)
    if not all(1 <= number <= most for number in numbers):
        raise SystemExit(f"--devices {options.devices}: this machine has {most}")
    if "bare" in options.runs and "fsdp" in options.strategy:
        raise SystemExit("--runs bare: the bare loop knows DDP only · leave it out with fsdp")


def measure(name: str, strategy: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one shape and strategy: alone, on each number of devices, alone again."""
    numbers = [1] if strategy == "single" else [int(n) for n in options.devices.split(",")]
    many = [number for number in numbers if number > 1]
    order = [1, *many, 1] if many and 1 in numbers else numbers
    reports = []
    for number in order:
        for run in options.runs.split(","):
            if number == 1 and run == "default" and many:
                continue
            job = _job(name, strategy, number, run, options)
            reports.append((job, _run(job, start=options.start)))
    rows = [_row(job, ranks) for job, ranks in reports]
    for row in rows:
        row |= _compared(row, rows)
    return rows


def _job(
    name: str, strategy: str, devices: int, run: str, options: argparse.Namespace
) -> scaling_runs.Job:
    shape = SHAPES[name]
    batch = options.batch or BATCHES.get(name, shape.batch)
    return scaling_runs.Job(
        shape=replace(shape, batch=batch),
        strategy=strategy,
        devices=devices,
        run=run,
        device=options.device,
        dtype=options.dtype,
        r=options.rank,
        n_skills=options.skills,
        warm_up=options.warm_up,
        steps=options.steps,
        log_every=options.log_every,
        folder="",
        port=0,
    )


def _run(job: scaling_runs.Job, *, start: str) -> list[dict[str, Any]]:
    """Reports of all ranks, each a process that inherits this one's environment as it is.

    Raises:
        SystemExit: If one of them fails; the others are ended.
    """
    context = multiprocessing.get_context(start)
    ranks, receivers = [], []
    with tempfile.TemporaryDirectory() as folder:
        job = replace(job, folder=folder, port=_free_port())
        try:
            for rank in range(job.devices):
                receiver, sender = context.Pipe(duplex=False)
                arguments = (job, rank, sender)
                process = context.Process(  # type: ignore[attr-defined]
                    target=scaling_runs.run_rank, args=arguments, daemon=True
                )
                process.start()
                sender.close()
                ranks.append(process)
                receivers.append(receiver)
            reports = _receive(receivers)
            for process in ranks:
                process.join(timeout=60)
        finally:
            for process in ranks:
                process.kill()
                process.join()
    return reports


def _receive(receivers: Sequence[Connection]) -> list[dict[str, Any]]:
    """What each rank sends, in the order of the ranks, as soon as the last one has sent it."""
    waiting, found = [*receivers], []
    while waiting:
        for receiver in wait(waiting):
            assert isinstance(receiver, Connection)
            waiting.remove(receiver)
            try:
                found.append(receiver.recv())
            except EOFError:
                rank = receivers.index(receiver)
                raise SystemExit(f"rank {rank} failed; its error is above") from None
    return sorted(found, key=lambda report: report["rank"])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _row(job: scaling_runs.Job, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One measurement; times are the first rank's, which waits for the others in every step."""
    first, tokens = ranks[0], sum(report["tokens"] for report in ranks)
    seconds = first["seconds"]
    step = statistics.median(seconds)
    row = {
        "shape": job.shape.name,
        "strategy": "single" if job.devices == 1 else job.strategy,
        "devices": job.devices,
        "run": job.run,
        "rows": job.shape.batch * job.devices,
        "tokens": tokens,
        "steps": len(seconds),
        "step ms": 1000 * step,
        "min ms": 1000 * min(seconds),
        "max ms": 1000 * max(seconds),
        "tokens/s": tokens / step,
        "log ms": _log_ms(first),
    }
    for name in ranks[0]["memory"]:
        row[f"{name} GiB"] = [report["memory"][name] for report in ranks]
    return row | (_look(ranks, step=step) if job.run == "default" else {})


def _log_ms(report: dict[str, Any]) -> float | None:
    """What a step with a log line takes more than one without, by their medians."""
    parts = {True: [], False: []}
    for second, logs in zip(report["seconds"], report["logs"], strict=True):
        parts[logs].append(second)
    if not (parts[True] and parts[False]):
        return None
    return 1000 * (statistics.median(parts[True]) - statistics.median(parts[False]))


def _look(ranks: list[dict[str, Any]], *, step: float) -> dict[str, Any]:
    """Of the first rank what each callback's hooks take at a validation; and the metrics.

    The metrics are those of the rank that came last, and so waited for no other one.
    """
    hooks = ranks[0]["hooks"]
    looks = {}
    for name in ranks[0]["callbacks"]:
        own = f"[Callback]{name}.on_validation_"
        at = ("start", "epoch_start", "epoch_end", "end")
        looks[name.partition("{")[0]] = 1000 * sum(hooks.get(own + hook, 0) for hook in at)
    metrics = min(
        seconds
        for report in ranks
        for name, seconds in report["hooks"].items()
        if name.startswith("[LightningModule]") and name.endswith(".on_validation_epoch_end")
    )
    ends = sum(
        seconds
        for hook, seconds in hooks.items()
        if hook.startswith("[Callback]") and hook.endswith((".on_train_start", ".on_train_end"))
    )
    saved = looks.pop("RunCheckpoint", 0.0)
    every = 1000 * EVERY * step
    return {
        "looks ms": looks,
        "look ms": sum(looks.values()),
        "checkpoint ms": saved,
        "metrics ms": 1000 * metrics,
        "ends s": ends,
        "look share": (sum(looks.values()) + 1000 * metrics) / every,
    }


def _compared(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """With one device of the same run, and with the same devices without callbacks."""
    alone = [r["tokens/s"] for r in rows if r["devices"] == 1 and r["run"] == row["run"]]
    bare = [r for r in rows if r["devices"] == row["devices"] and r["run"] == "none"]
    found: dict[str, Any] = {}
    if row["devices"] > 1 and alone:
        each = row["tokens/s"] / row["devices"]
        found["efficiency"] = each / statistics.mean(alone)
        found["efficiencies"] = [each / one for one in alone]  # by the run before, and after
    if row["run"] == "default" and bare:
        plain = statistics.mean(r["step ms"] for r in bare)
        logged = (row["log ms"] or 0.0) / LOG_EVERY
        found["step share"] = (row["step ms"] - plain) / plain
        found["log share"] = logged / plain
    return found


if __name__ == "__main__":
    main()
