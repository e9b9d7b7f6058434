"""Ranks as processes that nobody watches, as they are where no launcher started them."""

import logging
import multiprocessing
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import torch


def start_ranks(work, folder: Path, n: int, *arguments):
    """Call an importable `work(folder, *arguments)` on `n` ranks; their codes and error output."""
    # what is imported need not be again; but threads of an accelerator's do not survive a fork
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    ranks = [
        context.Process(target=_rank, args=(work, folder, n, rank, port, arguments))
        for rank in range(n)
    ]
    for process in ranks:
        process.start()
    until = time.monotonic() + 120
    for process in ranks:
        process.join(max(0, until - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return codes, [(folder / f"{rank}.err").read_text() for rank in range(n)]


def _rank(work, folder, n, rank, port, arguments):
    file = os.open(folder / f"{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    sys.stderr = os.fdopen(2, "w")
    logging.basicConfig(stream=sys.stderr, format="%(message)s", force=True)
    logging.getLogger().handlers[0].setLevel(logging.WARNING)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    try:
        work(folder, *arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
