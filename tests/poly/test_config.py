"""`PolyConfig`: defaults, and every problem named at once."""

import json

import pytest

from polylab import PolyConfig, TaskType


def test_defaults_are_pefts_and_ours_keep_its_function():
    config = PolyConfig()
    pefts = (config.r, config.n_tasks, config.n_skills, config.n_splits, config.poly_type)
    assert pefts == (8, 1, 4, 1, "poly")
    ours = (config.alpha, config.init, config.noise, config.noise_source, config.temperature)
    assert ours == (1.0, "peft", "relaxed_bernoulli", "global", 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 0}, "r=0 is not valid: give an integer of at least 1"),
        ({"r": 2.5}, r"r=2.5 is not valid"),
        ({"n_tasks": 0}, "n_tasks=0 is not valid"),
        ({"n_skills": -2}, "n_skills=-2 is not valid"),
        ({"n_splits": 0}, "n_splits=0 is not valid"),
        ({"n_splits": True}, "n_splits=True is not valid"),
        ({"alpha": 0}, "alpha=0 is not valid: give a number above 0"),
        ({"alpha": "16"}, "alpha='16' is not valid"),
        ({"temperature": float("inf")}, "temperature=inf is not valid"),
        ({"temperature": float("nan")}, "temperature=nan is not valid"),
        (
            {"poly_type": "pol"},
            r"poly_type='pol' is not valid: .*'poly', 'c-poly', 'mope', 'shared'",
        ),
        ({"init": "zeros"}, r"init='zeros' is not valid: give one of \['peft', 'mttl'\]"),
        ({"noise": True}, r"noise=True is not valid"),
        ({"noise_source": "step"}, r"noise_source='step' is not valid"),
        ({"router_input": "keys"}, r"router_input='keys' is not valid.*'layer', 'embeddings'"),
        ({"task_type": "SEQ"}, r"task_type='SEQ' is not valid.*SEQ_2_SEQ_LM"),
        ({"target_modules": []}, r"target_modules=\[\] is empty"),
        ({"target_modules": ""}, r"target_modules='' is empty"),
        ({"modules_to_save": "lm_head"}, r"modules_to_save='lm_head' is a string: give a list"),
        ({"layers_to_transform": [0, -1]}, r"layers_to_transform has -1: give numbers of layers"),
        ({"layers_to_transform": "1"}, r"layers_to_transform has '1'"),
        ({"layers_to_transform": []}, r"layers_to_transform=\[\] is empty"),
        (
            {"layers_to_transform": 1, "target_modules": ".*q"},
            r"layers_to_transform=1 goes with a list of target_modules, not with .* '\.\*q'",
        ),
        ({"layers_pattern": "block"}, "layers_pattern='block' needs layers_to_transform"),
        (
            {"layers_pattern": ["ok", "("], "layers_to_transform": 0},
            r"layers_pattern has '\(', which is no regular expression",
        ),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\]=0 is not valid: give an integer of at"),
        ({"rank_pattern": {"q)": 2}}, r"rank_pattern has 'q\)', which is no regular expression"),
        ({"alpha_pattern": {"q": "2"}}, r"alpha_pattern\['q'\]='2' is not valid: give a number"),
        ({"alpha_pattern": {3: 2}}, "alpha_pattern has 3, which is no regular expression"),
        ({"use_rslora": 1}, "use_rslora=1 is not valid: give true or false"),
        ({"n_tasks": 3, "task_names": ["a", "b"]}, "task_names has 2 names, but n_tasks=3"),
        ({"n_tasks": 3, "task_names": ["a", "b", "a"]}, r"task_names has \['a'\] more than once"),
    ],
)
def test_wrong_values(values, message):
    with pytest.raises(ValueError, match=message):
        PolyConfig(**values)


def test_all_problems_are_shown_together():
    with pytest.raises(ValueError, match=r"(?s)r=0.*n_skills=0.*noise='no'"):
        PolyConfig(r=0, n_skills=0, noise="no")


def test_number_of_skills_follows_from_the_type():
    values = {"n_tasks": 7, "n_skills": 3}
    counts = {kind: PolyConfig(**values, poly_type=kind).bank_size for kind in KINDS}
    assert counts == {"poly": 3, "mope": 3, "shared": 1, "private": 7}


KINDS = ["poly", "mope", "shared", "private"]


def test_plain_values_survive_json():
    config = PolyConfig(target_modules={"v", "q"}, task_type=TaskType.CAUSAL_LM, task_names=("a",))
    assert config.target_modules == ["q", "v"]
    assert config.task_type == "CAUSAL_LM"
    assert PolyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_layers_are_plain_values():
    config = PolyConfig(layers_to_transform=(0, 2), layers_pattern=("h", "block"))
    assert (config.layers_to_transform, config.layers_pattern) == ([0, 2], ["h", "block"])
    assert PolyConfig(rank_pattern=None, alpha_pattern=None) == PolyConfig()
    PolyConfig(layers_to_transform=1, target_modules="all-linear")  # no regular expression


def test_unknown_keys_of_a_file():
    assert PolyConfig.from_dict({"r": 3, "new_option": None}) == PolyConfig(r=3)
    with pytest.raises(ValueError, match=r"unknown adapter options \{'new_option': 2\}"):
        PolyConfig.from_dict({"new_option": 2})
