"""Options that run files of the user's own: networks (``--model``), and what they register (``--import``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stripefold.errors import ConfigError
from stripefold_lab.users_files import users_function

if TYPE_CHECKING:
    from torch import nn

    from stripefold_lab.training.config import TrainConfig

OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FILE.py:FUNCTION",
        help="A network of your own, in place of a name: what the function returns. Runs the file.",
    ),
]


# ``app`` runs the files before the command starts: no command reads its value.
Imports = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE.py",
        help="Run a file that registers attentions, rules or branch blocks of your own; may be given again.",
    ),
]


def check_attention_name(config: TrainConfig) -> None:
    """Refuse an attention that nobody registered, before anything is loaded.

    Raises:
        AttachError: With the names there are.
    """
    from stripefold.attention.registry import attention_class

    if config.form != "none":
        attention_class(config.attention)


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
