"""Rows that are conversations: messages of a system, a user and an assistant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polylab.data.chat import Message
from polylab.data.example import Example
from polylab.data.texts import check_text, join_instruction, wrong_type

_FORM = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]'


def read_conversation(value: Any, where: str) -> Example | None:
    """The example of a conversation, or None if its last answer is empty.

    `input` is what comes before that answer: the user's message if there is only one, else all as
    `role: content`, without the system's, which is the instruction.

    Args:
        value: A list of messages: maybe one of the system, then user and assistant in turn.
        where: The place, for errors.

    Raises:
        ValueError: Starting with `where`, if it is something else.
    """
    if not isinstance(value, list) or not value:
        raise wrong_type(where, "messages", value, f"a list like {_FORM}")
    messages = [_message(item, f"{where}: message {i}") for i, item in enumerate(value)]
    turns = messages[1:] if messages[0][0] == "system" else messages
    roles = [role for role, _ in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise ValueError(
            f"{where}: the roles are {', '.join(r for r, _ in messages)} · user and assistant "
            "must take turns, after one message of the system at most, and an answer is the last "
            "· mend or remove the row."
        )
    answer = turns[-1][1]
    if not answer.strip():
        return None
    context = turns[:-1]
    text = context[0][1] if len(context) == 1 else "\n".join(f"{r}: {c}" for r, c in context)
    instruction = join_instruction(messages[0][1], text) if turns != messages else None
    return Example(
        input=text,
        target=answer,
        instruction=instruction,
        messages=(*messages,),
    )


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise wrong_type(where, "messages", item, f"an object, as in {_FORM}")
    role, content = item.get("role"), item.get("content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(
            f"{where}: the role is {role!r} · valid: system, user, assistant · mend or remove the "
            "row."
        )
    if not isinstance(content, str):
        raise wrong_type(where, "content", content, "a string")
    return role, check_text(content, "content", where)
