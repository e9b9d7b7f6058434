"""The other kinds of `experiments/speed/bench.py`, as small as they can be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments/speed"
SMALL = ["--shapes", "t5-tiny", "--device", "cpu", "--rounds", "2"]


def run(*arguments, code=0):
    command = [sys.executable, FOLDER / arguments[0], *map(str, arguments[1:])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def rows_of(tmp_path, kind, *arguments):
    file = tmp_path / "rows.json"
    done = run("bench.py", kind, *SMALL, *arguments, "--save", file)
    found = json.loads(file.read_text())
    assert found["command"].startswith(f"python experiments/speed/bench.py {kind} ")
    assert "--save" not in found["command"]
    for row in found["rows"]:
        assert str(row.get("contender", "")) in done.stdout
    return found["rows"]


def test_steps_are_compared_with_peft_before_they_are_timed(tmp_path):
    names = ["frozen", "peft-lora", "peft-poly", "poly", "poly-q8"]
    rows = rows_of(tmp_path, "steps", "--contenders", ",".join(names))
    assert [row["contender"] for row in rows] == names
    assert all(row["of LoRA"] > 0 for row in rows)
    lora, poly = rows[1], rows[3]
    assert lora["of LoRA"] == 1
    assert 0 < poly["gradients off"] < 1e-4
    assert rows[0]["trained M"] == 0 < lora["trained M"] < poly["trained M"]


def test_decoding_of_many_tasks_and_of_one(tmp_path):
    names = "frozen,peft-lora,peft-poly,poly"
    rows = rows_of(tmp_path, "decode", "--contenders", names, "--tokens", "5", "--prompt", "4")
    tasked = [f"{name}, {kind}" for name in ("peft-poly", "poly") for kind in ("mixed", "one task")]
    assert [row["contender"] for row in rows] == ["frozen", "peft-lora", *tasked]
    assert rows[0]["of the backbone"] == rows[1]["of LoRA"] == 1


def test_what_the_callbacks_cost(tmp_path):
    file = tmp_path / "rows.json"
    small = {"rounds": 1, "tasks": 5, "skills": 3, "blocks": 1, "width": 16, "batch": 4}
    given = [text for name, value in small.items() for text in (f"--{name}", value)]
    run("bench.py", "callbacks", "--device", "cpu", *given, "--save", file)
    *rows, total = json.loads(file.read_text())["rows"]
    assert {row["layers"] for row in rows} == {18}
    assert [row["callback"] for row in rows][:2] == ["Throughput", "RoutingStatistics"]
    assert total["callback"] == "all"
    assert total["look ms"] == pytest.approx(sum(row["look ms"] for row in rows), abs=0.1)
    for row in rows:
        share = (row["look ms"] + 250 * row["step ms"]) / (250 * row["training step ms"])
        most = 0.8 if row["callback"] == "SkillFigures" else 100  # its share of the time is bounded
        assert row["share %"] == pytest.approx(min(100 * share, most), rel=0.1, abs=0.01)
    assert total["share %"] == pytest.approx(sum(row["share %"] for row in rows), abs=0.02)
    assert all(row["look ms"] > 0 for row in rows)


def test_the_curve_in_16_bits_is_that_of_float32(tmp_path):
    figure = tmp_path / "curve.png"
    rows = rows_of(tmp_path, "curve", "--steps", "60", "--figure", figure)
    assert len(rows) == 10
    assert figure.stat().st_size > 10_000
    first, last = rows[0], rows[-1]
    assert last["float32"] < first["float32"] - 3  # it learns
    for row in rows:
        assert row["bfloat16"] == pytest.approx(row["float32"], rel=0.02)


def test_contenders_that_compute_something_else_are_not_timed(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        "import bench, polylab.poly.products as products\n"
        "compute = products._compute\n"
        "def wrong(*args):\n"
        "    hidden, outputs = compute(*args)\n"
        "    return hidden, [y * 1.5 for y in outputs]\n"
        "products._compute = wrong\n"
        f"sys.argv = ['bench.py', 'steps', *{SMALL}, '--contenders', 'peft-lora,peft-poly,poly']\n"
        "bench.main()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "poly and peft-poly do not compute the same" in done.stderr


def test_tables_of_the_readme_are_those_of_the_results():
    printed = run("tables.py").stdout
    text = (FOLDER / "README.md").read_text()
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) > 20
    assert not [line for line in lines if line not in text]
