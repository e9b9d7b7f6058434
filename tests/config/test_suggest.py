"""Nearest matches."""

import pytest

from polylab.config.suggest import hint, listing, nearest

KEYS = ["adapter", "adapter.n_skills", "adapter.r", "data.batch_size", "data.temperature", "seed"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("adapter.n_skils", "adapter.n_skills"),
        ("n_skills", "adapter.n_skills"),
        ("adapter.batch_size", "data.batch_size"),
        ("batchsize", "data.batch_size"),
        ("sed", "seed"),
        ("xyzzy", None),
    ],
)
def test_nearest(given: str, expected: str | None) -> None:
    assert nearest(given, KEYS) == expected


def test_hint_is_empty_without_a_match() -> None:
    assert hint("polly", ["poly", "mope"]) == " · did you mean poly?"
    assert hint("zzz", ["poly", "mope"]) == ""


def test_a_long_listing_says_how_long() -> None:
    assert listing(["b", "a"]) == "a, b"
    assert listing([f"k{i}" for i in range(5)], limit=2) == "k0, k1, ... (5 in all)"
