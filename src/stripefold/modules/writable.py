"""Can a tensor be overwritten in place? Asked before the first write, because nothing may fail halfway."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from stripefold.errors import FoldError
from stripefold.modules.modules import SHAPELESS

_MAPS = Path("/proc/self/maps")


def why_not_writable(tensor: Tensor) -> str | None:
    """Why no numbers can be written into this tensor, or None."""
    if isinstance(tensor, SHAPELESS):
        return "is lazy and has no shape yet"
    if tensor.is_meta:
        return "is on the meta device and has no numbers"
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "was made under torch.inference_mode and is read-only"
    if _expanded(tensor):
        return "is an expanded tensor, one number for many channels"
    if _overlaps_itself(tensor):
        return "has entries that share memory with one another"
    if _read_only(tensor):
        return "lies in memory that is mapped read-only"
    return None


def check_writable(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """See that everything planned can be written.

    Args:
        tensors: name for the message, tensor.

    Raises:
        FoldError: one cannot be.
    """
    for name, tensor in tensors:
        reason = why_not_writable(tensor)
        if reason is not None:
            raise FoldError(
                f"cannot write the folded numbers: {name} {reason}. Give the layer a parameter of its own "
                "(nn.Parameter(tensor.detach().clone())), or fold a copy: fold(model)"
            )


def _expanded(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    return any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two entries may lie at one place, as those of ``unfold`` and ``as_strided`` do."""
    if tensor.layout != torch.strided:
        return False
    reach = 0  # of all axes with smaller steps
    for step, size in sorted((step, size) for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1:
            if step <= reach:
                return True
            reach += step * (size - 1)
    return False


def _read_only(tensor: Tensor) -> bool:
    """Whether the memory of a tensor on the CPU is mapped without the right to write, where the system says so."""
    if tensor.device.type != "cpu" or tensor.numel() == 0 or not _MAPS.exists():
        return False
    try:
        if tensor.untyped_storage().resizable():  # allocated by torch
            return False
        address = tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # a subclass without memory of its own
        return False
    for line in _MAPS.read_text().splitlines():
        span, rights = line.split(maxsplit=2)[:2]
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return "w" not in rights
    return False
