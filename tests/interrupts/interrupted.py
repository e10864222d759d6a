"""Interrupt a call at a random moment: at an event of the interpreter, or when a timer rings."""

from __future__ import annotations

import inspect
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from tests.interrupts.calls import Case
from tests.interrupts.state import pictured, randomness, switches


class Moment:
    """Raises KeyboardInterrupt at the n-th event: a line of stripefold's, or the start of any Python function."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.events, self.where = at, 0, ""
        self._closing: FrameType | None = None
        self._entered: FrameType | None = None

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.events += 1
        if event == "exception" and arg[0] is GeneratorExit:
            self._closing = frame
        due = self.events >= self.at > 0 and not self.where
        # A generator that is dropped takes no signal of the system on its way in and out, only in what it does there.
        # Its way in looks like any other until the next event, which then is its way out.
        entered = event == "call" and bool(frame.f_code.co_flags & inspect.CO_GENERATOR)
        left = event == "return" and (frame is self._closing or (frame is self._entered and arg is None))
        self._entered = frame if entered else None
        if due and event != "exception" and not entered and not left:
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {event}"
            raise KeyboardInterrupt
        if due and entered:
            return self
        return self if "stripefold" in frame.f_code.co_filename or "contextlib" in frame.f_code.co_filename else None

    def run(self, action: Callable[[], Any]) -> bool:
        """Whether it was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            with _discarded(lambda: None):
                action()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


class Timer:
    """Raises KeyboardInterrupt some seconds after the start, as Ctrl-C does."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.where = seconds, f"after {seconds:.4f} s"

    def run(self, action: Callable[[], Any]) -> bool:
        """Whether it was interrupted."""

        def ring(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, ring)
        try:
            try:
                with _discarded(lambda: signal.setitimer(signal.ITIMER_REAL, 1e-4)):
                    signal.setitimer(signal.ITIMER_REAL, self.seconds)
                    action()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            return True
        finally:
            signal.signal(signal.SIGALRM, before)
        return False


@contextmanager
def _discarded(then: Callable[[], Any]) -> Iterator[None]:
    """What to do when Python discards an interrupt: in a callback of the collector or of a weak reference.

    A user whose Ctrl-C is lost there presses it once more.
    """
    before = sys.unraisablehook

    def hook(args: Any) -> None:
        if args.exc_type is KeyboardInterrupt:
            then()
        else:
            before(args)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def interrupted(case: Case, how: Moment | Timer) -> tuple[bool, list[str]]:
    """Whether the interrupt came before the call had ended, and every way in which it left something changed."""
    model = case.ready()
    torch.manual_seed(5)
    before, state, random_state = pictured(model), switches(), randomness()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ended: list[Any] = []
        hit = how.run(lambda: ended.append(case.call(model)))
    if not hit or ended:
        return False, []
    faults = []
    if switches() != state:
        faults.append(f"switches: {[(k, v, switches()[k]) for k, v in state.items() if switches()[k] != v]}")
    if pictured(model) != before and not (case.in_place and _names(model) == _names(_changed(case))):
        faults.append("the model")
    now = randomness()
    if pictured(model) == before and now != random_state and now != _after(case):
        faults.append("random state")
    return True, [f"{fault} ({how.where})" for fault in faults]


def _changed(case: Case) -> Any:
    """What the call makes of the model when nothing interrupts it."""
    model = case.ready()
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.call(model)
    return model


def _after(case: Case) -> Any:
    """The random state after the whole call: an interrupt may come when nothing is left to do but to return."""
    _changed(case)
    return randomness()


def _names(model: Any) -> list[Any]:
    """A model's tensors by name with their bits, and its modules: what a complete change ends with."""
    tensors = [(name, t.detach().numpy().tobytes()) for name, t in model.state_dict().items()]
    kinds = [(name, object.__getattribute__(m, "__class__"), m.training) for name, m in model.named_modules()]
    return [tensors, kinds, [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]]


def moments(case: Case, count: int, seed: int) -> list[Moment | Timer]:
    """Random moments in a call: half of them events of the interpreter, half of them on a clock."""
    counting = Moment()
    model = case.ready()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.call(case.ready())  # what is made once per process
        begun = time.perf_counter()
        case.call(case.ready())
        seconds = time.perf_counter() - begun
        counting.run(lambda: case.call(model))
    draw = random.Random(seed)
    events = [Moment(draw.randint(1, counting.events)) for _ in range(count // 2)]
    return [*events, *(Timer(draw.uniform(1e-5, seconds)) for _ in range(count - len(events)))]
