"""Speed of polylab beside PEFT, measured here: `python experiments/speed/bench.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

import callbacks
import curve
import decode
import growth
import packing
import results
import steps
import torch

KINDS = {
    "steps": steps,
    "decode": decode,
    "growth": growth,
    "curve": curve,
    "packing": packing,
    "callbacks": callbacks,
}


def main() -> None:
    """Parse, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, module in KINDS.items():
        kind = kinds.add_parser(name, help=module.__doc__)
        module.add_arguments(kind)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        kind.add_argument("--device", choices=("cpu", "cuda"), default=device)
        dtype = "bfloat16" if device == "cuda" else "float32"
        kind.add_argument("--dtype", choices=("float32", "bfloat16"), default=dtype)
        kind.add_argument("--rounds", type=int, default=12, help="paired rounds, in random order")
        kind.add_argument("--save", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    rows = KINDS[options.kind].run(options)
    print(results.table(rows))
    if options.save:
        results.save(options.save, rows, device=options.device)


if __name__ == "__main__":
    main()
