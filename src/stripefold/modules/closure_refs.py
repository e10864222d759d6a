"""Which modules a model also reaches by a function that it keeps: a bound method, a ``functools.partial``, a closure.

``self.run = self.conv.forward`` goes on running that very layer whatever takes its place in the model. Modules
themselves, in attributes and in lists, are followed (``replace_modules``); what a function holds is not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from stripefold.modules.mentions import is_filled
from stripefold.modules.modules import CONTAINERS, is_helper

# The tree itself, and what torch keeps for the calls around ``forward``.
_OWN = frozenset({"_parameters", "_buffers", "_modules", "_compiled_call_impl"})
_NO_HOLD = "hooks"


def held_by_functions(model: nn.Module) -> dict[nn.Module, str]:
    """Module -> the attribute whose function holds it, as a dotted path; not what a module keeps of itself.

    The modules need not be the model's own: a closure that went along in a copy holds the original's.
    """
    found: dict[nn.Module, str] = {}
    tree = set(model.modules())
    for path, owner in model.named_modules():
        for key, value in vars(owner).items():
            if key in _OWN or _NO_HOLD in key:
                continue
            for module in _held(value, ()):
                # Of a module of the tree the parts are followed there; of another one nothing is.
                for part in [module] if module in tree else module.modules():
                    if part is not owner:
                        found.setdefault(part, f"{path}.{key}" if path else key)
    return found


def why_held(module: nn.Module, held: Mapping[nn.Module, str]) -> str | None:
    """Why nothing can take a module's place, in words that say what to do; None where nothing holds it."""
    if module not in held:
        return None
    return (
        f"{held[module]!r} holds it inside a function (a bound method, a functools.partial or a closure), which would "
        "go on running it as it is now, whatever stands in its place: keep the module itself there and call that"
    )


def _held(value: Any, above: tuple[Any, ...]) -> Iterator[nn.Module]:
    """The modules that the functions in an attribute hold; ``above``: what it lies in, so that no circle is gone."""
    if any(value is each for each in above):
        return
    above = (*above, value)
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, CONTAINERS):
        items = list(value)
    elif is_helper(value) and not isinstance(value, functools.partial):
        items = list(vars(value).values())
    else:
        for module in inside(value):
            if isinstance(module, nn.Module):
                yield module
            else:
                yield from _held(module, above)
        return
    for item in items:
        if not isinstance(item, nn.Module):  # a module as such is followed
            yield from _held(item, above)


def inside(value: Any) -> list[Any]:
    """What a function holds on to: its closure, its default arguments; nothing for any other value."""
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if is_filled(cell)]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return []
