"""One of the processes that torchrun starts: several commands, one after the other, in an empty folder."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import torch

from stripefold_lab.cli import main
from stripefold_lab.processes import leave

TRAIN = (
    "train --config digits --form dynamic --epochs 1 --batch-size 32 --run-dir run "
    "--set limit_train=64 --set limit_test=33 --set accelerator=cpu --set tensorboard=false"
)
OBSERVE = "observe run --images 33 --json"
BAKE = "bake run --images 64 -o baked.safetensors --recalibrate no"


def told(words: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(words.split())
    return status, out.getvalue(), errors.getvalue()


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    asked = [f"{TRAIN} --devices 4", f"{TRAIN} --devices 2", OBSERVE, BAKE]
    for number, words in enumerate(asked):
        status, out, errors = told(words)
        Path(f"{number}-{os.environ['RANK']}.txt").write_text(f"{status}\n{out}\n---\n{errors}")
    leave(0)
