"""The papers' few-shot protocols, for two steps of a tiny run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch.nn import functional as F

from polylab.training import losses


@pytest.mark.parametrize(
    ("protocol", "method", "smoothing"),
    [("crossfit", "poly", 0.0), ("t0", "z", 0.0), ("t0", "mu", 0.0), ("sni", "z", 0.1)],
)
def test_two_steps(
    trained: Callable[..., Path],
    adapt: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    method: str,
    smoothing: float,
) -> None:
    used: list[float] = []

    def cross_entropy(*args: Any, label_smoothing: float = 0.0, **options: Any) -> Any:
        used.append(label_smoothing)
        return plain(*args, label_smoothing=label_smoothing, **options)

    plain = F.cross_entropy
    monkeypatch.setattr(losses.F, "cross_entropy", cross_entropy)
    given = ["adapt.steps=2", "adapt.validate_every=2", "adapt.seeds=[0]", "adapt.tasks=[last]"]
    done = adapt(trained(), f"protocol={protocol}", f"adapt={method}", *given)
    assert done.code == 0, done.err
    assert used == [smoothing, smoothing, *[0.0] * (len(used) - 2)]  # two steps, then evaluations
    assert len(used) > 2
    config = OmegaConf.load(tmp_path / "out" / "config.yaml")
    assert config.optim.name == ("adafactor" if protocol == "t0" else "adamw")
    assert config.optim.clip == {"crossfit": None, "t0": 1.0, "sni": 0.1}[protocol]
    assert (tmp_path / "out" / "summary.json").is_file()
