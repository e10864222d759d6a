"""Names of attentions: how the zoo is found, extended and listed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from stripefold.attention.base import Acts, ChannelAttention, GateOperation
from stripefold.documents import shown
from stripefold.errors import AttachError

AttentionType = TypeVar("AttentionType", bound=type[ChannelAttention])

_ATTENTIONS: dict[str, type[ChannelAttention]] = {}


@dataclass(frozen=True, kw_only=True)
class AttentionRow:
    """One line of the zoo's table."""

    name: str
    squeeze: str
    excite: str
    options: tuple[str, ...]
    source: str
    gates: str


@overload
def register_attention(name: str) -> Callable[[AttentionType], AttentionType]: ...
@overload
def register_attention(name: str, cls: AttentionType) -> AttentionType: ...
def register_attention(name: str, cls: AttentionType | None = None) -> Any:
    """Make an attention known under a name, as a decorator or by a call.

    Args:
        name: what users write in ``attach(model, name)``: an identifier.
        cls: a final subclass of :class:`ChannelAttention`; without it a decorator is returned.

    Returns:
        The class, with ``cls.name`` set, or the decorator.

    Raises:
        AttachError: for a bad name, a class that is no attention, an abstract one, or a name that is taken.

    Example::

        @register_attention("halve")
        class Halve(ChannelAttention):
            def squeeze(self, x):
                return mean_pool(x, self.axis)

            def excite(self, descriptor):
                return descriptor / 2
    """
    if cls is None:
        return lambda decorated: register_attention(name, decorated)
    _check_registration(name, cls)
    cls.name = name
    _ATTENTIONS[name] = cls
    return cls


def _check_registration(name: object, cls: object) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise AttachError(f"an attention's name must be an identifier such as 'se', got {name!r}")
    if not isinstance(cls, type) or not issubclass(cls, ChannelAttention):
        raise AttachError(f"cannot register {cls!r} as {name!r}: it is no subclass of ChannelAttention")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise AttachError(f"cannot register {cls.__name__} as {name!r}: it does not define {missing}")
    known = _ATTENTIONS.get(name)
    if known is not None and known is not cls:
        raise AttachError(f"cannot register {cls.__name__}: the name {name!r} belongs to {known.__name__}")


def attention_names(*, acts: Acts | None = None, how: GateOperation | None = None) -> tuple[str, ...]:
    """The registered names, in alphabetical order.

    Args:
        acts: only those that gate "channels", or "positions".
        how: only those that "multiply", or "add".

    Example:
        >>> attention_names(acts="positions")
        ('position', 'spatial')
    """
    chosen = ((name, cls) for name, cls in _ATTENTIONS.items() if acts in (None, cls.acts) and how in (None, cls.how))
    return tuple(sorted(name for name, _ in chosen))


def attention_class(name: str) -> type[ChannelAttention]:
    """The class behind a name.

    Raises:
        AttachError: for an unknown name, with the known ones and the closest.
    """
    if isinstance(name, str) and name in _ATTENTIONS:
        return _ATTENTIONS[name]
    known = ", ".join(attention_names())
    raise AttachError(
        f"no attention {shown(name)}; known are {known}, and your own by register_attention(name, cls), in "
        "the command by --import FILE.py"
        f"{_suggestion(name, attention_names())}"
    )


def attention_options(name: str) -> tuple[str, ...]:
    """The options that an attention takes besides ``channels`` and ``axis``.

    Example:
        >>> attention_options("se")
        ('reduction', 'bias', 'gate')
    """
    return _options(attention_class(name))


def build_attention(name: str, channels: int, axis: int = 1, **options: Any) -> ChannelAttention:
    """Make one attention module.

    Args:
        name: a registered name.
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        **options: the attention's own, see :func:`attention_options`.

    Raises:
        AttachError: for an unknown name or option, or a bad value.

    Example:
        >>> import torch
        >>> build_attention("se", 64, reduction=8).excite_static(torch.full((64,), 0.1)).shape
        torch.Size([64])
    """
    cls = attention_class(name)
    valid = _options(cls)
    for option in options:
        if option not in valid:
            known = ", ".join(valid) or "none"
            raise AttachError(
                f"attention {name!r} has no option {option!r}; its options are: {known}{_suggestion(option, valid)}"
            )
    return cls(channels, axis=axis, **options)


def describe() -> tuple[AttentionRow, ...]:
    """The zoo as a table, one row for each registered attention."""
    return tuple(
        AttentionRow(
            name=name, squeeze=cls.squeezes, excite=cls.excites, options=_options(cls), source=cls.source,
            gates=cls.acts if cls.how == "multiply" else f"{cls.acts}, added",
        )
        for name, cls in sorted(_ATTENTIONS.items())
    )  # fmt: skip


def _options(cls: type[ChannelAttention]) -> tuple[str, ...]:
    parameters = inspect.signature(cls).parameters.values()
    return tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name != "axis")


def _suggestion(word: object, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5) if isinstance(word, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""
