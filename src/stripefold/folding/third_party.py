"""Blocks of other libraries that bring their own re-parameterization: called, checked in float64, and only then kept.

``fuse``, ``reparameterize`` and ``switch_to_deploy`` are three names for one act, and their authors' code has traps:
new layers in float32 on the CPU whatever the block is, an assertion about the mode, a crash on the second call, a
kernel padded for one size only. So a method is called on a float64 copy, whose output on random input is compared with
the block's own; what passes is rounded once to the block's dtype and put in its place, what does not is kept and named.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from dataclasses import replace

from torch import nn

from stripefold.errors import FoldError
from stripefold.folding.reparameterize import TensorShapes, reparameterize_block
from stripefold.folding.trial_changes import Changes
from stripefold.layers.accepts import STAYS_IN_TRAINING, normalises
from stripefold.layers.rule import type_key
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import Foldable, FoldNote
from stripefold.modules.modules import replace_modules

METHODS = ("fuse", "reparameterize", "switch_to_deploy")


def _timm(room: str, method: str, names: str) -> dict[str, str]:
    return {f"timm.models.{room}.{name}": method for name in names.split()}


_BLOCKS = {
    **_timm("byobnet", "reparameterize", "RepVggBlock MobileOneBlock"),
    **_timm("efficientvim", "fuse", "ConvLayer1d ConvLayer2d EfficientViMBlock PatchMerging"),
    **_timm("efficientvit_msra", "fuse", "ConvNorm NormLinear"),
    **_timm("fastvit", "reparameterize", "MobileOneBlock RepConditionalPosEnc RepMixer ReparamLargeKernelConv"),
    **_timm("ghostnet", "reparameterize", "GhostBottleneckV3 GhostModuleV3"),
    **_timm("iformer", "fuse", "ConvNorm NormLinear RepCPE RepVitClassifier"),
    **_timm("lcnetv2", "reparameterize", "RepDepthwiseSeparable"),
    **_timm("levit", "fuse", "ConvNorm LinearNorm NormLinear"),
    **_timm("nextvit", "reparameterize", "NextConvBlock NextTransformerBlock"),
    **_timm("repghost", "reparameterize", "RepGhostModule"),
    **_timm("repvit", "fuse", "ConvNorm NormLinear RepVggDw RepVitClassifier"),
    **_timm("shvit", "fuse", "Conv2dNorm NormLinear Residual"),
    **_timm("tiny_vit", "fuse", "ConvNorm"),
}
# Whole models whose method walks over their parts, which are found here one by one.
_WALKERS = frozenset(f"timm.models.{name}" for name in ("repvit.RepVit", "shvit.SHViT", "iformer.IFormer"))


def register_block(block_type: type[nn.Module], method: str) -> None:
    """Teach ``fold(fuse=True)`` a block that can re-parameterize itself.

    The method is called without arguments on a float64 copy in eval mode. It changes the block in place, or returns the
    module that replaces it. A result that does not compute the same is not used, and the report says so.

    Args:
        block_type: the exact type; subclasses of it need their own call.
        method: name of the method, such as "switch_to_deploy".

    Raises:
        FoldError: not a module type, or it has no such method without arguments.
    """
    if not (isinstance(block_type, type) and issubclass(block_type, nn.Module)):
        raise FoldError(f"register_block needs an nn.Module type, got {block_type!r}")
    if not _is_offer(block_type, method):
        raise FoldError(
            f"register_block({block_type.__name__}, {method!r}): {block_type.__name__} has no method {method!r} that "
            "can be called without arguments"
        )
    _BLOCKS[type_key(block_type)] = method


def offered(module: nn.Module) -> str | None:
    """The method by which a block re-parameterizes itself, where its exact type is known, or None."""
    return _BLOCKS.get(type_key(type(module)))


def has_blocks(model: nn.Module) -> bool:
    """Whether any module, known or not, offers to re-parameterize itself."""
    return any(offered(module) or unknown_offer(module) for module in model.modules())


def unknown_offer(module: nn.Module) -> str | None:
    """The method that a module of an unknown type seems to offer, or None."""
    key = type_key(type(module))
    if key in _BLOCKS or key in _WALKERS or isinstance(module, Foldable):
        return None
    return next((method for method in METHODS if _is_offer(type(module), method)), None)


def _is_offer(block_type: type, method: str) -> bool:
    """Whether a class has that method and it needs nothing but the block."""
    function = inspect.getattr_static(block_type, method, None)
    if not inspect.isfunction(function):
        return False
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return len(required) == 1


class BlockFuser:
    """Re-parameterizes the known blocks of one model in place, each once, the outermost first.

    Args:
        shapes: what every block is given, by path.
        weights: learns what the numbers were before rounding.
        changes: learns what was replaced.
        kept: ``modules.modes.kept_in_training`` of the model.

    Attributes:
        notes: one row per block: merged, or kept and why.
    """

    def __init__(
        self, shapes: TensorShapes, weights: Float64Weights, changes: Changes, kept: Collection[nn.Module] = ()
    ) -> None:
        self._shapes, self._weights, self._changes, self._kept = shapes, weights, changes, kept
        self.notes: list[FoldNote] = []

    @property
    def changed(self) -> bool:
        """Whether any block was replaced."""
        return any(note.folded for note in self.notes)

    def run_(self, model: nn.Module) -> nn.Module:
        """Deploy every block, for eval mode; the root may be one itself.

        Returns:
            The root: the model itself, or what takes its place.
        """
        return self._below("", model)

    def undo_(self, model: nn.Module, why: str) -> nn.Module:
        """Put every block back: the model does not run without them, for the reason given."""
        model = self._changes.undo_(model)
        self.notes = [replace(note, folded=False, why=why) if note.folded else note for note in self.notes]
        return model

    def _below(self, path: str, root: nn.Module) -> nn.Module:
        """Deploy the outermost blocks of a part, then what is left inside each of them."""
        replacements: dict[nn.Module, nn.Module] = {}
        for name, block in _outermost(root, path):
            plain = self._deploy(name, block)
            if plain is not block:
                replacements[block] = plain
            self._inside(name, plain)
        return self._changes.replace_(root, replacements) if replacements else root

    def _inside(self, path: str, block: nn.Module) -> None:
        """A method may leave smaller blocks inside its own."""
        for name, child in list(block.named_children()):
            plain = self._below(f"{path}.{name}" if path else name, child)
            if plain is not child:
                replace_modules(block, {child: plain})  # within what is new

    def _deploy(self, name: str, block: nn.Module) -> nn.Module:
        method, kind = offered(block), type(block).__name__
        if method is None:
            why = (
                f"it has a method {unknown_offer(block)!r} that is not known here and was not called; "
                f"register_block({kind}, {unknown_offer(block)!r}) has it called and checked"
            )
            self.notes.append(FoldNote(name=name, kind=kind, folded=False, why=why))
            return block
        norm = next((path for path, part in block.named_modules() if normalises(part, self._kept)), None)
        if norm is not None:
            why = f"{norm or 'it'} in it {STAYS_IN_TRAINING}"
            self.notes.append(FoldNote(name=name, kind=kind, folded=False, why=why))
            return block
        result = reparameterize_block(block, method, self._shapes.get(name), self._weights)
        if isinstance(result, str):
            self.notes.append(FoldNote(name=name, kind=kind, folded=False, why=result))
            return block
        if result is not block:
            self.notes.append(FoldNote(name=name, kind=kind, folded=True, why=f"re-parameterized by its own {method}"))
        return result


def _outermost(root: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Blocks that are in no other block, each once, with their path; sites that stay are not entered."""
    inside: set[int] = set()
    for name, module in root.named_modules(prefix=path):
        if id(module) in inside:
            continue
        is_block = offered(module) is not None or unknown_offer(module) is not None
        if is_block or isinstance(module, Foldable):
            inside.update(id(part) for part in module.modules())
        if is_block:
            yield name, module
