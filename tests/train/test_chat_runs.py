"""A run on conversations with a decoder-only backbone that has a chat template."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polylab

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _turns(*contents: str) -> str:
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return json.dumps({"messages": turns}) + "\n"


def test_conversations_are_trained_evaluated_and_answered(
    gpt2_folder: Path, small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    backbone, data = tmp_path / "gpt2", tmp_path / "data"
    shutil.copytree(gpt2_folder, backbone)
    path = backbone / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    for split in ("test", "validation"):
        (data / split).mkdir(parents=True)
    for task in ("echo", "last"):
        rows = [_turns(f"{task} {i}", str(i), "again", str(i)) for i in range(5)]
        (data / f"{task}.jsonl").write_text("".join(rows))
        for split in ("test", "validation"):
            row = _turns(f"{split[0]}", "b", "c", f"{task}!")
            (data / split / f"{task}.jsonl").write_text(row)
    given = [
        *small, "trainer.max_steps=2", "logger=none", "callbacks=none", f"data.path={data}",
        f"backbone.name_or_path={backbone}", "adapter.target_modules=[c_attn]",
        "data.max_input_length=90", "data.max_target_length=30",
    ]  # fmt: skip
    done = run_here(*given, cwd=tmp_path)
    assert done.code == 0, done.err
    assert run_here(*given, "data.packing=true", cwd=tmp_path / "data").code == 0
    evaluated = [f"run={done.folder}", f"hydra.run.dir={tmp_path / 'out'}"]
    assert run_here(*evaluated, cwd=tmp_path, command="evaluate").code == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    wanted = json.loads((done.folder / "metrics.json").read_text())
    assert found["test"] == wanted["test"]
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["input"] for line in lines] == ["user: t\nassistant: b\nuser: c"] * 2
    run = polylab.load(done.folder)
    assert run.config.data.chat
    seen: list[str] = []
    generate = run.model.generate

    def spy(*args: Any, **options: Any) -> Any:
        seen.extend(run.tokenizer.batch_decode(options["input_ids"]))
        return generate(*args, **options)

    run.model.generate = spy  # type: ignore[method-assign]
    run.generate(["hello"], task="echo")
    assert seen == ["user: hello</s>assistant: "]
