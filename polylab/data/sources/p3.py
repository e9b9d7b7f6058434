"""P3, the Public Pool of Prompts: each configuration is a template of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from polylab.data.example import Example
from polylab.data.rows import parse_row
from polylab.data.sources.hub import HubSource
from polylab.data.sources.selecting import Rows, choose
from polylab.data.sources.tabular import Part

SCORE_EVAL = "_score_eval"
# Datasets of P3 as its configurations begin: DATASET_TEMPLATE, and both parts have underscores.
DATASETS = (
    "adversarial_qa_dbert", "adversarial_qa_dbidaf", "adversarial_qa_droberta", "ag_news",
    "ai2_arc_ARC_Challenge", "ai2_arc_ARC_Easy", "amazon_polarity", "anli", "app_reviews",
    "cnn_dailymail_3.0.0", "common_gen", "cos_e_v1.11", "cosmos_qa", "dbpedia_14", "dream",
    "duorc_ParaphraseRC", "duorc_SelfRC", "gigaword", "glue_mrpc", "glue_qqp", "hellaswag", "imdb",
    "kilt_tasks_hotpotqa", "multi_news", "openbookqa_main", "paws_labeled_final", "piqa", "qasc",
    "quail", "quarel", "quartz", "quoref", "race_high", "race_middle", "ropes", "rotten_tomatoes",
    "samsum", "sciq", "social_i_qa", "squad_v2", "super_glue_boolq", "super_glue_cb",
    "super_glue_copa", "super_glue_multirc", "super_glue_record", "super_glue_rte",
    "super_glue_wic", "super_glue_wsc.fixed", "trec", "trivia_qa_unfiltered", "web_questions",
    "wiki_bio", "wiki_hop_original", "wiki_qa", "winogrande_winogrande_debiased",
    "winogrande_winogrande_xl", "wiqa", "xsum", "yelp_review_full",
)  # fmt: skip
TASKS = ("templates", "datasets")


@dataclass(frozen=True, kw_only=True)
class P3Source(HubSource):
    """P3 (https://arxiv.org/abs/2110.08207), by its hub name or a folder of the same form.

    A template may have a configuration `TEMPLATE_score_eval` beside it: its rows are the options
    of an example, one each, which `idx` groups and `is_correct` tells apart. For the splits that it
    has these are read instead of the template's own, as examples with `options`.

    Args:
        path: The dataset. Further arguments are those of `HubSource`.
        p3_tasks: `templates`: each is a task; `datasets`: the templates of a dataset are one.
        options: Whether the `_score_eval` configurations are read; without them no example has
            options.
        datasets: Names of datasets beyond those of P3 itself (`DATASETS`).

    Raises:
        ValueError: If `p3_tasks` is neither.
    """

    path: str = "bigscience/P3"
    p3_tasks: str = "templates"
    options: bool = True
    datasets: Sequence[str] = field(default_factory=tuple)
    tasks: str = "configs"

    WAYS: ClassVar[tuple[str, ...]] = ("configs",)
    KEYS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p3_tasks not in TASKS:
            raise ValueError(
                f"data.p3.tasks={self.p3_tasks!r} · valid: {', '.join(TASKS)} · choose one of them."
            )

    def configs(self) -> list[str]:
        found = super().configs()
        return found if self.options else [name for name in found if not _is_score_eval(name)]

    def parts(self) -> Sequence[Part]:
        parts = super().parts()
        replaced = {
            (_template(part.task), part.split) for part in parts if _is_score_eval(part.task)
        }
        return [
            part
            for part in parts
            if _is_score_eval(part.task) or (part.task, part.split) not in replaced
        ]

    def task_of(self, found: Any, part: Part) -> str:
        template = _template(super().task_of(found, part))
        return template if self.p3_tasks == "templates" else self._dataset(template)

    def load(self, rows: Sequence[Rows], *, task: str, cap: int | None) -> list[Example | None]:
        if not any(map(_is_grouped, rows)):
            return super().load(rows, task=task, cap=cap)
        # an example is several rows, so which ones there are is only known when all are read
        found = [example for its in rows for example in self.examples(its)]
        return found if cap is None else [found[i] for i in choose(cap, len(found), task)]

    def examples(self, rows: Rows) -> Iterator[Example | None]:
        if not _is_grouped(rows):
            yield from super().examples(rows)
            return
        names = rows.roles.names
        columns = [names["input"], names["target"], "idx", "is_correct"]
        groups: dict[int, _Group] = {}
        for where, cells in rows.piece.rows(columns):
            groups.setdefault(_index(cells, where), _Group(where)).add(cells, where, names)
        for group in groups.values():
            yield group.example()

    def _dataset(self, template: str) -> str:
        known = [n for n in (*DATASETS, *self.datasets) if template.startswith(f"{n}_")]
        if known:
            return max(known, key=len)
        raise ValueError(
            f"data.p3.tasks=datasets, and the configuration {template!r} begins with no known "
            "dataset · its name is DATASET_TEMPLATE · name the dataset: data.p3.datasets=[NAME]."
        )


class _Group:
    """The rows of one example, one an option."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._input: str | None = None
        self._options: dict[str, bool] = {}  # and whether it is correct

    def add(self, cells: dict[str, Any], where: str, names: Mapping[str, str]) -> None:
        text, option, is_correct = (
            cells[names["input"]], cells[names["target"]], cells["is_correct"],
        )  # fmt: skip
        for name, value, kind in (
            (names["input"], text, str), (names["target"], option, str),
            ("is_correct", is_correct, bool),
        ):  # fmt: skip
            if not isinstance(value, kind):
                raise ValueError(
                    f'{where}: "{name}" has {str(value)[:60]} ({type(value).__name__}) · it must '
                    f"be a {kind.__name__} · mend the row."
                )
        if self._options and text != self._input:
            raise ValueError(
                f"{where}: another input than {self._where} with the same idx · rows of one idx "
                "are the options of one input · mend the rows."
            )
        self._input = text
        self._options[option] = self._options.get(option, False) or is_correct

    def example(self) -> Example | None:
        correct = [option for option, is_correct in self._options.items() if is_correct]
        cells = {"input": self._input, "target": correct, "options": [*self._options]}
        return parse_row(cells, self._where)


def _is_score_eval(config: str) -> bool:
    return config.endswith(SCORE_EVAL)


def _template(config: str) -> str:
    return config.removesuffix(SCORE_EVAL)


def _is_grouped(rows: Rows) -> bool:
    return {"idx", "is_correct"} <= set(rows.piece.table.columns)


def _index(cells: dict[str, Any], where: str) -> int:
    """The number of the example: `idx` is it, or it and the number of the option."""
    index = cells["idx"]
    number = index[0] if isinstance(index, list) and index else index
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    raise ValueError(
        f"{where}: 'idx' has {index!r} · it must be a number, or [EXAMPLE, OPTION] · mend the row."
    )
