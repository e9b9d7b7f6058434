"""`experiments/speed/scaling.py` on CPU processes, as small as it can be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCALING = Path(__file__).resolve().parents[2] / "experiments/speed/scaling.py"
# in one process: most of the time is that of the imports
SCRIPT = """
import sys
import scaling, scaling_runs

from dataclasses import replace

file = sys.argv[1]
scaling.SHAPES["t5-tiny"] = replace(scaling.SHAPES["t5-tiny"], targets=("q", "v"))

def refused(*arguments):
    sys.argv = ["scaling.py", "--device", "cpu", *arguments]
    try:
        scaling.main()
    except SystemExit as error:
        print(error, file=sys.stderr)

refused("--shape", "t5-base,bert")
refused("--strategy", "dp")
refused("--runs", "all")
refused("--devices", "0,2")
refused("--strategy", "fsdp", "--runs", "bare")
times = ["--warm-up", "1", "--steps", "4", "--log-every", "2"]
small = ["--shape", "t5_tiny", "--batch", "3", "--skills", "3", *times]
sys.argv = ["scaling.py", "--devices", "1,2", *small, "--save", file]
scaling.main()
fit = scaling_runs._fit

def broken(job, rank):
    if rank == 1:
        raise FloatingPointError("one of two")
    return fit(job, rank)

scaling_runs._fit = broken
refused("--devices", "2", *small)
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What was printed, the lines of the file, and the errors."""
    file = tmp_path_factory.mktemp("scaling") / "results" / "scaling.jsonl"
    changes = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    changes["PYTHONPATH"] = os.pathsep.join(
        [str(SCALING.parent), os.environ.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, file],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **changes},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in file.read_text().splitlines()], done.stderr


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_one_device_is_measured_before_and_after_several(measured):
    _, rows, _ = measured
    assert [(row["strategy"], row["devices"], row["run"]) for row in rows] == [
        ("single", 1, "none"),
        ("ddp", 2, "none"),
        ("ddp", 2, "default"),
        ("single", 1, "none"),
    ]
    for row in rows:
        assert row["rows"] == 3 * row["devices"]
        assert row["tokens"] == row["rows"] * (16 + 8)  # no place without a token
        assert row["steps"] == 4
        assert 0 < row["min ms"] <= row["step ms"] <= row["max ms"]
        assert row["tokens/s"] == pytest.approx(1000 * row["tokens"] / row["step ms"])
        assert len(row["allocated GiB"]) == len(row["reserved GiB"]) == row["devices"]
        assert all(0 < peak < 64 for peak in row["allocated GiB"])
        assert row["command"].startswith(
            "python experiments/speed/scaling.py --devices 1,2 --shape"
        )
        assert "--save" not in row["command"]


def test_efficiency_is_the_throughput_of_a_device_over_that_of_one_alone(measured):
    _, (before, several, default, after), _ = measured
    each = several["tokens/s"] / 2
    assert several["efficiencies"] == pytest.approx(
        [each / before["tokens/s"], each / after["tokens/s"]]
    )
    low, high = sorted(several["efficiencies"])
    assert low <= several["efficiency"] <= high
    assert not {"efficiency"} & {*before, *default, *after}  # what was not measured is not said


def test_callbacks_and_metrics_are_shares_of_the_steps(measured):
    _, (_, none, default, _), _ = measured
    assert default["step share"] == pytest.approx(default["step ms"] / none["step ms"] - 1)
    assert default["log share"] == pytest.approx(default["log ms"] / 10 / none["step ms"])
    looks = default["looks ms"]
    assert {"Progress", "Throughput", "RoutingStatistics", "SkillFigures"} <= {*looks}
    assert "RunCheckpoint" not in looks
    assert default["look ms"] == pytest.approx(sum(looks.values()))
    assert all(default[name] > 0 for name in ("look ms", "metrics ms", "checkpoint ms", "ends s"))
    look = default["look ms"] + default["metrics ms"]
    assert default["look share"] == pytest.approx(look / (250 * default["step ms"]))


def test_the_tables_show_what_is_in_the_file(measured):
    printed, rows, _ = measured
    steps, costs = (table.splitlines()[2:] for table in printed.strip().split("\n\n"))
    assert len(steps) == len(rows)
    for line, row in zip(steps, rows, strict=True):
        shown = dict(zip(("shape", "strategy", "devices", "run"), cells(line), strict=False))
        assert shown == {key: str(row[key]) for key in shown}
        efficiency = f"{row['efficiency']:.3f} (" if "efficiency" in row else "-"
        assert cells(line)[6].startswith(efficiency)
        assert cells(line)[7] == ", ".join(f"{peak:.2f}" for peak in row["allocated GiB"])
    assert [cells(line)[6] for line in costs] == [f"{rows[2]['look ms']:.0f}"]


def test_a_rank_that_fails_ends_the_measurement(measured):
    *_, errors = measured
    assert "FloatingPointError: one of two" in errors
    assert errors.endswith("rank 1 failed; its error is above\n")


@pytest.mark.parametrize(
    "message",
    [
        "--shape: no bert · valid: t5-base, t5-xl, llama-1b",
        "--strategy: no dp · valid: ddp, fsdp, fsdp+whole, single\n",
        "--runs: no all · valid: none, default, bare\n",
        "--devices 0,2: this machine has 2\n",
        "--runs bare: the bare loop knows DDP only · leave it out with fsdp\n",
    ],
)
def test_what_cannot_be_measured_is_refused(measured, message):
    *_, errors = measured
    assert message in errors
