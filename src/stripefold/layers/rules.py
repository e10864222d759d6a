"""Every rule stripefold knows: importing this file registers them."""

from __future__ import annotations

from stripefold.layers import rules_own, rules_timm, rules_torch, rules_transformers

__all__ = ["rules_own", "rules_timm", "rules_torch", "rules_transformers"]
