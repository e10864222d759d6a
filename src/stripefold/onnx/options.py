"""What a call of ``bake`` for ONNX asks for, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stripefold.baking.common_options import BakeOptions
from stripefold.errors import BakeError
from stripefold.onnx.statistics import KINDS, OnnxConstantKind

__all__ = ["GateNames", "Options"]

GateNames = str | Sequence[str] | Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class Options(BakeOptions):
    """The keyword arguments of ``stripefold.onnx.bake``."""

    judged: ClassVar[str] = "network"

    output: str | os.PathLike[str] | None
    constants: OnnxConstantKind
    price: bool
    max_images: int | None
    threads: int

    def __post_init__(self) -> None:
        if self.constants not in KINDS:
            raise BakeError(f"constants={self.constants!r}: choose one of {', '.join(map(repr, KINDS))}")
        super().__post_init__()
        for name, value, least in (("max_images", self.max_images, 1), ("threads", self.threads, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise BakeError(f"{name}={value!r}: expected a whole number from {least}")
        if self.output is not None and not Path(self.output).absolute().parent.is_dir():
            raise BakeError(f"cannot write {os.fspath(self.output)}: its folder does not exist")
