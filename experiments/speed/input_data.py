"""Data for the input measurements: generated tasks, and the real ones where they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from polylab.data import Example, TaskCollection, TaskData

PIECES = 8_000  # of the tokenizer; words of the text that it must split are rarer
WORDS = 20_000
ENDS = ("a", "e", "i", "o", "u", "an", "er", "ing")
SYLLABLES = [start + end for start in "bcdfghklmnprstvw" for end in ENDS]


def write_tasks(
    folder: Path, *, tasks: int, examples: int, seed: int, shorter: float = 1.0
) -> None:
    """Write `tasks` JSONL files with `examples` rows together, on average 60 / `shorter` words.

    Sizes are log-normal (sigma 1), and so are the mean lengths of the tasks (sigma 0.8) and the
    lengths within a task (sigma 0.4): instructions, short questions and long documents together.
    """
    rng = np.random.default_rng(seed)
    words = np.array(vocabulary(rng), dtype=object)
    folder.mkdir(parents=True, exist_ok=True)
    for task, size in enumerate(task_sizes(rng, tasks=tasks, examples=examples).tolist()):
        rows = task_rows(rng, words, size=size, shorter=shorter)
        (folder / f"task{task:04d}.jsonl").write_text(
            "".join(json.dumps({"input": x, "target": y}) + "\n" for x, y in rows), "utf-8"
        )


def task_sizes(rng: np.random.Generator, *, tasks: int, examples: int) -> np.ndarray:
    """Log-normal sizes of at least 1 that sum to `examples`."""
    shares = rng.lognormal(sigma=1.0, size=tasks)
    edges = np.round(np.cumsum(shares) / shares.sum() * (examples - tasks)).astype(np.int64)
    return np.diff(edges, prepend=0) + 1


def task_rows(
    rng: np.random.Generator, words: np.ndarray, *, size: int, shorter: float = 1.0
) -> Iterator[tuple[str, str]]:
    """Inputs and targets of one task."""
    inputs = _lengths(rng, size, mean=40 / shorter * rng.lognormal(sigma=0.8))
    targets = _lengths(rng, size, mean=5 / shorter * rng.lognormal(sigma=0.8))
    # Zipf's law, cut: rank 1 is most frequent
    draws = (WORDS ** rng.random(int(inputs.sum() + targets.sum()))).astype(np.int64) - 1
    text = words[draws].tolist()
    at = 0
    for n_input, n_target in zip(inputs.tolist(), targets.tolist(), strict=True):
        middle, end = at + n_input, at + n_input + n_target
        yield " ".join(text[at:middle]), " ".join(text[middle:end])
        at = end


def vocabulary(rng: np.random.Generator) -> list[str]:
    """Distinct words of one to four syllables, short ones first."""
    found = dict.fromkeys(SYLLABLES)
    while len(found) < WORDS:
        found.setdefault("".join(rng.choice(SYLLABLES, size=2 + len(found) * 3 // WORDS)))
    return [*found]


def subword_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer in the manner of T5's (unigram pieces, `</s>` at the end), from `texts`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=PIECES,
            special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def some_texts(folder: Path, *, number: int = 10_000) -> list[str]:
    """About as many inputs, from every task, to train a tokenizer on."""
    files = sorted(folder.glob("*.jsonl"))
    texts = []
    for path in files:
        with path.open("rb") as lines:
            texts += [json.loads(line)["input"] for line in islice(lines, 1 + number // len(files))]
    return texts


def natural_instructions(folder: Path) -> TaskCollection:
    """The task files of Super-NaturalInstructions in `folder`; the first reference is the target.

    Three of them have been altered: strings where others have lists.
    """
    tasks = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        definition = _first(content["Definition"])
        rows = [(row["input"], _first(row["output"])) for row in content["Instances"]]
        examples = [Example(x, y, instruction=f"{definition}\n{x}") for x, y in rows if y.strip()]
        tasks.append(TaskData(path.stem, examples))
    return TaskCollection(tasks)


def _first(value: str | list[str]) -> str:
    return value if isinstance(value, str) else value[0]


def _lengths(rng: np.random.Generator, size: int, *, mean: float) -> np.ndarray:
    return np.maximum(1, rng.lognormal(np.log(mean), 0.4, size=size)).astype(np.int64)
