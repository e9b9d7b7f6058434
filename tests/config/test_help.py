"""`--help` is quick and complete."""

import subprocess
import sys

import pytest

from polylab.config.help import ADAPT_GROUPS, EXPORT_HELP, GROUPS, help_text, options
from polylab.config.paths import config_folder

HEAVY = ("torch", "lightning", "transformers", "wandb", "datasets", "pandas", "matplotlib")


@pytest.mark.parametrize(("command", "text"), [("train", help_text()), ("export", EXPORT_HELP)])
def test_help_and_five_examples_without_heavy_imports(command: str, text: str) -> None:
    code = (
        f"import sys; sys.argv = ['polylab-{command}', '--help']\n"
        f"from polylab.{command} import main; main()\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == text
    examples = done.stdout.split("Examples\n")[1].split("\n\n")[0].splitlines()
    assert (
        len([line for line in examples if line.startswith(f"  python -m polylab.{command} ")]) == 5
    )


def test_every_group_is_listed_with_all_options() -> None:
    folders = {path.name for path in config_folder("conf").iterdir() if path.is_dir()}
    assert folders <= set(GROUPS) | set(ADAPT_GROUPS)
    lines = {line.split()[0]: line for line in help_text().splitlines() if line.startswith("  ")}
    for group in GROUPS:
        assert all(option in lines[group] for option in options(group)), group


def test_a_mistake_is_found_before_the_heavy_imports() -> None:
    code = (
        "import sys; sys.argv = ['polylab-train', 'adapter.n_skils=2']\n"
        "from polylab.train import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 1\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("unknown key 'adapter.n_skils' · did you mean adapter.n_skills?")
