"""What recipes hold beside settings."""

from pathlib import Path

import yaml

from polylab.data.mixture import MixtureSource
from polylab.data.tasks import skill_matrix

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


def test_the_true_skills_are_those_of_the_mixture():
    recipe = yaml.safe_load((EXPERIMENTS / "true_skills.yaml").read_text(encoding="utf-8"))
    tasks = MixtureSource(tasks="train", size=0.05)()
    assert tasks.skills is not None
    truth, _ = skill_matrix(tasks.skills, tasks.names)
    assert recipe["adapter"]["allocation"] == truth.int().tolist()
