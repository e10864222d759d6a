"""Whether loaded values fit the tensors they are copied into: ``copy_`` makes 1e300 infinite, drops imaginary parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def why_out_of_range(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """The first tensor whose values its namesake cannot hold, in words; None where all can. Rounding is no misfit.

    Args:
        own: a model's tensors.
        given: what is to be copied into those of the same name.
    """
    for name in own.keys() & given.keys():
        why = _why_unfit(given[name], own[name].dtype)
        if why is not None:
            return f"{name!r} {why}"
    return None


def _why_unfit(values: Tensor, dtype: torch.dtype) -> str | None:
    """Why a tensor of a type cannot hold the values; None where it can.

    >>> _why_unfit(torch.tensor([1e300], dtype=torch.float64), torch.float32)
    'holds 1e+300, which torch.float32 cannot hold'
    """
    if values.layout != torch.strided or values.is_quantized:
        return f"is no plain tensor ({values.layout}, {values.dtype}); save it dense and unquantized"
    if values.dtype == dtype:
        return None
    if _kind(values.dtype) != _kind(dtype):
        return f"is {values.dtype}, the model's {dtype}: convert it where its meaning is known"
    bad = _lost(values, dtype)
    return f"holds {values[bad][0].item():g}, which {dtype} cannot hold" if bad.any() else None


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    return "float" if dtype.is_floating_point else "bool" if dtype == torch.bool else "int"


def _lost(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a number becomes infinite, or an integer another one."""
    if dtype.is_complex:
        return torch.view_as_real(values).isfinite().all(-1) & ~torch.view_as_real(values.to(dtype)).isfinite().all(-1)
    if dtype.is_floating_point:
        wide = values.double()  # float8 knows no isfinite
        return wide.isfinite() & ~values.to(dtype).double().isfinite()
    limits = torch.iinfo(dtype)
    return torch.tensor([not limits.min <= value <= limits.max for value in values.flatten().tolist()]).view_as(values)
