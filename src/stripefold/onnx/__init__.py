"""Baking for ONNX files: the channel attention of a deployed network is observed, priced, and folded away.

The way in and out of the networks people run: a file goes in, a smaller and faster file comes out, or the price of each
gate. Nothing here needs torch but ``observe``, whose report is that of ``stripefold.observe``.

- ``read``: files are judged before anything runs. ``shapes``, ``values``, ``channel_axis``, ``gates``: gates are found
  by shape and dependence, not by operator names.
- ``switched``: one session with a switch per gate. ``statistics``: moments and constants, streamed.
- ``fold``, ``paths``, ``scale_moves``, ``layers``, ``weights``: where constants go, in float64, rounded once.
- ``write``: files are compared with the switched network before they are there.

Inside this package ``import onnx`` is the library: absolute imports always are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stripefold.onnx.baking import bake
    from stripefold.onnx.images import Images
    from stripefold.onnx.observation import observe
    from stripefold.onnx.report import OnnxBakeReport

__all__ = ["Images", "OnnxBakeReport", "bake", "observe"]

_NAMES = {"bake": "baking", "observe": "observation", "Images": "images", "OnnxBakeReport": "report"}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'stripefold.onnx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stripefold.onnx.{_NAMES[name]}"), name)
