"""Networks by where they come from: how timm, transformers or a function of one's own write one and read it back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from stripefold.atomic import write_text
from stripefold.errors import ConfigError
from stripefold.folding.weight_files import load_tensors, save_model

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_ONE_FILE = "1000TB"
_TASKS = {
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "image-segmentation",
    "ForObjectDetection": "object-detection",
    "ForDepthEstimation": "depth-estimation",
    "torchvision.models.segmentation": "image-segmentation",
    "torchvision.models.detection": "object-detection",
    "torchvision.models.video": "video-classification",
    "torchvision.models": "image-classification",
}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a network's library writes it and reads it back.

    Attributes:
        write: Writes weights and configuration of a plain network into a folder.
        read: The network in such a folder; None where only a plain copy can take the weights.
        library: The Hub's name of the library.
        task: The Hub's name of what the network does, or None.
        load: Code that loads it, with ``{repo}`` for the repository.
        packages: Whose versions count.
    """

    write: Callable[[nn.Module, Path], None]
    read: Callable[[Path], nn.Module] | None
    library: str
    task: str | None
    load: str
    packages: tuple[str, ...] = ()


def origin_of(model: nn.Module, build: Callable[..., nn.Module] | None, build_args: Mapping[str, Any]) -> Origin:
    """Where a network comes from.

    Args:
        model: Attached or plain.
        build: The function or class that builds the plain network, or None.
        build_args: Its keyword arguments.

    Raises:
        ConfigError: ``build`` is not for others to import, or its arguments are nothing for JSON.
    """
    if build is not None:
        return _built(build, dict(build_args))
    if build_args:
        raise ConfigError("build_args are the arguments of build=, which is missing: give the function, too")
    transformers: Any = sys.modules.get("transformers")  # a network of its has imported it
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        return _of_transformers(type(model), transformers)
    declared: Any = getattr(model, "pretrained_cfg", None)
    if "timm" in sys.modules and isinstance(declared, Mapping) and declared.get("architecture"):
        return _of_timm(model)
    return _of_class(type(model))


def _of_timm(model: nn.Module) -> Origin:
    import timm
    from timm.models._hub import save_config_for_hf

    def write(plain: nn.Module, folder: Path) -> None:
        save_model(plain, folder / WEIGHTS, kind="folded")
        save_config_for_hf(plain, str(folder / CONFIG))

    def read(folder: Path) -> nn.Module:
        loaded: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return loaded

    return Origin(
        write=write,
        read=read,
        library="timm",
        task="image-classification" if getattr(model, "num_classes", 0) else "image-feature-extraction",
        load='import timm\n\nmodel = timm.create_model("hf-hub:{repo}", pretrained=True)',
        packages=("timm",),
    )


def _of_transformers(kind: Any, transformers: Any) -> Origin:
    def write(plain: Any, folder: Path) -> None:
        plain.save_pretrained(folder, max_shard_size=_ONE_FILE)

    name = kind.__name__
    module = "transformers" if getattr(transformers, name, None) is kind else kind.__module__
    return Origin(
        write=write,
        read=kind.from_pretrained,
        library="transformers",
        task=next((task for ending, task in _TASKS.items() if name.endswith(ending)), None),
        load=f'from {module} import {name}\n\nmodel = {name}.from_pretrained("{{repo}}")',
        packages=("transformers",),
    )


def _built(build: Callable[..., nn.Module], arguments: dict[str, Any]) -> Origin:
    """A network that a function or a class builds, which others can import."""
    module, name = getattr(build, "__module__", None) or "", getattr(build, "__qualname__", "")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not build or module == "__main__":
        raise ConfigError(
            f"build={name or build!r} is nothing that others can import: give a function or a class of a module, such "
            "as torchvision.models.resnet18, or leave build out"
        )
    try:
        json.dumps(arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"build_args holds what JSON cannot hold ({error})") from error

    def read(folder: Path) -> nn.Module:
        loaded = build(**arguments)
        loaded.load_state_dict(load_tensors(folder / WEIGHTS))
        return loaded

    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    imported = f"from {module} import {name.partition('.')[0]}\n"
    config = {"build": f"{module}:{name}", "build_args": arguments}
    return _state_dict(module, config, read=read, imported=imported, call=f"{name}({given})")


def _of_class(kind: type) -> Origin:
    """A network of which only the class is known: whoever loads it builds it as it was built."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    config = {"class": f"{kind.__module__}:{kind.__qualname__}"}
    call = f"...  # {name}, with the arguments that it was trained with"
    return _state_dict(kind.__module__, config, read=None, imported="", call=call)


def _state_dict(
    module: str, config: Mapping[str, Any], *, read: Callable[[Path], nn.Module] | None, imported: str, call: str
) -> Origin:
    package = module.partition(".")[0]
    vision = package == "torchvision"
    return Origin(
        write=partial(_write_plain, config=config),
        read=read,
        library=package if vision else "pytorch",
        task=next((task for start, task in _TASKS.items() if module.startswith(start)), None),
        load="from huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n"
        f'{imported}\nmodel = {call}\nmodel.load_state_dict(load_file(hf_hub_download("{{repo}}", "{WEIGHTS}")))',
        packages=(package,) if vision else (),
    )


def _write_plain(plain: nn.Module, folder: Path, *, config: Mapping[str, Any]) -> None:
    save_model(plain, folder / WEIGHTS, kind="folded")
    write_text(folder / CONFIG, json.dumps({"weights": WEIGHTS, **config}, indent=2) + "\n")
