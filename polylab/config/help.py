"""`--help` without importing or composing anything: what can be chosen, and five examples."""

from polylab.config.paths import config_folder

# Groups of the main job in the order of its defaults; `adapt` belongs to another command.
GROUPS = (
    "experiment", "backbone", "adapter", "data", "module", "optim", "trainer", "callbacks",
    "logger", "debug",
)  # fmt: skip

TRAIN_HELP = """\
polylab: multi-task fine-tuning with routed skills

usage: python -m polylab.train [experiment=NAME] [GROUP=OPTION ...] [KEY=VALUE ...]

Groups (GROUP=OPTION)
{groups}
Top-level keys: seed, tags, ckpt_path, init_from
Keys of a group: adapter.n_skills=4 trainer.max_steps=500 data.batch_size=64 optim.lr=1e-3 ...

Examples
  python -m polylab.train experiment=flan_poly
  python -m polylab.train experiment=flan_poly debug=fast
  python -m polylab.train experiment=flan_poly data=jsonl data.path=DIR
  python -m polylab.train experiment=flan_poly backbone=flan_t5_base trainer=gpu
  python -m polylab.train -m experiment=flan_poly adapter.n_skills=2,4,8 seed=0,1,2

Flags
  --cfg job            print the configuration and stop (--resolve fills in references)
  --config-dir DIR     more options of your own, e.g. DIR/experiment/mine.yaml
  -m, --multirun       a sweep: every combination of the comma-separated values
  --hydra-help         the flags of Hydra itself
  HYDRA_FULL_ERROR=1   (environment) whole tracebacks
"""

EXPORT_HELP = """\
polylab: take the adapter of a run elsewhere

usage: python -m polylab.export run=RUN_DIR to=DIR [format=FORMAT] [task=NAME]

Keys
  run     folder of a finished run, runs/EXPERIMENT/DATE_TIME
  to      a new folder; it appears when it is whole
  format  lora    plain PEFT LoRAs: one in DIR/TASK for each task, with task= one in DIR (default)
          poly    the whole adapter with all tasks
          merged  a Hugging Face model with one task's update in its weights
  task    name or id of one task

Examples
  python -m polylab.export run=RUN_DIR to=loras
  python -m polylab.export run=RUN_DIR to=lora_of_one task=NAME
  python -m polylab.export run=RUN_DIR to=lora_of_one task=0
  python -m polylab.export run=RUN_DIR to=adapter format=poly
  python -m polylab.export run=RUN_DIR to=model format=merged task=NAME

Adapters that are routed by the input (mope) have no weights of a task: format=poly only.

Flags
  --cfg job            print the configuration and stop
  HYDRA_FULL_ERROR=1   (environment) whole tracebacks
"""


EVALUATE_HELP = """\
polylab: metrics of a finished run

usage: python -m polylab.evaluate run=RUN_DIR [data=OPTION ...] [KEY=VALUE ...]

Groups (GROUP=OPTION)
  data  {data} (default: the run's own)

Keys
  run                folder of a finished run, runs/EXPERIMENT/DATE_TIME
  split              test (default) or validation
  task               only this task, or these: task=[NAME,NAME]
  routing            learned (default), uniform, rounded, top1, shuffled, task:NAME, drop:SKILL,
                     drop:LAYER/SKILL
  zero_shot          how tasks are routed that the run does not know: mean, nearest, input
  batch_size, examples_per_task, accelerator, precision, trust_code

Examples
  python -m polylab.evaluate run=RUN_DIR
  python -m polylab.evaluate run=RUN_DIR split=validation task=NAME
  python -m polylab.evaluate run=RUN_DIR routing=uniform
  python -m polylab.evaluate run=RUN_DIR data=mixture data.source.tasks=held_out zero_shot=mean
  python -m polylab.evaluate run=RUN_DIR data=jsonl data.path=DIR hydra.run.dir=FOLDER

FOLDER gets metrics.json and predictions.jsonl. A killed evaluation goes on where it was when it is
started again with the same hydra.run.dir.

Flags
  --cfg job            print the configuration and stop
  HYDRA_FULL_ERROR=1   (environment) whole tracebacks
"""


def evaluate_help() -> str:
    """Fill the sources of data into the text."""
    return EVALUATE_HELP.format(data=", ".join(options("data")))


def options(group: str) -> list[str]:
    """Return the names of the options that the package holds for `group`, sorted."""
    folder = (
        config_folder("experiments") if group == "experiment" else config_folder("conf") / group
    )
    return sorted(file.stem for file in folder.glob("*.yaml"))


def help_text(template: str = TRAIN_HELP) -> str:
    """Fill the groups and their options into `template`."""
    width = max(map(len, GROUPS))
    lines = (f"  {group:<{width}}  {', '.join(options(group)) or '-'}\n" for group in GROUPS)
    return template.format(groups="".join(lines))
