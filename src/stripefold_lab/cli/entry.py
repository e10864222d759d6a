"""From `sys.argv` to an exit status: the one place where errors become lines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from stripefold.errors import StripefoldError, TrainingError, VerifyError, one_line
from stripefold_lab.stdout import LossyOutput, lossy_stdout

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
EXTRA_OF = {
    "typer": "cli",
    "rich": "cli",
    "yaml": "cli",
    "pytorch_lightning": "train",
    "torchmetrics": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "lightning_fabric": "train",
    "lightning_utilities": "train",
    "pycocotools": "train",
    "PIL": "vision",
    "timm": "vision",
    "torchvision": "vision",
    "matplotlib": "plot",
    "plotly": "plot",
    "jinja2": "plot",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "filelock": "train",
    "onnx_ir": "export",
    "ray": "sweep",
    "scipy": "sweep",
    "pyarrow": "sweep",
}


class CommandInterruptedError(Exception):
    """Ctrl-C while a command ran; the message says what is kept."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows the command's name; `sys.argv[1:]` where not given.

    Returns:
        The exit status: 0, or non-zero after one line on standard error.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    _accept_any_sign()
    try:
        from stripefold_lab.cli.app import run

        with lossy_stdout() as output:
            status = run(given)
        line = "" if output is None else _unwritten(output)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        status, line = explain(error)
    if line:
        print(f"stripefold: {line}", file=sys.stderr)
        status = status or FAILED
        _tell_torchrun(line)
    return status


def _tell_torchrun(line: str) -> None:
    """Leave the line where torchrun looks for the reason: its own report then ends with it, not with advice."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        about = {"py_callstack": f"stripefold: {line}", "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": about}}), encoding="utf-8")


def _accept_any_sign() -> None:
    """On a terminal that knows ASCII alone a sign outside of it is shown by its number, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def command() -> NoReturn:
    """Run the command as a process of its own, and end that process with its exit status."""
    status = main()
    processes = sys.modules.get("stripefold_lab.processes")  # not imported for its sake: that takes torch
    if processes is not None:
        processes.leave(status)
    sys.exit(status)


def _unwritten(output: LossyOutput) -> str:
    """What a user must know of what could not be printed; nothing where they read no further (`... | head -1`)."""
    if output.error is None:
        return ""
    # What is still in the buffer goes nowhere: Python would try again when it ends.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    if isinstance(output.error, BrokenPipeError):
        return ""
    reason = output.error.strerror or output.error
    return f"cannot write to standard output: {reason}; everything else was done"


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit status and the one line for an error.

    >>> explain(KeyboardInterrupt())
    (130, 'interrupted')
    """
    if isinstance(error, KeyboardInterrupt | CommandInterruptedError) or type(error).__name__ == "Abort":
        return INTERRUPTED, one_line(str(error)) or "interrupted"
    if isinstance(error, StripefoldError):
        return FAILED if isinstance(error, TrainingError | VerifyError) else WRONG_USE, one_line(str(error))
    if isinstance(error, ModuleNotFoundError):
        return WRONG_USE, _missing(error)
    if hasattr(error, "format_message"):  # the parser's own errors; their class moves between versions of typer
        where = getattr(getattr(error, "ctx", None), "command_path", None) or "stripefold"
        return WRONG_USE, f"{one_line(error.format_message())} ({where} --help)"
    if isinstance(error, OSError):
        return FAILED, one_line(str(error))
    return FAILED, f"unexpected {type(error).__name__}: {one_line(str(error))} (--debug shows where)"


def _missing(error: ModuleNotFoundError) -> str:
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(module)
    if extra is None:
        return one_line(str(error))
    return f"{module} is not installed, this command needs it: pip install 'stripefold[{extra}]'"
