"""What one gate is made of: the options of ``attach``, checked by name before anything happens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

from torch import Tensor

from stripefold.attention.registry import attention_class
from stripefold.errors import AttachError

GateForm = Literal["static", "dynamic"]
GateInit = Literal["paper", "identity"]
PsiStart = Literal["live", "reference"]
Psi = float | Tensor | Literal["random"] | None


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How the gates of a site are built.

    Attributes:
        attention: a name from the zoo (``attention_names()``).
        form: "static" (ASR: learnable psi, folds) or "dynamic" (the ordinary attention, does not fold).
        repeats: number of static gates in a row (the paper's delta).
        psi: start of psi: a number for every entry, a tensor of the descriptor's shape, "random" (standard normal), or
            None for the attention's own (0.1 as in the reference code; 1 for "scale").
        init: "paper", or "identity": every static gate is divided by its starting scale.
        freeze: which of "psi" and "theta" do not train.
        start: "live" (psi reaches hidden units of every static gate), or "reference": as drawn, dead gates included.
        options: keyword options of the attention class, such as ``reduction``.
    """

    attention: str = "se"
    form: GateForm = "static"
    repeats: int = 1
    psi: Psi = None
    init: GateInit = "paper"
    freeze: tuple[str, ...] = ()
    start: PsiStart = "live"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", _parts(self.freeze))
        attention_class(self.attention)
        _one_of("form", self.form, get_args(GateForm))
        _one_of("init", self.init, get_args(GateInit))
        _one_of("start", self.start, get_args(PsiStart))
        for part in self.freeze:
            _one_of("freeze", part, ("psi", "theta"))
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or self.repeats < 1:
            raise AttachError(f"repeats={self.repeats!r}: give a whole number of gates, 1 or more")
        if not (self.psi is None or isinstance(self.psi, (int, float, Tensor)) or self.psi == "random"):
            raise AttachError(f"psi={self.psi!r}: give a number, a tensor, 'random' or None")
        if not isinstance(self.options, Mapping) or not all(isinstance(name, str) for name in self.options):
            raise AttachError(f"attention_options={self.options!r}: give a mapping of the attention's keyword options")
        self._check_dynamic()

    def _check_dynamic(self) -> None:
        if self.form == "static":
            return
        given = [name for name, default in _STATIC_ONLY.items() if getattr(self, name) not in default]
        if isinstance(self.psi, Tensor) or given:
            raise AttachError(
                f"form='dynamic' computes its scale from the input: {', '.join(given) or 'psi'} has a meaning only "
                "with form='static'"
            )

    def with_options(self, changes: Mapping[str, Any], where: str) -> GateConfig:
        """A copy with the options of one ``where`` entry.

        Raises:
            AttachError: an option that does not exist, or a bad value.
        """
        known = [_SPOKEN.get(f.name, f.name) for f in fields(self)]
        for name in changes:
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise AttachError(f"where[{where!r}] has no option {name!r}; its options are {', '.join(known)}{hint}")
        fields_of = {spoken: name for name, spoken in _SPOKEN.items()}
        try:
            return replace(self, **{fields_of.get(name, name): value for name, value in changes.items()})
        except AttachError as error:
            raise AttachError(f"where[{where!r}]: {error}") from error


def check_entry(glob: object, options: object) -> None:
    """See that one entry of a mapping given as ``where`` is a glob and its options.

    Raises:
        AttachError: it is something else.
    """
    if not isinstance(glob, str) or not isinstance(options, Mapping):
        raise AttachError(f"where[{glob!r}] = {options!r}: expected a mapping of options such as {{'attention': 'se'}}")


_SPOKEN = {"options": "attention_options"}
"""Field -> the name under which ``attach`` takes it."""
_STATIC_ONLY: dict[str, tuple[Any, ...]] = {
    "repeats": (1,), "init": ("paper",), "freeze": ((),), "psi": (None,), "start": ("live",),
}  # fmt: skip


def _parts(freeze: object) -> tuple[Any, ...]:
    if isinstance(freeze, str):
        return (freeze,)
    if isinstance(freeze, Iterable):
        return tuple(freeze)
    raise AttachError(f"freeze={freeze!r}: give 'psi', 'theta' or a sequence of both")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(repr(item) for item in allowed)
        raise AttachError(f"{name}={value!r}: expected one of {choices}")
