"""The processes of a job: rank and world size, and the process group they form."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from stripefold.errors import ConfigError

GLOO, GLOO_AND_NCCL = "gloo", "cpu:gloo,cuda:nccl"
TIMEOUT = 600.0
"""Seconds after which a process that waits for the others gives up."""


@dataclass(frozen=True, kw_only=True)
class ProcessRank:
    """Where a process stands among those of its job.

    Attributes:
        rank: Its number, from 0.
        world: How many there are.
        local_rank: Its number on its machine, which is also that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and decides."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """This process's part of ``count`` things in a row; the parts in the order of the ranks are all of them.

        >>> [list(ProcessRank(rank=rank, world=2).part(5)) for rank in (0, 1)]
        [[0, 1], [2, 3, 4]]
        """
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)


ALONE = ProcessRank()
_met: list[ProcessRank] = []
"""This process's place in each group that it has met the others in, one after the other."""


def torchrun_place() -> ProcessRank | None:
    """Where torchrun has put this process; None for one that it did not start."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return None
    rank, world, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return ProcessRank(rank=rank, world=world, local_rank=local_rank)


@contextmanager
def joined(place: ProcessRank, *, backend: str = GLOO, timeout: float = TIMEOUT) -> Iterator[Any]:
    """The group of all processes, None for one alone; a group that is there already is used, and stays.

    Args:
        place: Of this process. ``MASTER_ADDR`` and ``MASTER_PORT`` say where they meet, as torchrun sets them.
        backend: ``GLOO``, or ``GLOO_AND_NCCL`` for tensors on GPUs.
        timeout: Seconds that one waits for another before it gives up.

    Raises:
        ConfigError: This torch cannot do that, the group that is there is another one, or not all have come in time.
    """
    if place.world == 1:
        yield None
        return
    if not dist.is_available() or not dist.is_gloo_available():
        raise ConfigError(
            f"{place.world} processes talk to each other through gloo, which this build of torch ({torch.__version__}) "
            "lacks: run one process, or install a torch that has it"
        )
    mine = not dist.is_initialized()
    if mine:
        _meet(place, backend, timeout)
    elif dist.get_world_size() != place.world:
        raise ConfigError(
            f"torch.distributed is initialised with {dist.get_world_size()} processes, and {place.world} are asked "
            "for: leave the initialisation to stripefold, or make the numbers agree"
        )
    try:
        yield dist.group.WORLD
        if mine:
            dist.barrier()  # the first process is the last to leave: it keeps the place where they meet
    finally:
        if mine:
            dist.destroy_process_group()


def _meet(place: ProcessRank, backend: str, timeout: float) -> None:
    if backend == GLOO_AND_NCCL:
        if place.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {place.rank} is number {place.local_rank} on its machine, which has "
                f"{torch.cuda.device_count()} GPUs: start no more processes than there are"
            )
        torch.cuda.set_device(place.local_rank)
    from torch.distributed.distributed_c10d import PrefixStore  # not in every build of torch

    limit = timedelta(seconds=timeout)
    try:
        # Under a name of its own: a second run in the same processes must not read what the first one left there.
        store = PrefixStore(f"stripefold/{len(_met)}", _store(place, limit))
        _met.append(place)
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=limit)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConfigError(
            f"process {place.rank} of {place.world} did not meet the others at {where} within {timeout:.0f} s "
            f"({_first_line(error)}): see that all of them were started, and that the address can be reached"
        ) from error


@functools.cache
def _store(place: ProcessRank, limit: timedelta) -> Any:
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://", place.rank, place.world, timeout=limit))[0]


def waiting_group(group: Any) -> Any:
    """The same processes, for waits that may take long, such as for what only the first one does.

    One that dies is noticed here too, as its connections close.

    Args:
        group: All of them; None for one alone.
    """
    return None if group is None else dist.new_group(backend=GLOO, timeout=timedelta(days=7))


def leave(status: int) -> NoReturn:
    """End this process, after its exit handlers.

    One that has met others ends without taking Python down first. DTensor's caches keep the group of an FSDP run, so
    gloo's threads still run then; one that asks for the interpreter while that goes down aborts the process (Python
    before 3.14), and a job that has done all its work is reported as failed.

    Args:
        status: 0, or what has gone wrong.
    """
    if not _met:
        sys.exit(status)
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
