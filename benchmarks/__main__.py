"""Run every script, each in a process of its own, then render the results; options are passed on."""

from __future__ import annotations

import subprocess
import sys

SCRIPTS = ("import_time", "fold_time", "inference", "deploy", "train_step", "observe_time", "bake_speed")

if __name__ == "__main__":
    for script in SCRIPTS:
        subprocess.run([sys.executable, "-m", f"benchmarks.{script}", *sys.argv[1:]], check=True)
    if "--quick" not in sys.argv:
        subprocess.run([sys.executable, "-m", "benchmarks.render"], check=True)
