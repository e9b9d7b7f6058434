"""The recipe of a 4-bit backbone, as a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
if "cpu" not in getattr(bnb, "supported_torch_devices", ()):
    pytest.skip("this bitsandbytes has no CPU kernels", allow_module_level=True)


def test_the_recipe_trains_on_the_cpu(
    tmp_path: Path, small: list[str], llama_folder: Path, run_here: Callable[..., Any]
) -> None:
    done = run_here(
        "experiment=qlora",
        *small,
        f"backbone.name_or_path={llama_folder}",
        "trainer.max_steps=3",
        "trainer.val_check_interval=2",  # a step follows an evaluation
        "adapter.rank_pattern={q_proj: 3}",
        "adapter.modules_to_save=[norm]",
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    config = json.loads((done.folder / "adapter" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {"q_proj": 3}
    assert config["modules_to_save"] == ["norm"]
    metrics = json.loads((done.folder / "metrics.json").read_text())
    assert metrics["test"]["loss"] > 0


def test_an_unknown_quantization_is_one_line(
    tmp_path: Path, small: list[str], run_here: Callable[..., Any]
) -> None:
    done = run_here("experiment=qlora", *small, "backbone.quantization=2bit", cwd=tmp_path)
    assert done.code != 0
    (line,) = done.err.splitlines()
    assert "backbone.quantization='2bit' is not known" in line
