"""Data for the measurements on several GPUs: tasks of texts that all fill their budget."""

from __future__ import annotations

import random

from shapes import Shape
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from polylab.data import DataModule, Example, TaskCollection, TaskData

N_TASKS = 16
_EXAMPLES = 32  # of a task, to train on
_VALIDATED = 2  # of a task
_SPECIAL = ("<pad>", "</s>", "<unk>")


def word_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """A token for each of the words `w0`, `w1`, ...; pad is 0, the end of a sequence 1, as T5's."""
    words = [*_SPECIAL, *(f"w{i}" for i in range(_n_words(shape)))]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def fixed_lengths(shape: Shape) -> tuple[int, int]:
    """Tokens of an input and of a target; those of a decoder-only model share its sequence."""
    if shape.target_seq is not None:
        return shape.seq, shape.target_seq
    return shape.seq - shape.seq // 4, shape.seq // 4


def make_data(shape: Shape, *, batch_size: int, steps: int, seed: int = 0) -> DataModule:
    """The data module of polylab module over generated tasks; all rows have one length.

    Args:
        shape: Its lengths and its vocabulary.
        batch_size: The global batch.
        steps: Of the training, which is one epoch: no loader starts in the middle of it.
        seed: Of the texts, and of the order.
    """
    n_input, n_target = fixed_lengths(shape)
    n_words, draw = _n_words(shape), random.Random(seed)

    def text(n_tokens: int) -> str:  # as many words: the end's token makes it one too long
        return " ".join(f"w{draw.randrange(n_words)}" for _ in range(n_tokens))

    def examples(number: int) -> list[Example]:
        return [Example(text(n_input), text(n_target)) for _ in range(number)]

    def source() -> TaskCollection:
        names = [f"task{i:02d}" for i in range(N_TASKS)]
        tasks = [TaskData(name, examples(_EXAMPLES), examples(_VALIDATED)) for name in names]
        return TaskCollection(tasks)

    return DataModule(
        source,
        word_tokenizer(shape),
        is_encoder_decoder=shape.target_seq is not None,
        batch_size=batch_size,
        max_input_length=n_input,
        max_target_length=n_target,
        steps_per_epoch=steps,
        seed=seed,
    )


def _n_words(shape: Shape) -> int:
    return min(4000, shape.config.vocab_size - len(_SPECIAL))
