"""From a seed to a network: its source text, and the network that the text builds."""

from __future__ import annotations

import itertools
import linecache
import random
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tests.grammar.gates import GATES, NOT_GATES
from tests.grammar.helpers import HOOKS, MODES, STATE
from tests.grammar.layers import PLAIN
from tests.grammar.paths import PATHS, READ, SHARED
from tests.grammar.piece import Piece
from tests.grammar.shapes import IN_PLACE, SHAPES
from tests.grammar.support import Call
from tests.grammar.types import HEADS, STEMS, TYPES
from tests.grammar.uses import USES

KINDS = (PATHS, SHARED, READ, STATE, HOOKS, MODES, SHAPES, IN_PLACE, GATES, NOT_GATES, TYPES, USES)
EVERY = {piece.name: piece for piece in itertools.chain(PLAIN, *KINDS, STEMS, HEADS)}
_CHOICE = re.compile(r"<<((?:(?!<<|>>).)*)>>", re.DOTALL)
_NUMBER = itertools.count()


@dataclass
class Draft:
    """A network while it is being written."""

    rng: random.Random
    channels: int = 3
    init: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    helpers: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)

    def add(self, piece: Piece, number: int) -> None:
        """Write one more step; channels follow."""
        out = self.rng.choice([4, 6, 8])
        divisor = self.rng.choice([d for d in range(1, self.channels + 1) if self.channels % d == 0])
        templates = (piece.init, piece.forward, piece.helpers, piece.after, piece.argument, *piece.calls)
        joined = self._chosen("\x00".join(templates))
        joined = joined.replace("@@", "\x01").replace("@", str(number)).replace("\x01", "@")
        for sign, value in (("$c", self.channels), ("$o", out), ("$g", divisor)):
            joined = joined.replace(sign, str(value))
        init, forward, helpers, after, argument, *calls = joined.split("\x00")
        self.init += init.splitlines()
        self.forward += forward.splitlines()
        self.helpers += [helpers] if helpers and helpers not in self.helpers else []
        self.after += after.splitlines()
        self.arguments += [argument] if argument else []
        self.calls += calls
        self.tags |= piece.tags
        self.channels = out if "$o" in piece.init else int(eval(piece.out, {"c": self.channels}))

    def _chosen(self, text: str) -> str:
        """Innermost choices first."""
        while (found := _CHOICE.search(text)) is not None:
            text = text[: found.start()] + self.rng.choice(found[1].split("|")) + text[found.end() :]
        return text


@dataclass(frozen=True)
class Network:
    """What a seed gives.

    Attributes:
        seed: Of everything.
        steps: Names of the pieces, from the stem to the head; a piece's number is its place.
        source: A module's text: ``build()`` and ``calls()`` are what the checks use.
        tags: Of all pieces.
    """

    seed: int
    steps: tuple[str, ...]
    source: str
    tags: frozenset[str]

    def load(self) -> Loaded:
        """Run the text: new classes, new globals, the same numbers."""
        name = f"grammar_{self.seed}_{next(_NUMBER)}"
        module = types.ModuleType(name)
        module.__file__ = f"<{name}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[module.__file__] = (len(self.source), None, lines, module.__file__)
        sys.modules[name] = module
        exec(compile(self.source, module.__file__, "exec"), module.__dict__)
        return Loaded(module, module.build(), module.calls())

    def __str__(self) -> str:
        return f"seed {self.seed}: {', '.join(self.steps)}\n{self.source}"


@dataclass
class Loaded:
    """A network with the module that its text became, and the ways to call it, the plain one first."""

    module: Any
    net: nn.Module
    calls: list[Call]

    def forget(self) -> None:
        """Let go of the module."""
        sys.modules.pop(self.module.__name__, None)
        linecache.cache.pop(self.module.__file__, None)


def network(seed: int, wanted: Sequence[str] = ()) -> Network:
    """The network of a seed.

    Args:
        seed: Of the choice of pieces and of every number.
        wanted: Only these pieces between stem and head, in this order; nothing is drawn.
    """
    rng = random.Random(seed)
    draft = Draft(rng)
    stem, head = _one_of(rng, STEMS), _one_of(rng, HEADS)
    middle = [EVERY[name] for name in wanted] or [_middle(rng) for _ in range(rng.randint(2, 6))]
    steps = [stem, *middle, head]
    for number, piece in enumerate(steps):
        draft.add(piece, number)
    single = rng.random() < 0.15 or "single" in draft.tags
    return Network(seed, tuple(piece.name for piece in steps), _source(draft, seed, single), frozenset(draft.tags))


def _one_of(rng: random.Random, choices: Sequence[Piece]) -> Piece:
    return rng.choices(choices, [piece.weight for piece in choices])[0]


def _middle(rng: random.Random) -> Piece:
    return _one_of(rng, PLAIN if rng.random() < 0.45 else rng.choice(KINDS))


def _source(draft: Draft, seed: int, single: bool) -> str:
    arguments = "".join(f", {argument}" for argument in draft.arguments)
    init, forward = (_indented(lines, 8) for lines in (draft.init, draft.forward))
    helpers = "\n\n".join(text.strip("\n") for text in draft.helpers)
    image = "torch.uint8" if "bytes" in draft.tags else "FLOAT"
    return f"""from tests.grammar.support import *

FLOAT = torch.float{32 if single else 64}
tap = Tap()
{helpers}


def image(n, size=6):
    return picture(n, size, {image})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
{init}

    def forward(self, x{arguments}):
{forward}


def build():
    torch.manual_seed({seed})
    net = prepared(Net(), FLOAT, {seed})
{_indented(draft.after, 4)}
    return net


def calls():
    return [{", ".join(_calls(draft))}]
"""


def _calls(draft: Draft) -> list[str]:
    calls = ["Call(image(4))", "Call(2 * image(4) + 1)"]
    calls += ["Call(image(2))"] if "batch" not in draft.tags else []
    calls += ["Call(image(4, 8))"] if "square" not in draft.tags else []
    for call in draft.calls:
        sized = "square" in draft.tags and "image(4, 8)" in call
        other_batch = "batch" in draft.tags and ("image(2)" in call or "image(1)" in call)
        calls += [] if sized or other_batch or call in calls else [call]
    # An attribute that one call sets stays set: these calls come last.
    return sorted(calls, key=lambda call: "attributes" in call)


def _indented(lines: Sequence[str], by: int) -> str:
    return "\n".join(" " * by + line for line in lines)
