"""Mistakes in one line."""

import io

import pytest
import yaml
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from polylab.config.errors import ConfigError, cause_line, explain, report_errors, user_mistakes
from polylab.config.schema import TrainSchema

KEYS = ["adapter", "adapter.n_skills", "adapter.r", "data", "data.batch_size", "seed"]


def known() -> list[str]:
    return KEYS


def test_a_mistake_ends_with_one_line_and_code_1() -> None:
    stream = io.StringIO()
    with pytest.raises(SystemExit, match="1"), report_errors(stream=stream):
        raise ConfigError("a\nb")
    assert stream.getvalue() == "a · b\n"


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), report_errors():
        _ = 1 / 0
    with pytest.raises(AssertionError, match="ours"), report_errors():
        raise AssertionError("ours")


def test_the_user_may_ask_for_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigError, match="whole"), report_errors():
        raise ConfigError("whole")


def test_a_key_below_null() -> None:
    stream = io.StringIO()
    cfg = OmegaConf.structured(TrainSchema)
    with pytest.raises(SystemExit, match="1"), report_errors(stream=stream):
        OmegaConf.update(cfg, "adapter.r", 3, merge=True)
    assert stream.getvalue() == "adapter.r: adapter is null, so it has no keys\n"


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), TypeError("bad"), KeyError("bad"), OSError("bad"), ImportError("bad")],
    ids=lambda error: type(error).__name__,
)
def test_what_bad_input_raises_becomes_a_mistake(error: Exception) -> None:
    with pytest.raises(ConfigError, match=r"^data: bad$"), user_mistakes("data"):
        raise error


def test_a_prefix_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"^data\.path=x is no folder$"), user_mistakes("data"):
        raise ValueError("data.path=x is no folder")


def test_the_cause_counts_not_hydras_wrapper() -> None:
    outer = InstantiationException("Error in call to target ...")
    outer.__cause__ = ValueError("size=0\nis wrong")
    assert cause_line(outer) == "size=0 · is wrong"
    assert cause_line(ValueError()) == "ValueError"
    assert cause_line(SystemExit(143)) == "stopped by SIGTERM"


def test_unknown_key_of_a_file() -> None:
    error = ConfigCompositionException("In 'experiment/mine': ConfigKeyError raised")
    error.__cause__ = ConfigKeyError(
        "Key 'n_skils' not in 'AdapterSchema'\n    full_key: adapter.n_skils"
    )
    line = explain(error, known)
    assert line.startswith("unknown key 'adapter.n_skils' (in experiment/mine.yaml)")
    assert "did you mean adapter.n_skills? · keys of adapter: n_skills, r" in line


def test_unknown_option() -> None:
    error = MissingConfigException("...", missing_cfg_file="adapter/polly", options=["mhr", "poly"])
    expected = "adapter=polly: no such option · did you mean poly? · valid: mhr, poly"
    assert explain(error) == expected


def test_a_syntax_error_in_a_file_names_its_line() -> None:
    error = ConfigCompositionException("In 'x.yaml'")
    try:
        yaml.safe_load("a: [1\nb")
    except yaml.YAMLError as cause:
        error.__cause__ = cause
    assert "line 2" in explain(error)
    assert "\n" not in explain(error)


def test_a_plug_in_that_is_not_installed() -> None:
    error = MissingConfigException(
        message="", missing_cfg_file="hydra/launcher/joblib", options=["basic"]
    )
    assert explain(error) == (
        "hydra/launcher=joblib needs the extra `sweep` · install it with: "
        "pip install 'polylab[sweep]'"
    )
