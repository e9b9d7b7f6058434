"""Pretraining text: right, reproducible, and apart from everything the mixture asks."""

import itertools
import re

import pytest
import torch

from polylab.data.mixture import MixtureSource
from polylab.data.mixture.recipes import HELD_OUT, TRAIN
from polylab.data.mixture.vocabulary import NOUNS, PLURALS, is_reserved
from polylab.pretraining.corpus import (
    BYTE_OFFSET,
    EOS,
    FIRST_SENTINEL,
    Line,
    LineSampler,
    PretrainingCorpus,
    encode,
)
from polylab.pretraining.drills import OPERATIONS, all_drills, kept_out, result_of


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    sampler = LineSampler("separation")
    return [sampler() for _ in range(20_000)]


def test_all_drills_are_drawn(lines: list[Line]) -> None:
    assert len(all_drills()) == 92
    assert {line.drill for line in lines} == set(all_drills())


def test_targets(lines: list[Line]) -> None:
    """Against a second way to compute them: operation by operation."""
    for line in lines[:2000]:
        operations, note = line.drill.operations, dict(line.content.note)
        values = [note.get(item, item) for item in line.content.items]
        if "add" in operations:
            values = [str(int(values[i]) + int(values[i + 1])) for i in range(0, len(values), 2)]
        if "compare" in operations:
            values = sorted(values, key=lambda v: int(v) if v.isdigit() else v)[:1]  # pyright: ignore
        (value,) = values
        if "plural" in operations:
            es = re.search(r"(s|x|z|ch|sh)$", value)
            ies = re.search(r"[^aeiou]y$", value)
            value = value + "es" if es else value[:-1] + "ies" if ies else value + "s"
        if "reverse" in operations:
            value = "".join(reversed(value))
        if "upper" in operations:
            value = value.upper()
        if "judge" in operations:
            value = "yes" if line.content.claim == value else "no"
        assert line.target == value


def test_codes_name_the_operations(lines: list[Line]) -> None:
    for line in lines[:500]:
        assert {OPERATIONS[code] for code in line.codes} == set(line.drill.operations)


def test_judgements_are_balanced(lines: list[Line]) -> None:
    answers = [line.target for line in lines if "judge" in line.drill.operations]
    assert 0.48 < answers.count("yes") / len(answers) < 0.52
    for line in lines:
        if line.target == "no":
            truth = result_of(line.drill.operations, line.content.items, dict(line.content.note))
            assert truth != line.content.claim


def test_no_noun_of_the_mixture(lines: list[Line]) -> None:
    """Neither noun nor plural, forwards or backwards, is an item, a fact or a whole word."""
    nouns = {*NOUNS, *PLURALS}
    nouns |= {noun[::-1] for noun in nouns}
    assert nouns <= kept_out()
    for line in lines:
        words = {*line.content.items, *itertools.chain(*line.content.note)}
        words |= {word.lower() for word in re.findall(r"[A-Za-z]+", line.body.split('"')[0])}
        assert not words & nouns, line


def test_no_template_of_the_mixture(lines: list[Line]) -> None:
    """No stretch of an instruction of two words or more, and no rendered instruction."""
    pieces = set()
    for recipe in (*TRAIN.values(), *HELD_OUT.values()):
        for template in recipe.templates:
            for piece in re.split(r'"?{\w}"?', template):
                if len(piece.split()) >= 2:
                    pieces.add(piece.strip())
    assert len(pieces) > 80
    text = "\n".join(line.body for line in lines)
    assert not [piece for piece in pieces if piece in text]


def test_no_input_target_pair_of_the_mixture(lines: list[Line]) -> None:
    seen = {(tuple(sorted(line.content.items)), line.target) for line in lines}
    for which in ("train", "held_out"):
        for task in MixtureSource(tasks=which)().tasks:
            for example in (*task.train, *task.validation, *task.test):
                pair = tuple(sorted(example.input.split())), example.target
                assert pair not in seen, (task.name, example)


def test_no_reserved_number_pair(lines: list[Line]) -> None:
    """By construction a mixture's two numbers never meet; checked on what was drawn."""
    checked = 0
    for line in lines:
        if line.drill.items == "number" and line.drill.n_items == 2 and not line.content.note:
            a, b = map(int, line.content.items)
            assert not is_reserved(a, b)
            checked += 1
    assert checked > 500


def test_encoding_is_byt5s(lines: list[Line]) -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    for line in lines[:50]:
        source, target = encode(line)
        assert source[len(line.codes) :] == tokenizer(line.body)["input_ids"]
        assert target == tokenizer(line.target)["input_ids"]
        assert all(
            FIRST_SENTINEL <= code < FIRST_SENTINEL + 7 for code in source[: len(line.codes)]
        )
    assert tokenizer.convert_ids_to_tokens(BYTE_OFFSET + ord("a")) == "a"
    assert tokenizer.eos_token_id == EOS


def test_batches() -> None:
    corpus = PretrainingCorpus(batch_size=5, input_length=96, target_length=12, seed="s")
    first, second = itertools.islice(iter(corpus), 2)
    assert first["input_ids"].shape == (5, 96)
    assert first["labels"].shape == (5, 12)
    assert not torch.equal(first["input_ids"], second["input_ids"])
    assert torch.equal(first["attention_mask"], (first["input_ids"] != 0).long())
    assert ((first["labels"] == EOS).sum(1) == 1).all()
    again = next(iter(corpus))
    assert torch.equal(again["input_ids"], first["input_ids"])
