"""What the page of a folder holds, and what is said about what it lacks."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polylab.poly.alignment import align_skills, aligned_mean, apply_alignment
from polylab.reporting import allocation, build_page, page_contents, series
from polylab.reporting.packing import evenly, pack
from tests.reporting.fabricate import (
    allocations,
    names,
    write_interventions,
    write_look,
    write_run,
    write_sweep,
    write_table,
)


def unpacked(text: str, bits: int) -> np.ndarray:
    kind = "<u2" if bits == 16 else "<u1"
    return np.frombuffer(base64.b64decode(text), kind) / (2**bits - 1)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A run of 5 tasks, 2 heads, 4 skills, 3 layers."""
    return tmp_path / "run", write_run(tmp_path / "run", tasks=names(5))


def test_every_layer_head_and_mean_is_in_the_page(run: tuple[Path, dict[str, Any]]) -> None:
    found = page_contents(run[0])["allocation"]
    weights = {k: torch.tensor(w.astype(np.float16)).float() for k, w in run[1]["weights"].items()}
    aligned = apply_alignment(weights, align_skills(weights))
    heads = [torch.stack([w[:, q] for w in aligned.values()]).mean(0) for q in range(2)]
    expected = [aligned_mean(weights)[0], *heads, *weights.values()]
    packed = unpacked(found["looks"][-1]["weights"], found["bits"])
    whole = np.concatenate([part.flatten().numpy() for part in expected])
    np.testing.assert_allclose(packed, whole, atol=1e-5)
    assert [look["step"] for look in found["looks"]] == [0, 50, 100]
    assert (found["bits"], found["heads"], found["splits"]) == (16, 2, [2, 2, 2])
    assert found["words"] == []


def test_a_column_is_the_same_skill_at_every_step(run: tuple[Path, dict[str, Any]]) -> None:
    found = page_contents(run[0])["allocation"]
    weights = {k: torch.tensor(w) for k, w in run[1]["weights"].items()}
    perms = align_skills(weights)
    assert found["perms"] == [perms[name].tolist() for name in found["layers"]]
    first, _ = allocations(
        np.random.default_rng(0), tasks=5, heads=2, skills=4, layers=3, sharpness=0.1
    )
    start = {k: torch.tensor(w) for k, w in first.items()}
    mean = torch.cat([*apply_alignment(start, perms).values()], dim=1).mean(1)
    packed = unpacked(found["looks"][0]["weights"], 16)[:20]
    np.testing.assert_allclose(packed, mean.flatten().numpy(), atol=1e-3)


def test_too_much_for_a_page_is_thinned_and_said(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, gates = run[1]["weights"], run[1]["gates"]
    for step in range(150, 500, 50):  # 10 looks of 40 cells x (3 means + 3 layers x 2 heads)
        tag = f"step{step:06d}"
        write_look(run[0], tag, step=step, tasks=names(5), weights=weights, gates=gates)
    monkeypatch.setattr(allocation, "CELLS", 1000)
    monkeypatch.setattr(allocation, "FINE_CELLS", 100)
    found = page_contents(run[0])["allocation"]
    assert found["words"] == [
        "This page holds 2 of 3 layers, evenly spaced; the aligned mean is over all of them.",
        "This page holds 3 of 10 looks, evenly spaced.",
        "Values are rounded to 1/255.",
    ]
    assert [look["step"] for look in found["looks"]] == [0, 200, 450]
    assert (len(found["layers"]), found["bits"]) == (2, 8)
    assert sum(len(unpacked(one["weights"], 8)) for one in found["looks"]) == 3 * 20 * (3 + 4)


def test_a_run_without_allocations_shows_its_table_and_says_so(
    run: tuple[Path, dict[str, Any]],
) -> None:
    shutil.rmtree(run[0] / "allocations")
    rows = [
        {"layer": layer, "split": q, "task": names(5)[t], "skill": k,
         "weight": f"{w[t, q, k]:.6g}", "gate": ""}
        for layer, w in run[1]["weights"].items()
        for t in range(5) for q in range(2) for k in range(4)
    ]  # fmt: skip
    write_table(run[0] / "skills.csv", rows)
    contents = page_contents(run[0])
    assert contents["notes"] == [
        "there is no allocations/ to read, so the map shows skills.csv: the end of the run only, "
        "without earlier steps"
    ]
    found = contents["allocation"]
    layers = unpacked(found["looks"][0]["weights"], 16)[60:]
    whole = np.concatenate([w.flatten() for w in run[1]["weights"].values()])
    np.testing.assert_allclose(layers, whole, atol=1e-5)
    assert (found["looks"][0]["step"], found["gated"]) == (None, False)


def test_looks_at_the_layers_are_thinned_and_said(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "LOOKS", 2)
    found = page_contents(run[0])["routing"]
    assert found["steps"] == [0, 100]
    assert found["words"] == ["This page holds 2 of 3 looks, evenly spaced."]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("q,0,a,0,1,\nq,0,a,1,0,\nq,0,b,0,1,\n",
         "layer q has 3 cells; 2 tasks x 1 heads x 2 skills make 4"),
        ("q,0,a,0,nan,\n", "layer q has a weight that is no number"),
        ("", "it has no rows"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_whole_is_left_out(tmp_path: Path, rows: str, why: str) -> None:
    (tmp_path / "skills.csv").write_text(f"layer,split,task,skill,weight,gate\n{rows}")
    contents = page_contents(tmp_path)
    assert contents["allocation"] is None
    assert contents["notes"] == [f"skills.csv cannot be read, and is left out: {why}"]


def test_tasks_of_a_long_chain_are_ordered(tmp_path: Path) -> None:
    # each task joins all before it: as deep a tree as there can be
    n = 1500
    share = np.cumsum(np.linspace(1e-4, 5e-4, n))
    w = np.stack([share, 1 - share], axis=-1)[:, None]
    write_run(tmp_path, tasks=names(n), heads=1, layers=1, skills=2, steps=[0])
    write_look(tmp_path, "step000000", step=0, tasks=names(n), weights={"q": w}, gates={})
    tree = page_contents(tmp_path)["allocation"]["tree"]
    assert sorted(tree["order"]) == list(range(n))
    assert len(tree["merges"]) == n - 1


def test_tasks_that_are_routed_alike_have_no_tree(tmp_path: Path) -> None:
    write_run(tmp_path, tasks=names(4), steps=[0])
    alike = {"q": np.full((4, 2, 3), 1 / 3)}
    write_look(tmp_path, "step000000", step=0, tasks=names(4), weights=alike, gates={})
    found = page_contents(tmp_path)["allocation"]
    assert found["tree"] == {"order": [0, 1, 2, 3], "merges": []}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("metrics.json", '{"test": {"macro"', "metrics.json cannot be read, and is left out: "),
        ("metrics.json", "[1]", "metrics.json cannot be read, and is left out: it holds a list"),
        ("config.yaml", "a: [", "config.yaml cannot be read, and is left out: "),
        ("config.yaml", "text", "config.yaml cannot be read, and is left out: it holds a str"),
        ("environment.json", "\udcff", "environment.json cannot be read, and is left out: "),
        ("routing.csv", "step,layer\n1,2,3\n", "routing.csv cannot be read, and is left out: line"),
        ("routing.csv", "\n", "routing.csv cannot be read, and is left out: it has no header"),
        ("routing.csv", "step,layer\n1,2\n", "routing.csv has no column split, and is left out"),
        ("history.jsonl", "a\nb\n", "history.jsonl cannot be read, and is left out: none of its 2"),
        ("allocations/step000100.safetensors", "torn", "allocations/step000100.safetensors cannot"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_and_the_rest_is_shown(
    run: tuple[Path, dict[str, Any]], name: str, text: str, why: str
) -> None:
    (run[0] / name).write_bytes(text.encode(errors="surrogateescape"))
    contents = page_contents(run[0])
    assert len(contents["notes"]) == 1
    assert contents["notes"][0].startswith(why)
    assert len(contents["allocation"]["looks"]) == (2 if "safetensors" in name else 3)
    build_page(contents)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"q": np.zeros((5, 4))}, r"weights/q has shape [5, 4] and there are 5 tasks"),
        ({"q": np.zeros((3, 1, 4))}, r"weights/q has shape [3, 1, 4] and there are 5 tasks"),
        ({}, "it has no weights/LAYER"),
    ],
)
def test_a_look_of_wrong_shape_is_left_out(
    run: tuple[Path, dict[str, Any]], tensors: dict[str, np.ndarray], why: str
) -> None:
    write_look(run[0], "step000100", step=100, tasks=names(5), weights=tensors, gates={})
    contents = page_contents(run[0])
    assert contents["notes"][0].startswith("allocations/step000100.safetensors cannot be read")
    assert why in contents["notes"][0]


def test_a_look_at_other_tasks_is_left_out(run: tuple[Path, dict[str, Any]]) -> None:
    other = {name: w[:4] for name, w in run[1]["weights"].items()}
    write_look(run[0], "step000050", step=50, tasks=names(4), weights=other, gates={})
    contents = page_contents(run[0])
    why = "allocations/step000050.safetensors has other tasks or layers, and is left out"
    assert contents["notes"] == [why]


def test_torn_lines_are_left_out(run: tuple[Path, dict[str, Any]]) -> None:
    with (run[0] / "history.jsonl").open("a") as file:
        file.write('{"step": 110, "train/lo')
    with (run[0] / "routing.csv").open("a") as file:
        file.write("150,enc")
    contents = page_contents(run[0])
    assert contents["notes"] == []
    series = {name: (steps, values) for name, steps, values in contents["history"]["series"]}
    assert series["train/loss"][0] == [*range(10, 101, 10)]
    assert series["val/loss"][0] == [50, 100]
    assert contents["routing"]["steps"] == [0, 50, 100]
    assert contents["routing"]["layers"][0] == ""


def test_steps_that_were_run_twice_count_once(run: tuple[Path, dict[str, Any]]) -> None:
    """A run that was killed went on from a checkpoint that lay behind its last line."""
    with (run[0] / "history.jsonl").open("a") as file:
        file.write('{"step": 75, "train/loss": 0.25}\n{"step": 85, "train/loss": 0.125}\n')
    contents = page_contents(run[0])
    series = {name: (steps, values) for name, steps, values in contents["history"]["series"]}
    assert series["train/loss"][0] == [10, 20, 30, 40, 50, 60, 70, 75, 85]
    assert series["train/loss"][1][-2:] == [0.25, 0.125]
    assert series["val/loss"][0] == [50, 100]


def test_weights_beyond_one_are_refused(run: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"values lie in 0 to 1\.5; they must lie in 0 to 1"):
        pack(np.array([0, 1.5]), bits=8)
    wrong = {name: 2 * w + 1 for name, w in run[1]["weights"].items()}
    write_look(run[0], "step000100", step=100, tasks=names(5), weights=wrong, gates={})
    contents = page_contents(run[0])
    assert contents["allocation"] is None
    assert contents["notes"][0].startswith("the allocations cannot be drawn: values lie in 0 to")


def test_a_run_that_goes_on_is_said_to(run: tuple[Path, dict[str, Any]]) -> None:
    (run[0] / "metrics.json").unlink()
    contents = page_contents(run[0])
    why = "there is no metrics.json: the run is not finished, or was stopped"
    assert contents["notes"] == [why]
    assert contents["scores"] == contents["headline"] == []


def test_evenly() -> None:
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(9, 3) == [0, 4, 8]


def test_an_evaluation_shows_its_knockout(tmp_path: Path) -> None:
    write_interventions(tmp_path, tasks=names(3), skills=2)
    contents = page_contents(tmp_path)
    assert contents["kind"] == "evaluation"
    assert contents["knockout"]["columns"] == ["task", "skill", "metric", "change", "allocation"]
    assert contents["knockout"]["intervals"][0] == [None, None, None, [-0.3, 0.1], None]
    assert contents["interventions"]["intervals"][0][2:] == [[0.6, 0.8], None]
    assert contents["findings"] == ["The routing is used.", "Skill 1 is not."]


def test_an_adaptation_shows_its_rows(tmp_path: Path) -> None:
    row = {"task": "7", "method": "z", "shots": 16, "seed": 0, "exact_match": 0.5, "parameters": 3}
    write_table(tmp_path / "results.csv", [row, {**row, "seed": 1, "exact_match": ""}])
    contents = page_contents(tmp_path)
    assert contents["kind"] == "adaptation"
    assert contents["rows"] == [["7", "z", 16, 0, 0.5, 3], ["7", "z", 16, 1, None, 3]]


def test_a_sweep_puts_first_what_differs(tmp_path: Path) -> None:
    write_sweep(tmp_path, jobs=5, tasks=names(6), failed=[3])
    contents = page_contents(tmp_path)
    assert contents["columns"][:5] == ["job", "folder", "status", "adapter.n_skills", "optim.lr"]
    assert contents["columns"][-3:] == ["trainable_parameters", "commit", "started"]
    assert contents["notes"] == ["1 of 5 job folders are not there: 003"]
    assert dict(contents["facts"])["not completed"] == 1
    groups = {one["skills"]: sorted(one["runs"]) for one in contents["maps"]["groups"]}
    assert groups == {3: ["0", "2", "4"], 4: ["1"]}
    assert all(sorted(one["order"]) == [*range(6)] for one in contents["maps"]["groups"])
    differ = {key for key, _ in contents["config"]["differ"]}
    assert differ == {"seed", "adapter.n_skills"}
    assert ["torch", "2.9.0"] in contents["environment"]["same"]


def test_skills_of_runs_are_matched(tmp_path: Path) -> None:
    write_sweep(tmp_path, jobs=3, tasks=names(6))
    shutil.rmtree(tmp_path / "002" / "allocations")
    weights, _ = allocations(
        np.random.default_rng(0), tasks=6, heads=2, skills=3, layers=2, sharpness=2.6
    )
    turned = {name: w[..., [2, 0, 1]] for name, w in weights.items()}
    write_look(tmp_path / "002", "best", step=9, tasks=names(6), weights=turned, gates={})
    (group,) = [one for one in page_contents(tmp_path)["maps"]["groups"] if one["skills"] == 3]
    assert group["runs"]["0"] == group["runs"]["2"]
    assert group["agreement"] == 1


def test_a_job_whose_name_has_a_slash_is_read(tmp_path: Path) -> None:
    """Hydra makes such names of overrides."""
    write_sweep(tmp_path, jobs=1, tasks=names(3))
    (tmp_path / "data=a").mkdir()
    shutil.move(tmp_path / "000", tmp_path / "data=a" / "b")
    table = (tmp_path / "results.csv").read_text().replace(",000,", ",data=a/b,")
    (tmp_path / "results.csv").write_text(table)
    contents = page_contents(tmp_path)
    assert [sorted(one["runs"]) for one in contents["maps"]["groups"]] == [["0"]]
    assert contents["curves"][0]
    assert contents["notes"] == []


def test_a_job_outside_the_sweep_is_not_read(tmp_path: Path) -> None:
    write_run(tmp_path / "secret", tasks=names(3))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    row = {"job": 0, "folder": "../secret", "status": "completed", "seed": 1, "error": ""}
    write_table(sweep / "results.csv", [row])
    assert page_contents(sweep)["maps"]["groups"] == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,b\n1,2\n", "has columns a, b · a sweep's has job, folder, status"),
        ("job,folder,status\n", "has nothing to show: it has no rows"),
        ("job,folder\n1\n", "has nothing to show: results.csv cannot be read, and is left out"),
    ],
)
def test_a_table_of_nothing_known_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=why):
        page_contents(tmp_path)


def test_a_folder_with_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to show in it · give a folder with one of met"):
        page_contents(tmp_path)
    with pytest.raises(ValueError, match=r"run=.*/none: there is no such folder"):
        page_contents(tmp_path / "none")


def test_the_data_cannot_end_their_element(tmp_path: Path) -> None:
    write_run(tmp_path, tasks=["</script><b>x", "@STYLE@", "<!--"], steps=[0])
    page = build_page(page_contents(tmp_path))
    data = page.split('id="contents">')[1].split("</script>")[0]
    assert "<" not in data
    assert json.loads(data)["allocation"]["tasks"] == ["</script><b>x", "@STYLE@", "<!--"]
    assert page.count("</script>") == 2


@pytest.mark.parametrize(
    ("commit", "shown"),
    [("0123456789abcdef", "0123456789ab"), ("0123456789abcdef-dirty", "0123456789ab-dirty")],
)
def test_a_commit_with_changes_is_told_apart(tmp_path: Path, commit: str, shown: str) -> None:
    write_run(tmp_path, tasks=names(3))
    file = tmp_path / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "commit": commit}))
    assert ["commit", shown] in page_contents(tmp_path)["facts"]
