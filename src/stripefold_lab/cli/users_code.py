"""Functions from files of the user's own, which are run: data for ONNX files, and networks (``--model``)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FILE.py:FUNCTION",
        help="A network of your own, in place of a name: what the function returns. Runs the file.",
    ),
]


def chosen_source(named: str | None, own: str | None, what: str) -> str:
    """What a command is about: its argument, or the network of ``--model``.

    Args:
        named: The argument.
        own: What ``--model`` said.
        what: The argument's name, for the message.

    Raises:
        ConfigError: Neither was given, or both.
    """
    if (named is None) == (own is None):
        raise ConfigError(f"give {what} or --model FILE.py:FUNCTION" + ("" if named is None else ", not both"))
    if own is not None and not is_users(own):
        raise ConfigError(f"--model {own!r}: give FILE.py:FUNCTION, such as net.py:create")
    return named if own is None else own  # type: ignore[return-value]


def is_users(word: str) -> bool:
    """Whether a word names a function in a file of the user's.

    >>> is_users("net.py:create"), is_users("resnet20")
    (True, False)
    """
    file, _, function = word.rpartition(":")
    return file.endswith(".py") and function.isidentifier()


def users_model(word: str) -> nn.Module:
    """The network that a function of the user's returns; torch's seed is 0 before.

    Args:
        word: ``FILE.py:FUNCTION``.

    Raises:
        ConfigError: There is no such function, it fails, or it returns something else.
    """
    import torch
    from torch import nn

    file, _, function = word.rpartition(":")
    create = users_function(Path(file), function)
    torch.manual_seed(0)
    try:
        model = create()
    except Exception as error:  # a user's function may raise anything
        raise ConfigError(f"{word} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{word} returned {type(model).__name__}; it has to return the network, a torch.nn.Module")
    return model


def users_function(path: Path, name: str) -> Callable[[], Any]:
    """A function from a file of the user's, which is run.

    Raises:
        ConfigError: no such file, no such function, or the file cannot be run.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    print(f"stripefold: running {path}", file=sys.stderr)
    spec = importlib.util.spec_from_file_location(f"users_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up
    sys.path.insert(0, str(path.resolve().parent))  # as for a script: its neighbours can be imported
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        raise ConfigError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{path} has no function {name!r}")
    return found
