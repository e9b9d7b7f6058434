"""Runs of the command: as processes of their own, and quicker ones within the test process."""

import importlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Done:
    """A finished command."""

    code: int
    out: str
    err: str
    cwd: Path

    @property
    def folders(self) -> list[Path]:
        """The folders of its runs."""
        return sorted(path.parent for path in self.cwd.glob("runs/**/.hydra"))

    @property
    def folder(self) -> Path:
        """The folder of its only run."""
        (folder,) = self.folders
        return folder


@pytest.fixture(scope="session")
def small(t5_folder: Path, task_folder: Path) -> list[str]:
    """Overrides that make the main job tiny."""
    return [
        "data=jsonl",
        f"data.path={task_folder}",
        f"backbone.name_or_path={t5_folder}",
        "data.batch_size=6",
        "data.source.min_rows_to_split=10",
        "data.eval_examples_per_task=2",
        "data.test_examples_per_task=2",
        "data.max_input_length=16",
        "data.max_target_length=8",
        "module.max_new_tokens=4",
        "adapter.r=2",
        "adapter.n_skills=3",
        "trainer=cpu",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        "trainer.log_every_n_steps=1",
    ]


@pytest.fixture(scope="session")
def run_process() -> Callable[..., Done]:
    """Runs `python -m polylab.COMMAND ARGUMENTS` in a process of its own."""

    def run(*arguments: str, cwd: Path, command: str = "train", **variables: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", f"polylab.{command}", *arguments],
            cwd=cwd,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
        )
        return Done(done.returncode, done.stdout, done.stderr, cwd)

    return run


@pytest.fixture(scope="session")
def run_here() -> Callable[..., Done]:
    """Runs the command in this process, which has imported everything already."""

    def run(*arguments: str, cwd: Path, command: str = "train") -> Done:
        main = importlib.import_module(f"polylab.{command}").main
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with _restored(), redirect_stdout(out), redirect_stderr(err):
            os.chdir(cwd)
            sys.argv = [f"polylab-{command}", *arguments]
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        return Done(code, out.getvalue(), err.getvalue(), cwd)

    return run


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, small: list[str], run_here: Callable[..., Done]
) -> Callable[..., Path]:
    """Folders of tiny finished runs, by their adapter and other overrides."""
    folders: dict[tuple[str, ...], Path] = {}
    fast = ["trainer.max_steps=3", "logger=none", "callbacks=none", "optim.lr=0.3"]

    def run(adapter: str = "poly", *overrides: str) -> Path:
        key = (adapter, *overrides)
        if key not in folders:
            given = [*small, *fast, "optim.router_lr=1", f"adapter={adapter}", *overrides]
            done = run_here(*given, cwd=tmp_path_factory.mktemp(adapter))
            assert done.code == 0, done.err
            folders[key] = done.folder
        return folders[key]

    return run


@pytest.fixture(scope="session")
def new_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of 60 and 40 rows that no run has seen."""
    folder = tmp_path_factory.mktemp("new")
    for name, n in {"double": 60, "last": 40}.items():
        rows = [{"input": f"{name} {i}", "target": str(2 * i)} for i in range(n)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def few_shot(new_tasks: Path) -> list[str]:
    """Overrides that make an adaptation to them tiny."""
    return [
        *("data=jsonl", f"data.path={new_tasks}", "data.source.min_rows_to_split=10"),
        *("trainer=cpu", "adapt.steps=3", "adapt.validate_every=2", "adapt.shots=6"),
        *("adapt.validation_rows=4", "adapt.seeds=[0,5]", "data.test_examples_per_task=3"),
        *("data.eval_examples_per_task=3", "module.max_new_tokens=3"),
    ]


@pytest.fixture
def adapt(
    run_here: Callable[..., Done], few_shot: list[str], tmp_path: Path
) -> Callable[..., Done]:
    """Adapts a run in this process; the folder is `tmp_path/out` unless said otherwise."""

    def run(folder: Path, *arguments: str, out: str = "out") -> Done:
        given = [f"run={folder}", f"hydra.run.dir={tmp_path / out}", *few_shot, *arguments]
        return run_here(*given, cwd=tmp_path, command="adapt")

    return run


@pytest.fixture(scope="session")
def named(trained: Callable[..., Path]) -> Callable[..., Path]:
    """Runs whose inputs carry the name of their task."""
    return lambda adapter="poly": trained(adapter, "data.prompt=name")


@pytest.fixture
def evaluate(run_here: Callable[..., Done], tmp_path: Path) -> Callable[..., Done]:
    """Runs the command in this process; its folder is `tmp_path/out` unless said otherwise."""

    def run(folder: Path, *arguments: str, out: str = "out") -> Done:
        given = [f"run={folder}", f"hydra.run.dir={tmp_path / out}", *arguments]
        return run_here(*given, cwd=tmp_path, command="evaluate")

    return run


class _restored:
    """Undoes what a command changes in its process."""

    def __enter__(self) -> None:
        root = logging.getLogger()
        self._before = os.getcwd(), sys.argv, root.handlers[:], root.level
        # Hydra's logging closes every handler that exists; absl's then closes pytest's own stream
        self._known = logging._handlerList[:]  # pyright: ignore[reportAttributeAccessIssue]
        logging._handlerList.clear()  # pyright: ignore[reportAttributeAccessIssue]

    def __exit__(self, *_: object) -> None:
        cwd, sys.argv, handlers, level = self._before
        os.chdir(cwd)
        root = logging.getLogger()
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        logging._handlerList[:0] = self._known  # pyright: ignore[reportAttributeAccessIssue]
