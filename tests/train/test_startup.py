"""What a command has imported: nothing heavy until the configuration is valid, and what it uses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "transformers",
    "lightning",
    "peft",
    "bitsandbytes",
    "pandas",
    "wandb",
    "datasets",
    "pyarrow",
)
SCRIPT = """
import json, sys
from polylab.train import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
print(json.dumps([code, [name for name in json.loads(sys.stdin.read()) if name in sys.modules]]))
"""


def _imported(*overrides: str, cwd: Path) -> tuple[int, list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *overrides],
        input=json.dumps(HEAVY), capture_output=True, text=True, cwd=cwd, timeout=240, check=True,
    )  # fmt: skip
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, names, done.stderr


@pytest.mark.parametrize(
    "mistake",
    [
        "adapter.n_skils=4",
        "n_skills=4",
        "adaptr=poly",
        "adapter=mrh",
        "experiment=flan_polly",
        "adapter.r=abc",
        "adapter.r=0",
        "adapter.poly_type=polly",
        "adapter.dropout=1",
        "data.prompt=nam",
        "optim.lr=-1",
        "optim.warmup=501",
        "backbone.dtype=float23",
        "callbacks.table.max_rows=0",
        "ckpt_path=no.ckpt",
        "data.source.n_test=???",
    ],
)
def test_a_mistake_is_told_before_anything_heavy_is_imported(mistake: str, tmp_path: Path) -> None:
    code, names, line = _imported("experiment=flan_poly", mistake, cwd=tmp_path)
    assert code == 1
    assert mistake.split("=")[0].split(".")[-1] in line
    assert names == []


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    assert _imported("--help", cwd=tmp_path)[:2] == (0, [])


def test_a_whole_run_imports_no_library_that_it_does_not_use(
    small: list[str], tmp_path: Path
) -> None:
    # W&B imports pandas, wherever it is installed, to see that what is logged is no data frame
    code, names, _ = _imported(*small, "logger=csv", cwd=tmp_path)
    assert code == 0
    assert names == [*HEAVY[:3], "pyarrow"]
