"""Nodes with a `_target_`."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from polylab.config.errors import ConfigError
from polylab.config.targets import build, check_arguments, check_targets


class Inner:
    def __init__(self, size: int = 1) -> None:
        if size < 0:
            raise ValueError(f"size={size} is negative")
        self.size = size


class Outer:
    def __init__(self, inner: Inner, *, part: Any = None, other: int = 0) -> None:
        self.inner, self.part, self.other = inner, part, other


def node(**values: Any) -> Any:
    return OmegaConf.create({"_target_": f"{__name__}.{Outer.__name__}", **values})


INNER = {"_target_": f"{__name__}.{Inner.__name__}"}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())


def _this_module() -> Any:
    import types

    module = types.ModuleType(__name__)
    module.__dict__.update(Inner=Inner, Outer=Outer)
    return module


def test_parts_go_where_they_are_asked_for() -> None:
    part = object()
    made = build(node(inner=INNER), key="x", parts={"part": part, "unknown": 1})
    assert made.part is part
    assert isinstance(made.inner, Inner)


def test_what_the_node_says_wins() -> None:
    assert build(node(inner=INNER, other=5), key="x", parts={"other": 7}).other == 5


def test_a_wrong_argument_is_named_with_the_nearest() -> None:
    bad = node(inner={**INNER, "sise": 2}, othr=3)
    with pytest.raises(
        ConfigError, match=r"x\.othr: .*did you mean other.*; x\.inner\.sise: .*size"
    ):
        check_targets(bad, key="x")


def test_a_refused_value_is_one_line_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^x: size=-1 is negative$"):
        build(node(inner={**INNER, "size": -1}), key="x")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("polylab.config.suggest.nearst", r"x\._target_=.*no 'nearst' .* did you mean nearest"),
        ("polylab.nothing.at_all", r"no 'nothing' in polylab"),
        ("no_such_package.thing", r"no 'no_such_package' in this environment"),
    ],
)
def test_a_missing_target(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(OmegaConf.create({"_target_": target}), key="x")


def test_a_node_without_target() -> None:
    with pytest.raises(ConfigError, match="x has no _target_"):
        build(OmegaConf.create({"a": 1}), key="x")


def test_arguments_of_a_function() -> None:
    check_arguments(Inner, OmegaConf.create({"size": 1}), key="k")
    with pytest.raises(ConfigError, match=r"k\.siz: Inner takes no 'siz' · did you mean size\?"):
        check_arguments(Inner, OmegaConf.create({"siz": 1}), key="k")
