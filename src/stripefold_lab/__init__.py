"""The workbench around stripefold: training, data sets, models, sweeps, robustness, benchmarks and the command.

The library never imports it. What a user needs in a model of their own is in ``stripefold``; what is needed to
reproduce and extend the experiments is here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stripefold_lab.models.factory import create_model

__all__ = ["create_model"]


def __getattr__(name: str) -> Any:
    if name != "create_model":
        raise AttributeError(f"module 'stripefold_lab' has no attribute {name!r}")
    return importlib.import_module("stripefold_lab.models.factory").create_model
