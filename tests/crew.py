"""Processes that work as one, forked from a process that has imported everything: a crew costs little more than one.

Each is given what torchrun would give it, or SLURM, and leaves what it has to say in a file.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stripefold.errors import StripefoldError

ROOT = Path(__file__).parents[1]
WITH_TESTS = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
LIMIT = 90.0
"""Seconds after which a crew has to have ended by itself."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "False",
    }  # fmt: skip


def slurm(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(world), "SLURM_NODEID": "0",
        "SLURM_NTASKS_PER_NODE": str(world), "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def run_workers(module: str, *arguments: str, world: int = 2) -> None:
    """Run a module as processes that find each other as those of torchrun do; all have to end well."""
    port = free_port()
    shared = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": WITH_TESTS}
    command = [sys.executable, "-m", module, *arguments]
    workers = [
        subprocess.Popen(command, env=shared | torchrun(rank, world, port), stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    try:
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert not any(worker.returncode for worker in workers), "\n".join(errors)


def crew(
    run: Callable[[int], Any],
    world: int,
    folder: Path,
    *,
    launcher: Callable[..., dict[str, str]] = torchrun,
    silent: bool = False,
) -> list[Any]:
    """What each process gave or its error, "killed" or "hung", in the order of their ranks.

    With ``silent`` the last one is stopped on purpose, and not waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, started = free_port(), time.monotonic()
    children = [_forked(run, rank, world, folder, launcher(rank, world, port)) for rank in range(world)]
    ends: dict[int, int] = {}
    while len(ends) < world - silent and time.monotonic() - started < LIMIT:
        for child in children:
            if child not in ends and os.waitpid(child, os.WNOHANG)[0]:
                ends[child] = 1
        time.sleep(0.02)
    late = [child for child in children if child not in ends]
    for child in late:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    files = [folder / f"said-{rank}.json" for rank in range(world)]
    said = [json.loads(file.read_text()) if file.exists() else "killed" for file in files]
    return ["hung" if child in late else text for child, text in zip(children, said, strict=True)]


def _forked(run: Callable[[int], Any], rank: int, world: int, folder: Path, environment: dict[str, str]) -> int:
    child = os.fork()
    if child:
        return child
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo"} | (environment if world > 1 else {}))
    os.chdir(folder)
    try:
        said = run(rank)
    except StripefoldError as error:
        said = f"{type(error).__name__}: {error}"
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    (folder / f"said-{rank}.json").write_text(json.dumps(said))
    os._exit(0)
