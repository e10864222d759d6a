"""One question to a layer of a model: may it take this scale or shift on this side, and if not, why not?"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from stripefold.errors import FoldError
from stripefold.graph.absorption import Accepts, Side
from stripefold.graph.operation_table import Change
from stripefold.layers.probe import check_affine, probe, probed_side
from stripefold.layers.refusal import altered, refusal, refused_by_rule, tied_to
from stripefold.layers.rule import Rule, given_at_most, rule_for
from stripefold.layers.shift import shift_key, shift_refusal
from stripefold.modules.closure_refs import held_by_functions, why_held
from stripefold.modules.foldable import Foldable
from stripefold.modules.modes import kept_in_training
from stripefold.modules.modules import tensor_owners
from stripefold.modules.peft_layers import under_adapters
from stripefold.modules.writable import why_not_writable

STAYS_IN_TRAINING = (
    "stays in training mode when the model is used for inference, and normalises by each batch's own statistics"
)


class Acceptance:
    """Answers for one model which layer takes what on which side (an ``Accept`` of ``graph.absorption``).

    Args:
        model: only read; ask again with a new object once it has changed.
        training: the sides must be exact in training mode, too (the input side of a BatchNorm is not).
    """

    def __init__(self, model: nn.Module, *, training: bool = False) -> None:
        self._modules = dict(model.named_modules())
        self._owners = tensor_owners(model)
        self._training = training
        self._kept = kept_in_training(model)
        self._adapted = under_adapters(model)
        self._held = held_by_functions(model)
        self._known: dict[tuple[str, Side, Change], Accepts | str] = {}

    def __call__(self, name: str, side: Side, change: Change = "scale") -> Accepts | str:
        """How the layer of this path takes a change on this side, or why it cannot."""
        key = name, side, change
        if key not in self._known:
            self._known[key] = self._judged(name, side, change)
        return self._known[key]

    def why_no_source(self, name: str) -> str | None:
        """Why a layer is no affine map of single channels with constant numbers, to be merged away; or None."""
        layer = self._modules[name]
        rule = rule_for(layer)
        numbers = None if rule is None else rule.affine_map(layer)
        if rule is None or numbers is None:
            return "it is no affine map of single channels"
        if isinstance(numbers, str):
            return numbers
        if normalises(layer, self._kept):
            return f"it {STAYS_IN_TRAINING}"
        reason = self._adapted.get(layer) or altered(layer) or why_held(layer, self._held)
        if reason is not None:
            return f"{name!r}: {reason}"
        try:
            check_affine(layer, rule)
        except FoldError as error:
            return str(error)
        return None

    def _judged(self, name: str, side: Side, change: Change) -> Accepts | str:
        layer = self._modules[name]
        rule = rule_for(layer)
        if rule is None or isinstance(layer, Foldable):
            return refusal(layer) or "it carries gates of its own"
        reason = self._adapted.get(layer) or self._refused(layer, rule, side, change)
        keys = _keys(rule, side, change)
        reason = reason or tied_to(layer, keys, name, self._owners) or unwritable(layer, keys)
        if reason is not None:
            return reason
        try:
            probe(layer, rule, probed_side(side, change))
        except FoldError as error:
            return str(error)
        if side == "output":
            return Accepts(
                axis=rule.axis, given=given_at_most(rule), activated=not rule.commutes and not _lets_pass(layer)
            )
        eval_only = rule.input_eval_only and change == "scale"
        return Accepts(axis=rule.axis_on(side), given=given_at_most(rule), eval_only=eval_only)

    def _refused(self, layer: nn.Module, rule: Rule, side: Side, change: Change) -> str | None:
        """What the layer's own state and its rule say."""
        if change == "shift":
            return altered(layer) or (shift_refusal(layer, rule) if side == "output" else _no_input_shift(layer, rule))
        if side == "output":
            return refusal(layer)
        if rule.input is None:
            return f"{type(layer).__name__} has no input side: a scale of its input does not fold into it"
        if rule.input_eval_only and (self._training or layer in self._kept):
            return "in training its batch statistics undo a scale of its input"
        # The tensors that take it are those of the output side: a norm without gain, or one that is refused, has none.
        return altered(layer) or rule.input_refuse(layer) or refused_by_rule(layer, rule)


def is_batchnorm(module: nn.Module) -> bool:
    """Whether a module normalises by each batch's own statistics in training mode, by its rule."""
    rule = rule_for(module)
    return rule is not None and rule.norm and rule.input_eval_only


def normalises(module: nn.Module, kept: Iterable[nn.Module]) -> bool:
    """Whether this is a BatchNorm of those ``kept`` in training mode, whose statistics are no constants."""
    return is_batchnorm(module) and module in kept


def is_affine_map(module: nn.Module) -> bool:
    """Whether a module is, by its rule, a BatchNorm or another affine map of every channel by itself."""
    rule = rule_for(module)
    return rule is not None and not isinstance(module, Foldable) and rule.affine_map(module) is not None


def unwritable(layer: nn.Module, keys: Iterable[str]) -> str | None:
    """Why one of these tensors of a layer cannot be overwritten in place, or None: nothing may fail halfway."""
    for key in keys:
        tensor = getattr(layer, key, None)
        reason = why_not_writable(tensor) if isinstance(tensor, Tensor) else None
        if reason is not None:
            return f"its {key!r} {reason}"
    return None


def _keys(rule: Rule, side: Side, change: Change) -> list[str]:
    """The tensors that a change of this side writes to."""
    if change == "scale":
        return list(rule.side(side))
    key = shift_key(rule)
    return list(rule.input_shift or {}) if side == "input" else [] if key is None else [key]


def _no_input_shift(layer: nn.Module, rule: Rule) -> str | None:
    if rule.input_shift is None:
        return f"{type(layer).__name__} takes no shift of its input"
    return rule.input_shift_refuse(layer)


def _lets_pass(layer: nn.Module) -> bool:
    """Whether a layer that may carry an activation carries none: all of its parts are identities."""
    parts = list(layer.children())
    return bool(parts) and all(isinstance(part, nn.Identity) for part in parts)
