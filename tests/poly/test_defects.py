"""Each defect that peers were found to have is a question, which polylab must answer by "works".

The questions are `experiments/peers`; the same are put to PEFT's Poly, for the table there.
"""

import signal
import subprocess
import sys
import threading

import pytest
import torch

from experiments.peers import checks, table
from experiments.peers.checks import CHECKS, POLYLAB_ONLY
from experiments.peers.libraries import LIBRARIES, NotChecked, Wrong, agree, open_library

pytestmark = pytest.mark.filterwarnings("ignore")  # a check's own run ignores them too

README = table.README.read_text(encoding="utf-8")
NO_LAYERS_QUESTION = {"D23"}  # counters and files of a training run


@pytest.fixture(scope="module")
def libraries():
    return {name: open_library(name) for name in LIBRARIES}


@pytest.fixture(scope="module")
def rows():
    """Row of the README by question."""
    return {row[1]: row for row in table.parse(README)}


@pytest.mark.parametrize("name", CHECKS)
def test_polylab(name):
    try:
        checks.run(name, "polylab")
    except NotChecked as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", CHECKS)
def test_peft_is_as_the_table_says(name, libraries, rows):
    if table.versions() not in README:
        pytest.skip(f"the table is not of {table.versions()}")
    found = table.outcome(name, libraries["peft"])
    if found.startswith("not checked"):
        pytest.skip(found)
    assert rows[checks.question_of(name)][2] == found


def test_the_table_has_every_question_and_polylab_answers_all(rows):
    assert [row[:2] for row in table.parse(README)] == [
        (checks.defect_of(name), checks.question_of(name)) for name in CHECKS
    ]
    for name in CHECKS:
        assert rows[checks.question_of(name)][3] == "works", name


def test_the_readme_is_as_the_table_writes_it(rows):
    results = {}
    for name in CHECKS:
        _, _, peft, polylab = rows[checks.question_of(name)]
        results[name] = {"peft": peft, "polylab": polylab}
    if table.versions() not in README:
        pytest.skip(f"the table is not of {table.versions()}")
    assert table.written(README, table.render(results)) == README


def test_every_defect_has_a_question():
    asked = {checks.defect_of(name) for name in CHECKS}
    assert asked == {f"D{number}" for number in range(1, 30)} - NO_LAYERS_QUESTION
    assert len({checks.question_of(name) for name in CHECKS}) == len(CHECKS)
    assert {*POLYLAB_ONLY} <= {*CHECKS}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, "works"),
        (Wrong("max difference 7e-01"), "wrong: max difference 7e-01"),
        (NotChecked("needs a moon"), "not checked: needs a moon"),
        (NotImplementedError(), "`NotImplementedError`"),
        (ValueError("`r` at 0x7f3a | is\nbad"), "`ValueError: r at 0x... | is`"),
        (ValueError("word " * 30), f"`ValueError: {'word ' * 16}...`"),
        (TypeError("f() got 'alpha'"), "`TypeError: f() got 'alpha'`"),
    ],
)
def test_what_a_cell_says(monkeypatch, error, text, libraries):
    name = "d19_absent_tasks"

    def check(_lib):
        if error:
            raise error

    monkeypatch.setitem(CHECKS, name, check)
    assert table.outcome(name, libraries["peft"]) == text
    assert table.outcome(name, libraries["polylab"]) == text
    check.__doc__ = "Of `a|b`."
    block = table.render({name: {"peft": text, "polylab": "works"}})
    assert table.parse(block) == [("D19", "Of `a|b`", text, "works")]


@pytest.mark.parametrize("kind", [TypeError, AttributeError])
def test_a_missing_feature_is_peft_s_alone_and_only_where_it_may_miss(monkeypatch, kind, libraries):
    def check(_lib):
        raise kind("no 'alpha'")

    for name in ("d16_alpha", "d19_absent_tasks"):
        monkeypatch.setitem(CHECKS, name, check)
    error = f"`{kind.__name__}: no 'alpha'`"
    assert table.outcome("d16_alpha", libraries["peft"]) == "no such feature"
    assert table.outcome("d16_alpha", libraries["polylab"]) == error
    assert table.outcome("d19_absent_tasks", libraries["peft"]) == error


def test_a_check_that_hangs_is_stopped(monkeypatch, libraries):
    monkeypatch.setitem(CHECKS, "d19_absent_tasks", lambda _lib: threading.Event().wait(20))
    monkeypatch.setattr(table, "_SECONDS", 1)
    text = "`TimeoutError: no answer within 1 seconds`"
    assert table.outcome("d19_absent_tasks", libraries["polylab"]) == text
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_table_needs_its_markers():
    with pytest.raises(ValueError, match=r"README.md needs the lines '<!-- written by python"):
        table.written("no markers", "block")
    begin, end = table.BEGIN, table.END
    assert table.written(f"a\n{begin}\nold\n{end}\nb", "new") == "a\nnew\nb"


def test_agree():
    agree(torch.ones(2), torch.ones(2) + 1e-6)
    with pytest.raises(Wrong, match="max difference 2e-01"):
        agree(torch.ones(2), torch.tensor([1.0, 1.2]))
    with pytest.raises(Wrong, match=r"shape \[2\] instead of \[3\]"):
        agree(torch.ones(2), torch.ones(3))
    with pytest.raises(Wrong, match="max difference nan"):
        agree(torch.tensor([float("nan")]), torch.ones(1))


def test_an_unknown_library():
    with pytest.raises(ValueError, match=r"library 'mttl' is unknown.*\['peft', 'polylab'\]"):
        open_library("mttl")


def test_the_checks_for_a_gpu_run_on_a_cpu_too():
    script = table.README.with_name("gpu.py")
    run = [sys.executable, str(script), "llama, mope"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()[1:]
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(line.endswith(": works") for line in lines) > 8
    assert all(line.endswith((": works", ": skipped (needs CUDA)")) for line in lines)
