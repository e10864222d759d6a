"""Float64 copies of merged weights: one record of every tensor that folding changes, written and rounded once.

A LayerScale goes into a layer, then a BatchNorm does: in bfloat16 two roundings would be seen. Until ``write_`` the
model's own tensors hold what they held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stripefold.algebra.rounding import FOLD_WIDER, why_unfit
from stripefold.modules.writable import check_writable


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A merged tensor that its type does not hold.

    Attributes:
        layer: whose it is.
        key: its attribute.
        why: the end of a sentence about it, see ``rounding.why_unfit``.
    """

    layer: nn.Module
    key: str
    why: str

    def __str__(self) -> str:
        return f"{self.key} {self.why}"

    def refusal(self, paths: Mapping[nn.Module, str]) -> str:
        """The same with the layer's path and what to do."""
        return f"cannot fold into {paths[self.layer]!r}: its {self}. {FOLD_WIDER}"


class Float64Weights:
    """What the tensors of a model are before rounding, where folding and merging have made them.

    Args:
        keep: remember kernels once they are written, for what is merged into them later. Else a record of a large
            model takes no more room than what was folded last, and the vectors.
    """

    def __init__(self, *, keep: bool = True) -> None:
        self._keep = keep
        self._exact: dict[nn.Module, dict[str, Tensor]] = {}
        self._written: dict[tuple[nn.Module, str], bool] = {}  # whether something is multiplied by it

    def fork(self) -> Float64Weights:
        """A record of its own that starts from this one: for what may turn out not to fit."""
        other = Float64Weights(keep=self._keep)
        other.adopt(self)
        return other

    def adopt(self, other: Float64Weights) -> None:
        """Become what another record is."""
        self._exact, self._written = dict(other._exact), dict(other._written)

    def read(self, layer: nn.Module, key: str) -> Tensor | None:
        """A tensor of a layer in float64, or complex128, as exactly as it is known; None where there is none."""
        known = self._exact.get(layer, {}).get(key)
        own = getattr(layer, key, None)
        if known is not None or not isinstance(own, Tensor):
            return known
        return own.detach().to(torch.complex128 if own.is_complex() else torch.float64)

    def known(self, layer: nn.Module) -> Mapping[str, Tensor]:
        """The tensors of a layer that are known better than they stand in it."""
        return self._exact.get(layer, {})

    def note(self, layer: nn.Module, key: str, exact: Tensor) -> None:
        """Say what a tensor was before it was rounded."""
        self._exact[layer] = {**self._exact.get(layer, {}), key: exact.detach()}  # forks share what is there

    def set(self, layer: nn.Module, tensors: Mapping[str, Tensor], *, added: Collection[str] = ()) -> None:
        """Let a layer's tensors be others.

        Args:
            layer: the layer.
            tensors: attribute -> float64; a bias that it has not yet becomes one of it.
            added: which of them the layer adds, so that a small number in them is no loss.
        """
        for key, exact in tensors.items():
            self.note(layer, key, exact)
            self._written[layer, key] = key not in added

    def forget(self, layer: nn.Module, key: str) -> None:
        """Write nothing into a tensor after all."""
        self._written.pop((layer, key), None)
        self._exact[layer] = {each: exact for each, exact in self._exact.get(layer, {}).items() if each != key}

    @torch.no_grad()
    def copy_into_(self, twin: nn.Module, part: nn.Module) -> None:
        """Let a float64 copy of a part of the model hold what is known of the part's tensors."""
        for path, layer in part.named_modules():
            for key, exact in self._exact.get(layer, {}).items():
                own = getattr(twin.get_submodule(path), key)
                if own is None:
                    put(twin.get_submodule(path), key, nn.Parameter(exact.clone(), requires_grad=False))
                else:
                    own.copy_(exact)

    def move_into_(self, part: nn.Module) -> None:
        """Let a part of the model that is in float64 itself hold what is known of its tensors, which is then forgotten.

        Args:
            part: what will be read, and then replaced.
        """
        self.copy_into_(part, part)
        for layer in part.modules():
            for key in tuple(self.known(layer)):
                self.forget(layer, key)

    def changed(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """What is to be written: (layer, attribute, float64 tensor)."""
        return ((layer, key, self._exact[layer][key]) for layer, key in self._written)

    def misfit(self, since: Float64Weights | None = None) -> Misfit | None:
        """The first tensor to be written that its type does not hold, or None.

        Args:
            since: what this record was forked from, which is not judged again.
        """
        for layer, key, exact in self.changed():
            if since is not None and since.known(layer).get(key) is exact:
                continue
            own, like = getattr(layer, key, None), like_tensor(layer, key)
            before = own if isinstance(own, Tensor) else None
            why = why_unfit(exact, like.dtype, before, is_factor=self._written[layer, key])
            if why is not None:
                return Misfit(layer=layer, key=key, why=why)
        return None

    def rounded(self, layer: nn.Module, key: str) -> Tensor:
        """A new tensor in the place of a layer's own, with its type, layout and flags."""
        own, like = getattr(layer, key, None), like_tensor(layer, key)
        new = self._exact[layer][key].to(like.dtype)
        if own is not None:
            new = torch.empty_like(own, memory_format=torch.preserve_format).copy_(new.view(own.shape))
        if own is None or isinstance(own, nn.Parameter):
            new = nn.Parameter(new, requires_grad=like.requires_grad)
        return new

    @torch.no_grad()
    def write_(self, *, new: bool = True) -> None:
        """Write every merged number into the model's own tensors, after a look at all of them.

        Args:
            new: also what the layers have no tensors for yet.

        Raises:
            FoldError: one of them cannot be written; nothing is then.
        """
        written = [(layer, key, exact, getattr(layer, key, None)) for layer, key, exact in self.changed()]
        check_writable((f"{type(layer).__name__}.{key}", own) for layer, key, _, own in written if own is not None)
        for layer, key, exact, own in written:
            if own is not None:
                own.copy_(exact.view(own.shape))
            elif new:
                put(layer, key, self.rounded(layer, key))
            else:
                continue
            del self._written[layer, key]
            if not self._keep and exact.dim() > 1:
                self.forget(layer, key)


def like_tensor(layer: nn.Module, key: str) -> Tensor:
    """The tensor whose type and device one of a layer has, or would have."""
    own = getattr(layer, key, None)
    if not isinstance(own, Tensor):
        own = next(tensor for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None)
    return own


def put(layer: nn.Module, key: str, tensor: Tensor | None) -> None:
    """Set a parameter, a buffer or a plain attribute, without what ``nn.Module.__setattr__`` makes of it."""
    if key in layer._buffers:
        layer._buffers[key] = tensor
    elif key in layer._parameters or isinstance(tensor, nn.Parameter):
        layer._parameters[key] = tensor  # type: ignore[assignment]
    else:
        layer.__dict__[key] = tensor
