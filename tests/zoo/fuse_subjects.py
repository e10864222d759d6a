"""Which timm architectures the fuse sweep runs: those with re-parameterizable blocks, and those with LayerScale."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from stripefold.folding.third_party import offered
from tests.zoo.models_timm import MAXIMUM_PARAMETERS
from tests.zoo.subject import quick_creation

LIST_FILE = Path(__file__).parent / "results" / "fuse_list.json"


def chosen() -> dict[str, dict[str, Any]]:
    """Architecture -> what it contains, smallest first: blocks that re-parameterize themselves, LayerScale modules.

    Computed once per version of timm, on the meta device, and kept in a file. Re-parameterizable ones up to 60 million
    parameters; those with LayerScale of any size.
    """
    counted = json.loads(LIST_FILE.read_text(encoding="utf-8")) if LIST_FILE.exists() else {}
    if counted.get("timm") != timm.__version__:
        found = {name: contents(build(name)) for name in timm.list_models()}
        counted = {"timm": timm.__version__, "models": {name: what for name, what in found.items() if _wanted(what)}}
        LIST_FILE.parent.mkdir(exist_ok=True)
        LIST_FILE.write_text(json.dumps(counted, indent=0) + "\n", encoding="utf-8")
    models: dict[str, dict[str, Any]] = counted["models"]
    return dict(sorted(models.items(), key=lambda item: (item[1]["parameters"], item[0])))


def _wanted(what: dict[str, Any]) -> bool:
    return bool(what["layer_scales"]) or (bool(what["blocks"]) and what["parameters"] <= MAXIMUM_PARAMETERS)


def build(name: str) -> nn.Module:
    """The model without weights where timm can build it so."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return timm.create_model(name)
        except (RuntimeError, NotImplementedError):
            with quick_creation():
                return timm.create_model(name)


def contents(model: nn.Module) -> dict[str, Any]:
    """Parameters, blocks with a method of their own, LayerScale modules, BatchNorms."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "blocks": sum(offered(module) is not None for module in model.modules()),
        "layer_scales": len(layer_scales(model)),
    }


def layer_scales(model: nn.Module) -> list[str]:
    """Paths of modules that are a LayerScale by their name and hold nothing else."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__.startswith("LayerScale") and not list(module.children())
    ]


def batchnorms(model: nn.Module) -> list[str]:
    """Paths of BatchNorms."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


__all__ = ["batchnorms", "build", "chosen", "contents", "layer_scales"]
