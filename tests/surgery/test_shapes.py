"""The shortcut for shapes on the meta device gives what torch gives, and leaves torch its errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stripefold.surgery.shapes import run

BATCHNORM = torch.ops.aten.native_batch_norm.default


def arguments(x: Tensor, channels: int, *, training: bool = False, affine: bool = True) -> tuple[object, ...]:
    vectors = [torch.ones(channels, device=x.device) for _ in range(4)]
    return (x, *(vectors[:2] if affine else (None, None)), *vectors[2:], training, 0.1, 1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["plain", "channels last", "two axes"])
def test_same_shapes_types_and_strides_as_torch(form: str, dtype: torch.dtype, affine: bool) -> None:
    x = torch.empty((2, 4) if form == "two axes" else (2, 4, 3, 5), device="meta", dtype=dtype)
    if form == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    given = arguments(x, 4, affine=affine)
    for ours, theirs in zip(run(BATCHNORM, given, {}), BATCHNORM(*given), strict=True):
        assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
        assert ours.is_meta


def test_what_does_not_fit_is_left_to_torch() -> None:
    given = arguments(torch.empty(2, 4, 3, 3, device="meta"), 5)
    with pytest.raises(RuntimeError):
        run(BATCHNORM, given, {})
    given = arguments(torch.empty(2, 4, 3, 3), 4)
    assert run(BATCHNORM, given, {})[0].device.type == "cpu"  # real numbers are computed, never left out
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(run(torch.ops.aten.relu.default, (x,), {}), x.relu())
