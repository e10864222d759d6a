"""What every public call owes a network: right on all its calls or refused with a reason, and no mark on it."""

from __future__ import annotations

import copy
import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

import stripefold as sf
from tests.grammar.compare import COARSE, EXACT, SINGLE, distances, noise, outputs
from tests.grammar.network import Loaded, Network
from tests.grammar.state import State, ordinary_run

Verdict = Literal["right", "refused", "caught", "wrong", "foreign", "mark", "unseen", "blind"]
CONTROLS = 0.3
"""Share of the comparisons whose control is made."""
FAULTS = ("wrong", "foreign", "mark", "caught", "blind")


@dataclass(frozen=True)
class Finding:
    """What one public call did with one network.

    Attributes:
        call: The public call and how it was made.
        verdict: "right"; "refused" by stripefold; "caught": wrong, and refused by the final comparison only; "wrong"
            on a call that may be made; "foreign": an exception that is not stripefold's; "mark": the user's network or
            something behind it changed; "unseen": wrong on a way around a layer that one example cannot show; "blind":
            the comparison would not have noticed a wrong weight.
        detail: In words.
        done: How many layers, gates or blocks were folded, attached, seen or baked.
        left: How many were left out with a reason.
    """

    call: str
    verdict: Verdict
    detail: str = ""
    done: int = 0
    left: int = 0


@dataclass
class Subject:
    """A network under test, with what it computes on all its calls."""

    network: Network
    truth: list[list[Tensor]]
    ordinary: set[Any]
    tolerance: float
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def of(cls, network: Network) -> Subject:
        """Run the network as its user would."""
        with loaded_from(network) as loaded:
            truth = [] if "lazy" in network.tags else outputs(loaded.net, loaded.calls)
        with loaded_from(network) as loaded:
            ordinary = ordinary_run(loaded)
        single = "FLOAT = torch.float32" in network.source
        tolerance = COARSE if "coarse" in network.tags else SINGLE if single else EXACT
        return cls(network, truth, ordinary, tolerance)

    def note(self, call: str, verdict: Verdict, detail: str = "", *, done: int = 0, left: int = 0) -> None:
        """Write down a finding."""
        self.findings.append(Finding(call, verdict, detail, done, left))

    def rng(self, call: str) -> random.Random:
        """The draws of one call: the same whatever else is checked."""
        return random.Random(f"{self.network.seed} {call}")

    def compare(self, call: str, made: nn.Module, against: Any, loaded: Loaded, **counts: int) -> bool:
        """Hold a result against outputs (or a network) on all calls, with its control; note what comes of it."""
        try:
            truth = against if isinstance(against, list) else outputs(against, loaded.calls)
            found = outputs(made, loaded.calls)
        except sf.errors.StripefoldError as problem:
            self.note(call, "refused", f"when the result runs: {_line(problem)}", **counts)
            return False
        except Exception as problem:
            self.note(call, "wrong", f"the result raises {told(problem)}", **counts)
            return False
        apart = distances(found, truth)
        if max(apart) > self.tolerance:
            self._note_wrong(call, apart, loaded, counts)
            return False
        if self.rng(f"control {call}").random() < CONTROLS and not self._sees(made, found, loaded):
            self.note(call, "blind", **counts)
            return False
        self.note(call, "right", **counts)
        return True

    def _note_wrong(self, call: str, apart: list[float], loaded: Loaded, counts: dict[str, int]) -> None:
        with loaded_from(self.network) as fresh:
            own = noise(fresh.net, fresh.calls)
        if max(apart) < 1000 * own:
            self.note(call, "right", f"within its own noise of {own:.1g}", **counts)
            return
        hidden = "bypass" in self.network.tags and apart[0] <= self.tolerance and "all examples" not in call
        worst = max(range(len(apart)), key=apart.__getitem__)
        about = loaded.calls[worst]
        given = {**about.arguments, **about.attributes}
        what = {name: tuple(value.shape) if isinstance(value, Tensor) else value for name, value in given.items()}
        told = f"off by {apart[worst]:.2g} on call {worst} {what or tuple(about.x.shape)}; call 0 {apart[0]:.1g}"
        self.note(call, "unseen" if hidden else "wrong", told, **counts)

    def _sees(self, made: nn.Module, found: list[list[Tensor]], loaded: Loaded) -> bool:
        """Control: a wrong weight of the result shows on some call."""
        copied = copy.deepcopy(made)
        weights = [p for p in copied.parameters() if p.is_floating_point() and p.numel()]
        self.rng("control").shuffle(weights)
        with torch.no_grad():
            for weight in weights[:6]:
                weight.mul_(1.5).add_(0.3)
                if max(distances(outputs(copied, loaded.calls), found)) > self.tolerance:
                    return True
        return not weights


@contextmanager
def loaded_from(network: Network) -> Iterator[Loaded]:
    """The network, its module known to Python meanwhile."""
    loaded = network.load()
    try:
        yield loaded
    finally:
        loaded.forget()


def attempt(
    subject: Subject, call: str, loaded: Loaded, act: Callable[[], Any], *, draws: bool = False
) -> tuple[bool, Any]:
    """Make a public call, and see that it raises nothing foreign and leaves no mark."""
    state = State(loaded)
    result, good = None, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result, good = act(), True
    except sf.errors.VerifyError as problem:
        subject.note(call, "refused" if "verify" in call else "caught", _line(problem))
    except sf.errors.StripefoldError as problem:
        subject.note(call, "refused", _line(problem))
    except Exception as problem:
        subject.note(call, "foreign", told(problem))
    changed = state.differences(loaded, subject.ordinary, draws=draws)
    if changed:
        subject.note(call, "mark", "; ".join(changed[:3]))
    return good, result


def _line(problem: Exception) -> str:
    return (str(problem).splitlines() or [""])[0][:220]


def told(problem: Exception) -> str:
    """The exception in one line, with the last line of stripefold's that it came through."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if "/stripefold/" in f.filename]
    where = f" at {frames[-1].filename.rpartition('/stripefold/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(problem).__name__}: {_line(problem)}{where}"


def faults(findings: Sequence[Finding]) -> list[Finding]:
    """Those that break a promise."""
    return [finding for finding in findings if finding.verdict in FAULTS]
