"""Conversations: messages, the tokenizer's template for them, and which of its text is answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

__all__ = ["Around", "ChatTemplate", "Message", "exchanges"]

Message = tuple[str, str]
"""Role (`system`, `user` or `assistant`), content."""

_PROBE = "polylab"  # a word that no template has
# Llama's templates put today's date into the prompt where none is given
_SETTINGS: dict[str, Any] = {"tokenize": False, "date_string": "26 Jul 2024"}


class Around(NamedTuple):
    """The text that a template puts around one input and its answer."""

    before: str
    between: str
    after: str


class ChatTemplate:
    """The template of a tokenizer.

    Args:
        tokenizer: With a `chat_template`.

    Raises:
        ValueError: If the template does not have the contents in its text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        question, answer = f" {_PROBE} ", f"{_PROBE} "
        pieces = [text for text, _ in self.pieces((("user", question), ("assistant", answer)))]
        if [text.count(_PROBE) for text in pieces] != [1, 1]:
            raise ValueError(
                f"the chat template of {type(tokenizer).__name__} makes {pieces!r} of a question "
                f"and an answer that are both {_PROBE!r} · each must be in it once · set "
                "data.chat=false."
            )
        self._strips = question not in pieces[0]
        before, between = pieces[0].split(_PROBE if self._strips else question)
        # a space is part of the word that follows it
        self._leads = before[len(before.rstrip(" ")) :], pieces[1].split(_PROBE)[0]
        after = pieces[1].split(_PROBE)[1].lstrip(" ")
        self.around = Around(before.rstrip(" "), between, after)

    @property
    def source(self) -> str:
        """The template itself."""
        return str(self._tokenizer.chat_template)

    def input(self, content: str) -> str:
        """A user's content as the template shows it."""
        return self._leads[0] + self._shown(content)

    def target(self, content: str) -> str:
        """An answer's content as the template shows it."""
        return self._leads[1] + self._shown(content)

    def _shown(self, content: str) -> str:
        return content.strip() if self._strips else content

    def pieces(self, messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
        """The conversation's text in pieces, and whether each is an answer, to its end of turn.

        White space behind the end of a turn counts to what follows, where it is followed by
        something.

        Raises:
            ValueError: If the template writes earlier turns anew in the light of later ones.
        """
        done = ""
        for i, (role, _) in enumerate(messages):
            if role != "assistant":
                continue
            context = self._render(messages[:i], asks=True)
            answered = self._render(messages[: i + 1], asks=False)
            if not context.startswith(done) or not answered.startswith(context):
                raise ValueError(
                    f"the chat template of {type(self._tokenizer).__name__} writes earlier turns "
                    f"differently once turn {i} is there · so answers cannot be told apart · set "
                    "data.chat=false."
                )
            yield context[len(done) :], False
            yield answered[len(context) :].rstrip(), True
            done = answered.rstrip()

    def _render(self, messages: Sequence[Message], *, asks: bool) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        text: Any = self._tokenizer.apply_chat_template(
            turns, add_generation_prompt=asks, **_SETTINGS
        )
        return text


def exchanges(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The conversation, and then it with ever more of its oldest exchanges left out.

    A system message stays.
    """
    system = [message for message in messages[:1] if message[0] == "system"]
    turns = messages[len(system) :]
    for first in range(0, len(turns), 2):
        yield [*system, *turns[first:]]
