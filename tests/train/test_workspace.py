"""The command that saves a view in W&B: one line for every mistake."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_without_a_key_or_the_extra_one_line(
    run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = run_here("project=polylab", cwd=tmp_path, command="workspace")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("W&B has no credentials, and a view is kept by its server · run `wa")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    done = run_here("project=polylab", cwd=tmp_path, command="workspace")
    assert (done.code, done.err) == (
        1, "wandb-workspaces is not installed · pip install 'polylab[view]'\n",
    )  # fmt: skip
    done = run_here("projekt=polylab", cwd=tmp_path, command="workspace")
    assert done.code == 1
    assert "did you mean project?" in done.err


def test_a_server_that_refuses_is_one_line(
    run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("project not found\nwith details")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", object())
    monkeypatch.setattr("polylab.tracking.panels.build_workspace", refuse)
    done = run_here("project=p", "entity=e", cwd=tmp_path, command="workspace")
    assert done.code == 1
    assert done.err == (
        "W&B did not save the view of e/p: project not found · with details · check project=, "
        "entity=, the key and the network\n"
    )
