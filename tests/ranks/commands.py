"""The training command on ranks of this process's kind, which have imported everything already."""

import os
import sys

from polylab.train import main


def train(folder, jobs, overrides=()):
    """Run each job `{NAME: overrides}` into `FOLDER/NAME`, one after another, on this rank."""
    os.chdir(folder)
    n = os.environ.get("WORLD_SIZE", "1")
    ranks = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={n}"]
    for name, own in jobs.items():
        if n != "1":  # each job is one of these processes alone, as where no sweep runs
            os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
        run = [
            f"hydra.run.dir={folder / name}",
            f"hydra.job.name=rank{os.environ.get('LOCAL_RANK', 0)}",
        ]
        sys.argv = ["polylab-train", *overrides, *own, *ranks, *run]
        main()
