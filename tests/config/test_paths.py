"""The folders of configurations in a checkout and in a wheel."""

from pathlib import Path

import pytest

from polylab.config.paths import config_folder


def _package(root: Path) -> Path:
    package = root / "polylab"
    package.mkdir()
    return package


def test_a_checkout_wins_over_the_package(tmp_path: Path) -> None:
    package = _package(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "conf").mkdir()
    (package / "conf").mkdir()
    assert config_folder("conf", package=package) == tmp_path / "conf"


def test_a_foreign_folder_beside_an_installed_package_is_not_ours(tmp_path: Path) -> None:
    package = _package(tmp_path)
    (tmp_path / "conf").mkdir()
    (package / "conf").mkdir()
    assert config_folder("conf", package=package) == package / "conf"


def test_a_broken_installation_says_where_it_looked(tmp_path: Path) -> None:
    package = _package(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"'conf' in {package / 'conf'} "):
        config_folder("conf", package=package)


@pytest.mark.parametrize("name", ["conf", "experiments"])
def test_this_installation_has_both(name: str) -> None:
    assert any(config_folder(name).rglob("*.yaml"))
