"""Does the code of a module choose between one of its attributes and others? Asked about modules that do nothing.

An ``nn.Identity`` that did not run is no news by itself: many a model has one for a dropout that it was built without.
It is where the code takes it in place of something else: as a value (``self.norm if flag else self.skip``), out of a
list or dictionary, by its name, or by a call on a way that excludes another call.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Collection, Iterable, Iterator

from torch import nn

from stripefold.graph.operation_names import names
from stripefold.modules.mentions import ANY, aliases, code_names, codes_of

_GOES_ON = frozenset({"JUMP_FORWARD", "JUMP_ABSOLUTE", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"})
_ENDS = ("RETURN", "RAISE", "RERAISE")
# Ways to a child by its name or place, as values.
_BY_NAME = names("_modules children named_children get_submodule __getattr__ __dict__ vars eval exec")


def is_alternative(module: nn.Module, attribute: str, unit: nn.Module, ran: Collection[str]) -> bool:
    """Whether the code of a module may take ``unit`` in place of something that ran.

    Args:
        module: whose code it is.
        attribute: the child of the module that is the unit, or the list or dictionary that holds it.
        unit: what did not run.
        ran: the attributes of the module that ran, or in which something ran.
    """
    codes = codes_of(module)
    found = set().union(*(code_names(code) for code in codes))
    if not found.isdisjoint(aliases(module, unit)):
        return True
    if module._modules.get(attribute) is not unit:  # one of several in a list, a dictionary, a sequence
        return attribute in ran and (attribute in found or not ANY.isdisjoint(found)) and not _is_sorted(unit, found)
    if not _BY_NAME.isdisjoint(found):
        return True
    every = [each for code in codes for each in _nested(code)]
    own = {each.co_name for each in every if attribute in each.co_names}
    others = {each.co_name for each in every if not set(ran).isdisjoint(each.co_names)}
    return any(_takes(each, attribute) or _chooses(each, own | {attribute}, others.union(ran)) for each in every)


def _is_sorted(unit: nn.Module, found: Collection[str]) -> bool:
    """Whether the code asks of which type a module is: then it is passed over for what it is, on every way."""
    return type(unit).__name__ in found


def _takes(code: types.CodeType, attribute: str) -> bool:
    """Whether a function takes an attribute as a value."""
    steps = list(dis.get_instructions(code))
    loads = (k for k, step in enumerate(steps) if _loads(step) and step.argval == attribute)
    return any(_is_taken(steps, k) for k in loads) or any(_gets(steps, k, attribute) for k in range(len(steps)))


def _chooses(code: types.CodeType, own: Collection[str], others: Collection[str]) -> bool:
    """Whether a function names one of its own where it does not name one of the others, which it names elsewhere.

    Args:
        code: of the function.
        own: an attribute, and the functions that name it.
        others: attributes, and the functions that name them.
    """
    steps = list(dis.get_instructions(code))
    named = [
        (k, step.argval)
        for k, step in enumerate(steps)
        if step.opname.startswith("LOAD_") and step.opname != "LOAD_CONST" and isinstance(step.argval, str)
    ]
    loads = [k for k, name in named if name in own]
    rivals = [(k, name) for k, name in named if name in others and name not in own]
    if not loads or not rivals:
        return False
    ahead = _reached(steps)
    for one in loads:
        beside = {name for k, name in rivals if one not in ahead[k] and k not in ahead[one]}
        if beside - {name for k, name in rivals if one in ahead[k] or k in ahead[one]}:
            return True
    return False


def _gets(steps: list[dis.Instruction], k: int, attribute: str) -> bool:
    """Whether a step begins a ``getattr`` of the attribute, or of one whose name is not written down."""
    if steps[k].argval != "getattr" or not steps[k].opname.startswith("LOAD_"):
        return False
    texts = [step for step in steps[k + 1 : k + 4] if step.opname == "LOAD_CONST" and isinstance(step.argval, str)]
    return not texts or any(step.argval == attribute for step in texts)


def _loads(step: dis.Instruction) -> bool:
    return step.opname in ("LOAD_ATTR", "LOAD_METHOD")


def _is_taken(steps: list[dis.Instruction], k: int) -> bool:
    """Whether an attribute is loaded as a value: not to be called there and then, nor for an attribute of its own."""
    step, after = steps[k], steps[k + 1]
    calls = step.opname == "LOAD_METHOD" or (step.opname == "LOAD_ATTR" and (step.arg or 0) & 1 and _METHOD_BIT)
    asked = "NONE" in after.opname or (after.opname == "LOAD_CONST" and after.argval is None)  # is it None?
    return not (calls or asked or _loads(after))


_METHOD_BIT = "LOAD_METHOD" not in dis.opmap or dis.opmap["LOAD_METHOD"] > 255  # since 3.12 in LOAD_ATTR's argument


def _reached(steps: list[dis.Instruction]) -> list[set[int]]:
    """Per instruction, those that may come after it; a loop counts as one turn, and what is raised as never caught."""
    places = {step.offset: k for k, step in enumerate(steps)}
    reached: list[set[int]] = [set() for _ in steps]
    for k in reversed(range(len(steps))):
        for after in _next(steps, k, places):
            reached[k] |= {after} | reached[after]
    return reached


def _next(steps: list[dis.Instruction], k: int, places: dict[int, int]) -> Iterator[int]:
    step = steps[k]
    if step.opcode in {*dis.hasjrel, *dis.hasjabs}:
        target = places[step.argval]
        if target > k:
            yield target
    if step.opname not in _GOES_ON and not step.opname.startswith(_ENDS) and k + 1 < len(steps):
        yield k + 1


def _nested(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)
