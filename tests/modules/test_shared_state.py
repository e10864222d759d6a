"""What a float64 run of a model may find in shared places."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import stripefold as sf


class Proxy:
    """Answers to every name, as lazily imported packages do."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


PROXY, MOCK = Proxy(), mock.MagicMock()


@functools.lru_cache
def grid(size: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(0, 1, size, dtype=dtype)


class Uses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        PROXY.log(x.shape)
        MOCK.log("ran")
        return self.norm(self.conv(x)) + grid(x.shape[-1], x.dtype)


def test_objects_that_answer_to_every_name_are_no_caches() -> None:
    model, x = Uses().eval(), torch.randn(2, 3, 8, 8)
    grid.cache_clear()
    model(x)
    plain = sf.fold(sf.attach(model, "se", where="norm"), example=x)
    torch.testing.assert_close(plain(x).shape, model(x).shape)
    grid(8, torch.float32)
    assert grid.cache_info().currsize <= 2
    assert all(call[0] != "cache_info" for call in MOCK.method_calls)
