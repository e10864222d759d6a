"""Sweeps: many runs of one base, compared with their backbone, on Ray Tune.

What: ``run_sweep(load_sweep("delta"), "sweeps/delta")`` trains every setting of a grid, of a random search or of a list
under every seed, and leaves one folder: the runs, a table of means, spreads and paired differences to the backbone, and
a picture. ``ablations/`` holds the sweeps that come with the package.
Paper: the ablations are those every reader of it asks for: the attention, delta, the start of psi, the place, a plain
learned scale, psi or the attention frozen, the dynamic attention beside it (ASR, Huang et al. 2024, section 5).
Why here: Ray Tune starts the runs, on one machine or many, and watches over them; every run is an ordinary
``training.train`` into a folder of its own. What this package adds is that the runs' folders, and not Ray's state, say
what is done: whatever is killed at whatever time, the same call goes on, and no finished run is repeated.

The names are lazy: importing the package loads neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stripefold_lab.sweep.load import load_sweep, sweep_names
    from stripefold_lab.sweep.result import SweepResult
    from stripefold_lab.sweep.runner import plan_sweep, run_sweep
    from stripefold_lab.sweep.session import Machines
    from stripefold_lab.sweep.spec import Sweep

_HOMES = {
    "Machines": "session",
    "Sweep": "spec",
    "SweepResult": "result",
    "load_sweep": "load",
    "plan_sweep": "runner",
    "run_sweep": "runner",
    "sweep_names": "load",
}

__all__ = ["Machines", "Sweep", "SweepResult", "load_sweep", "plan_sweep", "run_sweep", "sweep_names"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
