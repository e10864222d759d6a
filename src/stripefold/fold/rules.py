"""Every rule stripefold knows: importing this file registers them."""

from __future__ import annotations

from stripefold.fold import rules_torch

__all__ = ["rules_torch"]
