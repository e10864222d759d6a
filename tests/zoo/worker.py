"""The process that runs models one after another and reports a line for each."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from multiprocessing.connection import Connection
from typing import Any

MEMORY = 9 * 2**30
"""Bytes of private memory a worker may have; beyond it an allocation fails and the model counts as failed."""
_MESSAGE = 600


def serve(connection: Connection) -> None:
    """Answer each (library, name) with its result line, until None comes."""
    _limit_memory()
    import torch

    torch.set_num_threads(1)
    while (task := connection.recv()) is not None:
        connection.send(run_one(*task))
        gc.collect()
        _return_memory()


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def _return_memory() -> None:
    """Give freed memory back to the system, which otherwise sees the largest model for good."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def run_one(library: str, name: str) -> dict[str, Any]:
    """Check one model in the first of its sizes that works.

    Returns:
        Its name, ``passed``, and the figures or the ``failure``; in a line that passed, ``tried`` says why the size
        before the one that worked did not.
    """
    from tests.zoo.check import Unfit, check

    room = importlib.import_module(f"tests.zoo.models_{library}")
    line: dict[str, Any] = {"name": name, "passed": False}
    unfit: dict[str, str] = {}
    try:
        for subject in room.subjects(name):
            try:
                return line | {"passed": True} | unfit | check(subject)
            except Unfit as reason:
                unfit = {"tried": str(reason)[:_MESSAGE]}
    except Exception as failure:  # every failure is a finding
        return line | {"failure": f"{type(failure).__name__}: {failure}"[:_MESSAGE]}
    return line | {"failure": unfit.get("tried", "no size to try")}
