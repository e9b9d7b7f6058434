"""`--help` without importing or composing anything: what can be chosen, and five examples."""

from polylab.config.paths import config_folder

# Groups of the main job in the order of its defaults.
GROUPS = (
    "experiment", "backbone", "adapter", "data", "module", "optim", "trainer", "callbacks",
    "logger", "search", "launch", "debug",
)  # fmt: skip

ADAPT_GROUPS = ("adapt", "protocol", "data", "module", "optim", "trainer")

TRAIN_HELP = """\
polylab: multi-task fine-tuning with routed skills

usage: python -m polylab.train [experiment=NAME] [GROUP=OPTION ...] [KEY=VALUE ...]

Groups (GROUP=OPTION)
{groups}
Top-level keys: seed, tags, ckpt_path, init_from, resume
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
  -m, --multirun       a sweep: every combination of the comma-separated values; given again with
                       hydra.sweep.dir=ITS_FOLDER it goes on where it was killed
  --hydra-help         the flags of Hydra itself
  HYDRA_FULL_ERROR=1   (environment) whole tracebacks
"""

ADAPT_HELP = """\
polylab: few-shot adaptation of a trained run to new tasks

usage: python -m polylab.adapt run=RUN_DIR [GROUP=OPTION ...] [KEY=VALUE ...]

Groups (GROUP=OPTION)
{groups}
Methods (adapt=METHOD): what trains
  poly     the run's skills, and a new row of its routers (default)
  z        the new row alone; the run's own tasks keep their outputs
  mu       the average of the run's skills, as one LoRA
  shared   the one LoRA of a run with adapter=lora
  lora     a fresh LoRA; private is the same, under the name of a paper's baseline
  full     all weights of the backbone, without the adapter

Protocols (protocol=NAME): how it trains, with any method
  default   100 steps on 16 rows, 3 seeds
  crossfit  Poly on CrossFit (1,000 steps, 5 seeds); t0, sni: MHR on T0 and on SuperNI

Keys
  run                    folder of a finished run, runs/EXPERIMENT/DATE_TIME
  adapt.shots            training rows of each task, drawn by seed
  adapt.seeds            one adaptation of each task for each of them
  adapt.tasks            only these of the data's tasks; null: all
  adapt.steps            optimiser steps; also adapt.validate_every
  adapt.select           best: on validation rows, by adapt.monitor; last: needs none
  adapt.validation_rows  taken from the training rows where a task has no validation split
  adapt.router_init      poly, z: fresh, mean, or one of the run's tasks
  adapt.save             true: every adapter in adapters/TASK/seed_SEED
  optim.lr ...           and all other keys of the groups
The prompt and the lengths are the run's unless data.prompt=... and the like are given.

Examples
  python -m polylab.adapt run=RUN_DIR data.source.tasks=held_out
  python -m polylab.adapt run=RUN_DIR data=jsonl data.path=DIR adapt=z adapt.seeds=[0,1,2,3,4]
  python -m polylab.adapt run=RUN_DIR data=sni data.path=DIR data.tasks=test protocol=sni
  python -m polylab.adapt run=RUN_DIR data=jsonl data.path=DIR adapt.tasks=[NAME] adapt.save=true
  python -m polylab.adapt -m run=RUN_DIR data=jsonl data.path=DIR adapt=poly,z,mu,lora

A killed command goes on where it was when it is given again with hydra.run.dir=ITS_FOLDER.

Flags
  --cfg job            print the configuration and stop
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

WORKSPACE_HELP = """\
polylab: the W&B workspace laid out for skills

usage: python -m polylab.workspace [project=PROJECT] [entity=ENTITY] [name=NAME]

Keys
  project  as logger.project of the runs; polylab unless given
  entity   a user or team of W&B; the default one of the key unless given
  name     of the view
  timeout  seconds that the server has to answer

Examples
  python -m polylab.workspace
  python -m polylab.workspace project=polylab
  python -m polylab.workspace project=polylab entity=TEAM
  python -m polylab.workspace project=polylab name=skills
  python -m polylab.workspace project=polylab timeout=120

It needs the extra `view` (pip install 'polylab[view]') and a key (`wandb login`). Sections: scores,
skills with a slider over the steps, routing, layers, training, throughput, sweep.

Flags
  --cfg job            print the configuration and stop
  HYDRA_FULL_ERROR=1   (environment) whole tracebacks
"""

REPORT_HELP = """\
polylab: one HTML page of a run or a sweep

usage: python -m polylab.report run=RUN_DIR_OR_SWEEP_DIR [to=FILE]

Keys
  run  folder of a run, of a sweep, of an adaptation or of an evaluation
  to   the page; report.html in that folder unless given

Examples
  python -m polylab.report run=RUN_DIR
  python -m polylab.report run=SWEEP_DIR
  python -m polylab.report run=ADAPTATION_DIR
  python -m polylab.report run=EVALUATION_DIR
  python -m polylab.report run=RUN_DIR to=pages/first.html

The page holds everything it shows and needs no network: it can be mailed, kept or printed. What
cannot be read, and what was left out to keep the page small, is said in it and on stderr.

Flags
  --cfg job            print the configuration and stop
  HYDRA_FULL_ERROR=1   (environment) whole tracebacks
"""

FIGURES_HELP = """\
polylab: the figures that papers have of many runs

usage: python -m polylab.figures run=SWEEP_DIR [figure=NAME] [metric=METRIC] [to=DIR]

Figures (figure=NAME; all draws those that the folder has the data of)
  changes     change of every task against one shared skill: a sweep with adapter=lora,poly,...
  parameters  score against trained parameters: a sweep of python -m polylab.adapt over methods
  skills      discreteness, density, usage, entropy, score by adapter.n_skills=2,4,8,... and seed
  layers      routing entropy of every layer, of the same sweep

Keys
  run     folder of the sweep, or of one adaptation
  metric  of the test; exact_match (default), rouge_l, ...
  to      a folder for NAME.png and NAME.pdf; figures/ in that of the sweep unless given

Examples
  python -m polylab.figures run=SWEEP_DIR
  python -m polylab.figures run=SWEEP_DIR figure=changes
  python -m polylab.figures run=SWEEP_DIR figure=skills metric=rouge_l
  python -m polylab.figures run=SWEEP_DIR figure=layers to=paper
  python -m polylab.figures run=ADAPT_SWEEP_DIR figure=parameters

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
  split              test (default), validation or train
  task               only this task, or these: task=[NAME,NAME]
  routing            learned (default), or what the weights of the skills are changed to:
    uniform            all skills alike
    rounded, top1      gates above 1/2 alone; the strongest skill of each head alone
    shuffled           those of another task (mope: of another example)
    task:NAME          those of this task, for all
    drop:SKILL         without a skill, aligned over layers; drop:LAYER/SKILL in one layer
    [NAME,NAME]        several: what changes against learned on the same examples
    study              learned to shuffled, and drop:SKILL for every skill
  answers            false: the loss only, without generating; much cheaper
  metric             what a comparison is about (default: what the run's checkpoint was chosen by;
                     of the knock-out the loss)
  zero_shot          how tasks are routed that the run does not know: mean, nearest, input
  batch_size, examples_per_task, accelerator, precision, trust_code

Examples
  python -m polylab.evaluate run=RUN_DIR
  python -m polylab.evaluate run=RUN_DIR split=validation task=NAME
  python -m polylab.evaluate run=RUN_DIR routing=study examples_per_task=16
  python -m polylab.evaluate run=RUN_DIR data=mixture data.source.tasks=held_out zero_shot=mean
  python -m polylab.evaluate run=RUN_DIR data=jsonl data.path=DIR hydra.run.dir=FOLDER

FOLDER gets metrics.json and predictions.jsonl; of a comparison those of learned, and its
interventions.csv, knockout.csv, figures/knockout.png and .pdf, and findings.txt. A killed
evaluation goes on where it was when it is started again with the same hydra.run.dir.

Dropping a skill gives its weight to the others: a small change can mean that they stand in for it.
A task that uses this skill alone gets what small weights it has for others, scaled up to 1 in sum;
where these are 0 (adapter=private, fixed allocations) it is left to the backbone.

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


def help_text(template: str = TRAIN_HELP, *, groups: tuple[str, ...] = GROUPS) -> str:
    """Fill the groups and their options into `template`."""
    width = max(map(len, groups))
    lines = (f"  {group:<{width}}  {', '.join(options(group)) or '-'}\n" for group in groups)
    return template.format(groups="".join(lines))
