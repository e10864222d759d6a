"""Every public call, on the models here: how to prepare it, and what it does."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import stripefold as sf
from stripefold.export import export_model
from tests.interrupts.models import Busy, Plain, images, made
from tests.lifecycle import scatter_


@dataclass(frozen=True)
class Case:
    """One call. ``ready`` makes the model anew, ``call`` is what is interrupted, ``in_place`` may change it."""

    ready: Callable[[], nn.Module]
    call: Callable[[nn.Module], Any]
    in_place: bool = False


def attached(kind: type[nn.Module], *, training: bool = False, where: Any = "norm", attention: str = "se") -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a gate in front of a norm, which has no effect
        return scatter_(sf.attach(made(kind, training=training), attention, where=where, example=images()))


def _exported(model: nn.Module) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, Path(folder) / "m.safetensors", example=images())


def _verified(model: nn.Module) -> None:
    sf.verify(model, model, images())


def _both(name: str, call: Callable[[nn.Module], Any], **options: Any) -> dict[str, Case]:
    """The call on a busy model in evaluation mode, and on another one in training mode."""
    return {
        f"{name} busy": Case(lambda: made(Busy), call, **options),
        f"{name} training": Case(lambda: made(Plain, training=True), call, **options),
    }


def _gated(name: str, call: Callable[[nn.Module], Any], **options: Any) -> dict[str, Case]:
    return {
        f"{name} busy": Case(lambda: attached(Busy), call, **options),
        f"{name} training": Case(
            lambda: attached(Plain, training=True, where=["conv", "body.*"], attention="eca"), call, **options
        ),
    }


def _fold_(fuse: bool, check: bool) -> Callable[[nn.Module], Any]:
    return lambda model: sf.fold_(model, fuse=fuse, check=check, example=images())


CASES: dict[str, Case] = {
    **_both("sites", lambda m: sf.sites(m, "affine", example=images())),
    **_both("observe", lambda m: sf.observe(m, [images(seed=s) for s in range(2)])),
    **_both("attach", lambda m: sf.attach(m, "se", where="norm", example=images())),
    **_both("attach_", lambda m: sf.attach_(m, "se", where="norm", example=images()), in_place=True),
    **_both("branch_", lambda m: sf.branch_(m, "repvgg"), in_place=True),
    **_both("bake", lambda m: sf.bake(m, [images(seed=s) for s in range(2)])),
    **_both("bake_", lambda m: sf.bake_(m, [images(seed=s) for s in range(2)]), in_place=True),
    **_gated("fold", lambda m: sf.fold(m, example=images())),
    **_gated("fold fuse", lambda m: sf.fold(m, fuse=True, example=images())),
    **_gated("fold_", _fold_(False, False), in_place=True),
    **_gated("fold_ check", _fold_(False, True), in_place=True),
    **_gated("fold_ fuse", _fold_(True, False), in_place=True),
    **_gated("fold_ fuse check", _fold_(True, True), in_place=True),
    **_gated("detach_", sf.detach_, in_place=True),
    **_gated("verify", _verified),
    **_gated("export", _exported),
}
