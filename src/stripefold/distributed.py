"""Collectives that propagate failures: an error on one rank ends every rank with the same message.

One process that raises while the others wait for it is a job that hangs. So what may fail is run through ``together``
or ``from_first``: all of them hear of a failure, and all of them raise. A process that is killed cannot say so; the
others then find its connection closed, or wait no longer than the group's timeout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch.distributed as dist

from stripefold.errors import StripefoldError

T = TypeVar("T")
# What gloo, NCCL and their store say of a peer that is gone or does not answer.
_LOST = ("closed by peer", "reset by peer", "timed out", "timeout", "broken pipe", "connection refused", "nccl", "gloo")


def run_on_all_ranks(run: Callable[[], T], group: Any, error: type[StripefoldError]) -> T:
    """Run on every process, each for itself; where any fails, all of them raise.

    Args:
        run: What to do.
        group: The processes; None stays in this one.
        error: What the others raise.

    Returns:
        What ``run`` gave here.

    Raises:
        StripefoldError: ``error``, with what another process said; or this one's own, whatever it is.
    """
    if group is None:
        return run()
    try:
        result = run()
    except Exception as failure:  # the other processes have to hear of it, whatever it is
        with suppress(error):  # which they do not if they are gone
            gathered(_described(failure), group, error)
        raise
    for rank, text in enumerate(gathered("", group, error)):
        if text:
            raise error(f"process {rank} failed, so all of them stop: {text}")
    return result


def broadcast_from_rank0(run: Callable[[], T], group: Any, error: type[StripefoldError]) -> T:
    """Run on the first process only; the others wait for what it gives, and raise where it raises.

    Args:
        run: What to do.
        group: The processes; None stays in this one.
        error: What the others raise.
    """
    if group is None:
        return run()
    failure: Exception | None = None
    content: list[Any] = [None, ""]
    if dist.get_rank(group) == 0:
        try:
            content = [run(), ""]
        except Exception as raised:  # as in together
            failure, content = raised, [None, _described(raised)]
    try:
        dist.broadcast_object_list(content, src=dist.get_global_rank(group, 0), group=group)
    except RuntimeError as lost:
        if failure is None:
            raise error(lost_text(lost)) from lost
    if failure is not None:
        raise failure
    if content[1]:
        raise error(f"process 0 failed, so all of them stop: {content[1]}")
    result: T = content[0]
    return result


def gathered(value: T, group: Any, error: type[StripefoldError]) -> list[T]:
    """What every process gives, in the order of their ranks, on all of them.

    Args:
        value: This process's; it is pickled.
        group: The processes; None is this one alone.
        error: What is raised where one of them is gone.
    """
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    try:
        dist.all_gather_object(values, value, group=group)
    except RuntimeError as lost:
        raise error(lost_text(lost)) from lost
    return values


def summed(values: Sequence[float], group: Any, error: type[StripefoldError]) -> list[float]:
    """The sums over all processes, the same bits on each, added in the order of the ranks.

    Args:
        values: This process's, as many on each.
        group: The processes; None is this one alone.
        error: What is raised where one of them is gone.
    """
    return [sum(column) for column in zip(*gathered(list(values), group, error), strict=True)]


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone or silent."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)


def lost_text(error: BaseException) -> str:
    """What to say then."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    said = re.sub(r"^\[\S+\] ", "", line).partition(". ")[0]
    return (
        "another process has ended, or did not answer in time: its own message says why, and this one cannot go on "
        f"without it ({said})"
    )


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
