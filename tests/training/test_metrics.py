"""Text metrics against their references, and means that are right on any number of ranks."""

import itertools
import random
import string

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import multiprocessing

from polylab.training.metrics import PerTaskMean, exact_match, normalise, rouge_l, token_f1

WORDS = ["the", "The", "cat", "sat", "on", "a", "mat", "3.5", "x-y", "don't", "...", "été", "Cat's"]


@pytest.mark.parametrize(
    ("prediction", "reference", "equal"),
    [
        (" yes\n", "yes", True),
        ("two  words", "two\nwords", True),
        ("15.0", "15", True),
        ("-0.50", "-0.5", True),
        ("0.00", "0", True),
        ("100", "1e2", False),
        ("007", "7", False),
        ("15.0 apples", "15 apples", False),
        ("Yes", "yes", False),
        ("yes.", "yes", False),
        ("e\u0301", "\u00e9", True),
        ("\u00a0a", "a", True),
        ("", "", True),
        ("1" * 29 + ".0", "1" * 29, False),
    ],
)
def test_exact_match_compares_normalised_answers(prediction, reference, equal):
    assert exact_match(prediction, [reference]) == float(equal)


def test_normalise_is_idempotent():
    for text in ("  a  b ", "15.0", "-0", "1000", "x\u00a0y", "e\u0301"):
        assert normalise(normalise(text)) == normalise(text)


def test_any_reference_counts():
    assert exact_match("b", ["a", "b", "c"]) == 1.0
    assert exact_match("d", ["a", "b", "c"]) == 0.0
    assert rouge_l("the cat", ["a dog", "the cat", "the"]) == 1.0
    assert exact_match("a", []) == rouge_l("a", []) == 0.0


def test_rouge_l_equals_googles():
    google = RougeScorer(["rougeL"], use_stemmer=False)
    draw = random.Random(0)
    for _ in range(300):
        a, b = (" ".join(draw.choices(WORDS, k=draw.randrange(9))) for _ in range(2))
        assert rouge_l(a, [b]) == pytest.approx(google.score(b, a)["rougeL"].fmeasure, abs=1e-12)


def test_a_mean_per_task_ignores_how_the_samples_were_batched():
    draw = torch.Generator().manual_seed(0)
    tasks = torch.randint(0, 3, (17,), generator=draw)
    values = torch.rand(17, generator=draw)
    for size in (1, 5, 17):
        mean = PerTaskMean(4)
        for ids, part in zip(tasks.split(size), values.split(size), strict=True):
            mean.update(ids, part)
        means = mean.compute()
        for task in range(3):
            expected = values[tasks == task].double().mean()
            torch.testing.assert_close(means.values[task], expected)
        seen = torch.stack([values[tasks == t].double().mean() for t in range(3)])
        assert means.macro() == pytest.approx(seen.mean().item())
        assert means.micro() == pytest.approx(values.mean().item())


def test_counts_weigh_the_units_within_a_task():
    mean = PerTaskMean(2)
    mean.update(torch.tensor([0, 0]), torch.tensor([6.0, 1.0]), torch.tensor([3, 1]))
    assert mean.compute().by_task(["a", "b"]) == {"a": 7 / 4}


def test_an_unseen_task_leaves_no_trace():
    mean = PerTaskMean(3)
    mean.update(torch.tensor([2]), torch.tensor([0.5]))
    means = mean.compute()
    assert torch.isfinite(means.values).all()
    assert means.by_task(["a", "b", "c"]) == {"c": 0.5}
    assert means.macro() == means.micro() == 0.5


def test_without_any_sample_there_is_no_mean():
    with pytest.warns(UserWarning, match="compute"):
        means = PerTaskMean(2).compute()
    assert means.macro() is None
    assert means.micro() is None
    assert means.by_task(["a", "b"]) == {}


def test_there_must_be_a_task():
    with pytest.raises(ValueError, match="n_tasks=0 must be at least 1"):
        PerTaskMean(0)


SHARDS = {
    0: [([0, 2, 2], [1.0, 0.0, 1.0]), ([2], [0.25]), ([0, 0], [0.5, 1.0])],
    1: [([3], [0.125])],  # fewer batches, a task that rank 0 lacks, none of rank 0's
}


def _update(mean, batches):
    for tasks, values in batches:
        mean.update(torch.tensor(tasks), torch.tensor(values))


def _rank_means(rank, port, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    mean = PerTaskMean(5)
    _update(mean, SHARDS[rank])
    means = mean.compute()
    results.put((rank, means.values.tolist(), means.counts.tolist(), means.macro(), means.micro()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_ranks_with_uneven_shards_equal_one(free_port):
    one = PerTaskMean(5)
    _update(one, itertools.chain(*SHARDS.values()))
    means = one.compute()
    expected = (means.values.tolist(), means.counts.tolist(), means.macro(), means.micro())
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    multiprocessing.spawn(_rank_means, args=(free_port, results), nprocs=2)
    found = [results.get() for _ in range(2)]
    assert sorted(rank for rank, *_ in found) == [0, 1]
    assert all(tuple(rest) == expected for _, *rest in found)


def test_token_f1():
    assert token_f1("The cat!", ["a cat"]) == 1.0
    assert token_f1("one two", ["two three four"]) == pytest.approx(2 * 1 / 5)
    assert token_f1("a a b", ["a b b"]) == pytest.approx(2 * 1 / 3)  # a is an article
    assert token_f1("x x y", ["x y y"]) == pytest.approx(2 * 2 / 6)
    assert token_f1("", [""]) == token_f1("the", ["..."]) == 1.0
    assert token_f1("", ["word"]) == token_f1("word", []) == 0.0
    assert token_f1("blue sky", ["green sea", "sky blue"]) == 1.0


def _slow_f1(prediction, reference):
    """Word by word, each matched once."""

    def words(text):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    mine, left = words(prediction), words(reference)
    n_mine, n_theirs, common = len(mine), len(left), 0
    for word in mine:
        if word in left:
            left.remove(word)
            common += 1
    if not n_mine or not n_theirs:
        return float(n_mine == n_theirs)
    if not common:
        return 0.0
    precision, recall = common / n_mine, common / n_theirs
    return 2 * precision * recall / (precision + recall)


def test_token_f1_is_the_slow_one():
    rng = random.Random(0)
    vocabulary = ["the", "cat", "Cat,", "sat", "a", "mat.", "?", "é"]
    for _ in range(500):
        a, b = (" ".join(rng.choices(vocabulary, k=rng.randrange(6))) for _ in range(2))
        assert token_f1(a, [b]) == pytest.approx(_slow_f1(a, b), abs=1e-12)
