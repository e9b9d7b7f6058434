"""Where a run took place."""

import subprocess
from pathlib import Path

from polylab.config.environment import commit_of, describe_environment


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True)
    return done.stdout.decode().strip()


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    _git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) is None  # nothing committed yet
    (tmp_path / "a").write_text("1")
    _git(tmp_path, "add", "a")
    _git(tmp_path, "commit", "-qm", "a")
    head = _git(tmp_path, "rev-parse", "HEAD")
    assert len(head) == 40
    assert commit_of(tmp_path) == head
    (tmp_path / "b").write_text("not added")
    assert commit_of(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit_of(tmp_path) == f"{head}-dirty"


def test_the_command_can_be_typed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = describe_environment(
        device="cpu", devices=6, nodes=3, overrides=["seed=1", "adapter.priors={ibp: 0.1}"]
    )
    assert found["command"] == "python -m polylab.train seed=1 'adapter.priors={ibp: 0.1}'"
    assert (found["device"], found["devices"], found["nodes"]) == ("cpu", 6, 3)
    assert found["commit"] is None
    assert found["torch"].startswith("2.")
