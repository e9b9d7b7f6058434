"""The training command on ranks that have imported everything already."""

import json
import os
import sys

# what the command imports when it needs it, and would import on each rank
import polylab.backbones
import polylab.callbacks
import polylab.data
import polylab.ranks.together
import polylab.training  # noqa: F401
from polylab.train import main

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def train(folder, jobs):
    """Run each of the jobs `{NAME: overrides}` into `FOLDER/NAME`, one after another.

    `FOLDER/RANK.json` then lists what this rank has opened to write, made, moved or removed there.
    """
    os.chdir(folder)
    n, rank = os.environ.get("WORLD_SIZE", "1"), int(os.environ.get("LOCAL_RANK", "0"))
    port = int(os.environ.get("MASTER_PORT", "0"))
    touched = _touched_below(folder)
    for number, (name, overrides) in enumerate(jobs.items()):
        os.environ["MASTER_PORT"] = str(port + number)  # the group before it may still hold its own
        sys.argv = ["polylab-train", *overrides, f"trainer.devices={n}"]
        sys.argv += ["trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={folder / name}"]
        if rank:
            sys.argv += ["hydra.output_subdir=null", f"hydra.job.name=rank{rank}"]
        main()
    found = sorted(touched)
    (folder / f"{rank}.json").write_text(json.dumps(found))


def _touched_below(folder):
    touched = set()

    def hook(event, arguments):
        paths = arguments[:1] if event in ("os.mkdir", "os.remove") else ()
        if event == "os.rename":
            paths = arguments[:2]
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            paths = arguments[:1]
        for path in paths:
            absolute = os.path.abspath(path) if isinstance(path, str | os.PathLike) else ""
            if absolute.startswith(f"{folder}/"):
                touched.add(os.path.relpath(absolute, folder))

    sys.addaudithook(hook)
    return touched
