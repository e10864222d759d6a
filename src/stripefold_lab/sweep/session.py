"""Ray, started here or joined, and left as it was found."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stripefold.errors import ConfigError

OBJECT_STORE_BYTES = 128 * 2**20
"""Runs pass nothing but their options through Ray's store; its own choice is a third of the memory."""
CONNECT_SECONDS = 10.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables are printed at verbosity 0 too
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths to data may be relative
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run keeps its own record
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a line of ours, and the whole text in errors/
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: the handler lets runs go on
}


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where runs are trained, and how many at once.

    Attributes:
        address: ``auto`` or ``host:port`` of a Ray cluster to join; None starts Ray on this machine and stops it again.
        parallel: At most so many runs side by side; None is as many as there is room for.
        cpus: CPUs of one run; None is its number of threads.
        gpus: GPUs of one run, such as 0.5; None is 1 where there are any and the runs may use them, else 0.

    Raises:
        ConfigError: If a number is out of its range, or the address is none, or one of Ray's client.
    """

    address: str | None = None
    parallel: int | None = None
    cpus: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.parallel is not None and self.parallel < 1:
            raise ConfigError(f"parallel is {self.parallel}; at least 1 run must be trained at a time")
        if self.cpus is not None and self.cpus <= 0:
            raise ConfigError(f"cpus is {self.cpus}; a run needs more than 0")
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus % 1)):
            raise ConfigError(f"gpus is {self.gpus}; give a part of one GPU, or a whole number")
        if self.address is not None and self.address.startswith("ray://"):
            raise ConfigError(
                f"address is {self.address!r}: a sweep does not run through Ray's client; start it on a machine of the "
                "cluster with address auto"
            )
        if self.address not in (None, "auto") and not str(self.address).rpartition(":")[2].isdigit():
            raise ConfigError(f"address is {self.address!r}; give auto, or HOST:PORT of the cluster's head")


def import_ray() -> Any:
    """Ray with Tune.

    Raises:
        ConfigError: If it is not installed, or without what Tune needs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.tune
    except ImportError as error:
        raise ConfigError(
            f"a sweep needs Ray Tune, which is not installed ({error}): pip install 'stripefold[sweep]'"
        ) from error
    return ray


class Interrupts:
    """Ctrl-C, seen even where Ray swallows it: an exception that comes up inside its callbacks is only printed."""

    def __init__(self) -> None:
        self._pressed = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        # A handler of the caller's own stays; other threads are not given signals.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _in_main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Raise what was swallowed.

        Raises:
            KeyboardInterrupt: If Ctrl-C was pressed.
        """
        if self._pressed:
            raise KeyboardInterrupt

    def _press(self, number: int, frame: object) -> None:
        self._pressed = True
        raise KeyboardInterrupt


@contextmanager
def ray_session(address: str | None, interrupts: Interrupts) -> Iterator[Any]:
    """Ray, started here (and stopped again, whatever happens) or joined (and only left).

    Args:
        address: As in ``Machines``.
        interrupts: What was pressed while Ray started.

    Raises:
        ConfigError: If Ray is not installed, or cannot be started or joined.
        KeyboardInterrupt: If Ctrl-C was pressed.
    """
    ray = import_ray()
    if ray.is_initialized():  # the caller's own, and nothing of it is ours to stop
        with _environment():
            yield ray
        return
    _check_reachable(address)
    with _environment(), _handlers():
        try:
            try:
                _start(ray, address)
            except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
                interrupts.check()
                raise ConfigError(_unreachable(address, error)) from error
            interrupts.check()
            _end_in_order()
            yield ray
        finally:
            ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        ray.init(address=address, **quiet)
    else:  # never a cluster that happens to run here
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)


def _check_reachable(address: str | None) -> None:
    """Ray itself goes on trying for ten minutes."""
    if address in (None, "auto"):
        return
    host, _, port = str(address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(_unreachable(address, error)) from error


def _unreachable(address: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if address is None:
        return f"Ray cannot be started on this machine: {reason}"
    if "AuthToken" in f"{error.__cause__}":
        return (
            f"the Ray cluster at {address!r} asks for its token: set RAY_AUTH_MODE=token where the token is "
            "(~/.ray/auth_token), or start the sweep on its head with address auto"
        )
    return f"no Ray cluster at {address!r}: {reason}; start one with `ray start --head`, or leave the address out"


@contextmanager
def _environment() -> Iterator[None]:
    """Our settings of Ray, and afterwards neither them nor what Ray set for itself."""
    before = {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "TUNE_"))}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(("RAY_", "TUNE_"))]:
            del os.environ[name]
        os.environ.update(before)


def _end_in_order() -> None:
    """On SIGTERM leave through every ``finally``; Ray's own handler prints a stack and aborts."""
    if _in_main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))


@contextmanager
def _handlers() -> Iterator[None]:
    """SIGTERM, which Ray takes over, is the caller's again afterwards."""
    if not _in_main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
