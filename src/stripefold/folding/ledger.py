"""Numbers that are merged several times and rounded once: a float64 record of every tensor that was written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ledger:
    """What the tensors of a model are before rounding, where merging has made them.

    A LayerScale goes into a layer, then a BatchNorm does: in bfloat16 two roundings would be seen. The model's own
    tensors always hold the rounded numbers, so that it runs at every moment.
    """

    def __init__(self) -> None:
        self._exact: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor itself, so that its id stays its own

    def read(self, tensor: Tensor) -> Tensor:
        """The tensor in float64, as exactly as it is known."""
        return self._exact[id(tensor)][1] if id(tensor) in self._exact else tensor.detach().double()

    def note(self, tensor: Tensor, exact: Tensor) -> None:
        """Say what a tensor was before it was rounded."""
        if tensor.dtype != torch.float64:
            self._exact[id(tensor)] = (tensor, exact)

    @torch.no_grad()
    def write_(self, layer: nn.Module, merged: Mapping[str, Tensor]) -> None:
        """Round merged numbers into a layer's own tensors; a bias that it has not yet becomes a parameter of it.

        Args:
            layer: the layer.
            merged: attribute -> float64 tensor.
        """
        for name, exact in merged.items():
            own = getattr(layer, name, None)
            if own is None:
                weight = layer._parameters["weight"]
                assert weight is not None
                own = nn.Parameter(exact.to(weight.dtype), requires_grad=weight.requires_grad)
                layer._parameters[name] = own
            else:
                own.copy_(exact.to(own.dtype))
            self.note(own, exact)
