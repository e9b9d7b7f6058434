"""Conversations: against the masks that transformers makes from a template's own marks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from polylab.data import DataModule, Example, HubSource, JsonlFolder, ParquetFiles
from polylab.data.collate import Collator
from polylab.data.dataset import EncodedExamples
from polylab.data.encoding import TextEncoder
from polylab.data.rows import parse_row

# One that strips contents and ends turns with a line break, one that does neither, and one whose
# answers have no end of their own
TEMPLATES = {
    "stripping": (
        "<s>{% for m in messages %}[{{ m.role }}]\n"
        "{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content | trim }}</s>{% endgeneration %}"
        "{% else %}{{ m.content | trim }}</s>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'system' %}<<{{ m.content }}>>"
        "{% else %}{% generation %} {{ m.content }}</s>{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{% endif %}"
    ),
    "endless": (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}"
        "{% endgeneration %}\n{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    ),
}
TURNS = [
    ("system", "Be kind."),
    ("user", "How?"),
    ("assistant", "So."),
    ("user", " And then, what is next? "),
    ("assistant", "No more"),
    ("user", "why"),
    ("assistant", "because of that"),
]


@pytest.fixture(params=TEMPLATES)
def chatty(request: pytest.FixtureRequest, llama_like: Any) -> PreTrainedTokenizerFast:
    llama_like.chat_template = TEMPLATES[request.param]
    return llama_like


def _encoder(tokenizer: Any, **changes: Any) -> TextEncoder:
    lengths = {"max_input_length": 300, "max_target_length": 40}
    return TextEncoder(tokenizer, is_encoder_decoder=False, **{**lengths, **changes})


def _examples(turns: list[tuple[str, str]]) -> Example:
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    example = parse_row(row, "here")
    assert example is not None
    return example


def _batch(example: Example, encoder: TextEncoder, *, evaluation: bool, **changes: Any) -> Any:
    data = EncodedExamples(
        [[example]],
        **{
            "task_names": ["a"],
            "task_ids": [0],
            "encoder": encoder,
            "prompt": "none" if example.instruction is None else "instruction",
            "with_texts": evaluation,
            **changes,
        },
    )
    collate = Collator(pad_id=1, n_tasks=1, is_encoder_decoder=False, evaluation=evaluation)
    return collate([data[0, 0]])


def _by_transformers(tokenizer: Any, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Ids and labels up to the end of the last answer."""
    found = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, mask = found["input_ids"], found["assistant_masks"]
    end = len(mask) - mask[::-1].index(1)
    ids, mask = ids[:end], mask[:end]
    if ids[-1] != 1:
        ids, mask = [*ids, 1], [*mask, 1]  # generation stops there
    return ids, [i if learnt else -100 for i, learnt in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("first", [0, 1])
def test_all_answers_are_learnt_and_nothing_else(
    chatty: PreTrainedTokenizerFast, first: int
) -> None:
    batch = _batch(_examples(TURNS[first:]), _encoder(chatty), evaluation=False)
    ids, labels = _by_transformers(chatty, TURNS[first:])
    assert batch["input_ids"].tolist() == [ids]
    assert batch["labels"].tolist() == [labels]
    assert batch["attention_mask"].tolist() == [[1] * len(ids)]


def test_the_last_answer_is_evaluated(chatty: PreTrainedTokenizerFast) -> None:
    batch = _batch(_examples(TURNS), _encoder(chatty), evaluation=True)
    ids, labels = _by_transformers(chatty, TURNS)
    start = max(i for i, label in enumerate(labels) if label == -100) + 1
    assert batch["input_ids"].tolist() == [ids]
    assert batch["labels"].tolist() == [[-100] * start + ids[start:]]
    assert batch["prompt_ids"].tolist() == [ids[:start]]
    assert batch["references"] == [["because of that"]]
    assert batch["inputs"][0].startswith("Be kind.\nuser: How?\nassistant: So.\nuser:  And")


def test_an_input_and_a_target_are_one_exchange(chatty: PreTrainedTokenizerFast) -> None:
    encoder = _encoder(chatty)
    plain = Example(" a question ", "an answer", instruction=" a question ")
    turns = [("user", " a question "), ("assistant", "an answer")]
    for evaluation in (True, False):
        found = _batch(plain, encoder, evaluation=evaluation)
        same = _batch(_examples(turns), encoder, evaluation=evaluation, prompt="none")
        ids, labels = _by_transformers(chatty, turns)
        for batch in (found, same):
            assert batch["input_ids"].tolist() == [ids]
            assert batch["labels"].tolist() == [labels]


def test_what_the_prompt_says_of_the_task(chatty: PreTrainedTokenizerFast) -> None:
    texts = {}
    for prompt in ("none", "name", "instruction"):
        batch = _batch(_examples(TURNS[:3]), _encoder(chatty), evaluation=False, prompt=prompt)
        texts[prompt] = chatty.decode(batch["input_ids"][0])
    assert "Be kind." in texts["instruction"]
    assert "Be kind." not in texts["none"] + texts["name"]
    assert "a: How?" in texts["name"]
    assert "a: How?" not in texts["none"]


@pytest.mark.parametrize("evaluation", [False, True])
def test_the_oldest_exchanges_go_first(chatty: PreTrainedTokenizerFast, evaluation: bool) -> None:
    example = _examples(TURNS)
    whole = len(_by_transformers(chatty, TURNS)[0])
    seen = set()
    for room in range(60, whole + 60):
        encoder = _encoder(chatty, max_input_length=room, max_target_length=20)
        batch = _batch(example, encoder, evaluation=evaluation)
        ids = batch["input_ids"][0].tolist()
        assert len(ids) <= room + 20
        kept = next(
            n for n in (0, 2, 4) if ids == _by_transformers(chatty, [TURNS[0], *TURNS[1 + n :]])[0]
        )
        seen.add(kept)
    assert seen == {0, 2, 4}
    short = _encoder(chatty, max_input_length=24, max_target_length=20)
    text = chatty.decode(_batch(example, short, evaluation=evaluation)["input_ids"][0])
    assert "why" in text
    assert "Be kind" not in text
    assert "because of that" in text


def test_lengths_and_stored_ids_are_those_of_the_items(
    chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    examples = [_examples(TURNS), Example("in", "out"), _examples(TURNS[1:3])]
    common: Any = {
        "task_names": ["a"],
        "task_ids": [0],
        "encoder": _encoder(chatty),
        "prompt": "none",
        "with_texts": False,
    }
    data = EncodedExamples([examples], **common)
    items = [data[i, i] for i in range(3)]
    lengths = [[len(item.input_ids), len(item.target_ids)] for item in items]
    other = EncodedExamples([examples], **common)
    other.keep(other.measure([2, 0, 1], with_ids=False))
    assert other.lengths([0, 1, 2]).tolist() == lengths
    other.store(tmp_path, fingerprint="f")
    for i, item in enumerate(items):
        assert other[i, i].input_ids.tolist() == item.input_ids.tolist()
        assert other[i, i].target_ids.tolist() == item.target_ids.tolist()
    before = common["encoder"].fingerprint()
    chatty.chat_template = "{# changed #}" + str(chatty.chat_template)
    assert _encoder(chatty).fingerprint() != before


def test_a_template_is_used_where_there_is_one_unless_told_otherwise(
    llama_like: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"input": "x", "target": "y"}\n')
    llama_like.chat_template = TEMPLATES["plain"]
    source = JsonlFolder(path=tmp_path)
    for chat, encodes in ((True, False), (False, False), (True, True)):
        data = DataModule(source, llama_like, is_encoder_decoder=encodes, chat=chat)
        assert ("chat template" in data.describe()) == (chat and not encodes)


def test_a_template_that_rewrites_earlier_turns_is_refused(
    llama_like: PreTrainedTokenizerFast,
) -> None:
    llama_like.chat_template = "{{ messages | length }}" + TEMPLATES["endless"]
    with pytest.raises(ValueError, match=r"writes earlier turns differently .* data.chat=false"):
        _encoder(llama_like)
    llama_like.chat_template = "{{ messages | length }}: hello"
    with pytest.raises(ValueError, match=r"data\.chat=false"):
        _encoder(llama_like)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("hello", '"messages" has "hello"'),
        ([], '"messages" has'),
        (["hello"], 'message 0: "messages" has "hello"'),
        ([{"role": "user", "content": "a"}], "the roles are user · user and assistant must take"),
        ([{"role": "tool", "content": "a"}], "message 0: the role is 'tool' · valid: system, user"),
        ([{"role": "user", "content": 1}], 'message 0: "content" has 1'),
        ([{"role": "user", "content": "a"}] * 2, "the roles are user, user"),
        ([{"role": "system", "content": "a"}] * 2, "the roles are system, system"),
        ([{"role": "assistant", "content": "a"}] * 2, "the roles are assistant, assistant"),
    ],
)
def test_rows_that_are_no_conversations(
    messages: Any, says: str, write_tasks: Callable[..., Path]
) -> None:
    folder = write_tasks({"a": [{"input": "x", "target": "y"}, {"messages": messages}]})
    with pytest.raises(ValueError, match=r"a\.jsonl:2") as error:
        JsonlFolder(path=folder)()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_answer_leaves_a_row_out(write_tasks: Callable[..., Path]) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]
    folder = write_tasks({"a": [{"input": "x", "target": "y"}, {"messages": turns}]})
    assert len(JsonlFolder(path=folder)().tasks[0].train) == 1
    assert json.loads((folder / "a.jsonl").read_text().splitlines()[1])["messages"] == turns


def test_conversations_in_tables_are_those_of_json_lines(tmp_path: Path) -> None:
    turns = [{"role": role, "content": content} for role, content in TURNS]
    for name in ("parquet", "hub", "jsonl"):
        (tmp_path / name).mkdir()
    pq.write_table(pa.table({"messages": [turns]}), tmp_path / "parquet" / "t.parquet")
    for name, file in (("hub", "train.jsonl"), ("jsonl", "t.jsonl")):
        (tmp_path / name / file).write_text(json.dumps({"messages": turns}) + "\n")
    wanted = JsonlFolder(path=tmp_path / "jsonl")().tasks[0].train[0]
    assert wanted == _examples(TURNS)
    assert ParquetFiles(path=str(tmp_path / "parquet"))().tasks[0].train[0] == wanted
    assert HubSource(path=str(tmp_path / "hub"))().tasks[0].train[0] == wanted
