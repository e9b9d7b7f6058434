"""README's notebook, as it stands there, on a tiny run."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

README = Path(__file__).parents[2] / "README.md"
MARK = "<!-- notebook: run by tests/train/test_notebook.py -->"


@pytest.fixture(scope="module")
def cells() -> list[str]:
    """The paragraphs of the block."""
    code = README.read_text(encoding="utf-8").split(MARK)[1]
    found = re.match(r"\n```python\n(.*?)```", code, re.DOTALL)
    assert found is not None
    return found[1].strip().split("\n\n")


def test_the_notebook(
    cells: list[str],
    named: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every line runs, and shows what it says."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown: list[Any] = []
    for cell in cells:
        for line in _statements(cell.replace('"RUN_DIR"', repr(str(named())))):
            shown.append(_run(line, names))
    kinds = (dict, Figure, list, pd.DataFrame, pd.DataFrame, Figure)
    values = [value for value in shown if value is not None]
    assert [*map(isinstance, values, kinds)] == [True] * 6
    assert len(values) == 6
    frames = [value for value in shown if isinstance(value, pd.DataFrame)]
    assert frames[0].routing.unique().tolist()[-1] == "drop:2"
    assert frames[1].shape == (3, 3)
    assert "average of all skills" in capsys.readouterr().out  # a finding
    files = {path.name for path in (tmp_path / "lora_of_one_task").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files


def _statements(cell: str) -> list[str]:
    return [ast.unparse(node) for node in ast.parse(cell).body]


def _run(statement: str, names: dict[str, Any]) -> Any:
    """Its value, as a notebook shows it, if it is an expression."""
    try:
        code = compile(statement, "README.md", "eval")
    except SyntaxError:
        exec(statement, names)
        return None
    return eval(code, names)
