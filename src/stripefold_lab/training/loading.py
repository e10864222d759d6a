"""From what a run left on disk back to a model: a run's folder, a checkpoint, a folded or a fused file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stripefold.baking.rebuild import KEY as KEY_OF_BAKING
from stripefold.baking.rebuild import rebuild_
from stripefold.branches.block import BranchBlock
from stripefold.documents import DocumentError
from stripefold.errors import CheckpointError, ConfigError, DataError, one_line
from stripefold.folding.fold import fold
from stripefold.folding.loaded_values import why_out_of_range
from stripefold.folding.weight_files import FileInfo, file_info, load_model_, load_tensors
from stripefold.records import checked, record
from stripefold_lab.training.build import build_backbone, build_model
from stripefold_lab.training.checkpoint import KEY, model_state, read_checkpoint
from stripefold_lab.training.config import TrainConfig, check_known
from stripefold_lab.training.data import Data, ImageSpec, load_data
from stripefold_lab.training.fingerprint import DATA, describe, differing_data
from stripefold_lab.training.trust import check_options, decided_here, may_open, own_run


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A model read from a file, and what the file says about it.

    Attributes:
        model: The model, with its weights.
        kind: What was read: ``attached``, ``backbone``, ``plain``, ``folded``, ``fused`` or ``baked``.
        config: The configuration of its run.
        spec: What its images look like.
        path: The file.
        data: What the file says about the data it was trained on, see ``fingerprint``; None where it says nothing.
        opens_data: Whether the data that ``config`` names may be opened; see ``trust``.
    """

    model: nn.Module
    kind: str
    config: TrainConfig
    spec: ImageSpec
    path: Path
    data: Any = None
    opens_data: bool = True

    def open_data(self) -> Data:
        """The data set of the run.

        Raises:
            ConfigError: As ``load_data``.
            DataError: As ``load_data``; or only the file itself says where the images lie.
        """
        if not self.opens_data:
            raise DataError(
                f"only {self.path} itself says that its images lie in {self.config.data!r}, and what a file says opens "
                "nothing here: name them with --data (data=)"
            )
        return load_data(self.config)

    @property
    def about(self) -> dict[str, Any]:
        """What a file derived from this one says about where it comes from."""
        return {
            "classes": list(self.spec.classes),
            "channels": self.spec.channels,
            "image_size": self.spec.size,
            **({} if self.data is None else {DATA: self.data}),
            "config": self.config.to_dict(),
        }

    def check_data(self, data: Data, *, asked: bool = False) -> None:
        """Refuse data that is not what the model was trained on: its classes are numbers, which mean something there.

        Args:
            data: The data.
            asked: Whether it was asked for in place of the run's own; then only the classes have to be the same.

        Raises:
            DataError: Naming the first difference, with both values.
        """
        changed = differing_data(self.about, describe(data, whole=not asked))
        if changed is not None:
            raise DataError(f"{self.path} was trained on other data than {self.config.data}: {changed}; give its own")


def load_run(source: str | Path, *, like: LoadedRun | None = None, **overrides: Any) -> LoadedRun:
    """Rebuild a model from what a run left.

    Args:
        source: A run's folder (its last checkpoint), a checkpoint, or a safetensors file that a run or ``fold`` wrote.
        like: Where a safetensors file does not say which run it comes from, take this one's backbone.
        overrides: Options of the run to change.

    Raises:
        CheckpointError: If the file is missing, damaged, or does not come from a training run.
        ConfigError: If an override is no option.
    """
    path = weights_file(Path(source).expanduser())
    if path.suffix != ".safetensors":
        return _from_checkpoint(path, overrides)
    info = file_info(path)
    if like is not None and not info.extra:
        config, spec, opens = like.config, like.spec, like.opens_data
    else:
        config, spec, opens = _about(info.extra, overrides, path)
    model = _empty(path, info, config, spec)
    load_model_(model, path)
    return LoadedRun(
        model=model, kind=info.kind, config=config, spec=spec, path=path, opens_data=opens,
        data=info.extra.get(DATA) if like is None or info.extra else like.data,
    )  # fmt: skip


def weights_file(path: Path) -> Path:
    """The file that stands for a path: a run's folder stands for its last checkpoint.

    Args:
        path: A folder or a file.

    Raises:
        CheckpointError: If the folder holds no checkpoint.
    """
    if not path.is_dir():
        return path
    last = path / "checkpoints" / "last.ckpt"
    if not last.exists():
        raise CheckpointError(f"{path} holds no checkpoints/last.ckpt; give the folder of a run that finished an epoch")
    return last


def _from_checkpoint(path: Path, overrides: dict[str, Any]) -> LoadedRun:
    checkpoint = read_checkpoint(path)
    config, spec, opens = _about(checkpoint[KEY], overrides, path)
    model, state = build_model(config, spec), model_state(checkpoint)
    unfit = why_out_of_range(model.state_dict(), state)
    if unfit is not None:
        raise CheckpointError(f"{path} does not fit the model its configuration describes: {unfit}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit the model its configuration describes: {one_line(error)}"
        ) from error
    kind = "attached" if config.folds or config.keeps_attention else "backbone"
    data = checkpoint[KEY].get(DATA)
    return LoadedRun(model=model, kind=kind, config=config, spec=spec, path=path, data=data, opens_data=opens)


def _empty(path: Path, info: FileInfo, config: TrainConfig, spec: ImageSpec) -> nn.Module:
    """A model with the structure that the file has."""
    kind = info.kind
    if kind == "baked" and KEY_OF_BAKING in info.extra:
        return rebuild_(build_model(config, spec), info.extra[KEY_OF_BAKING], spec.example())
    if kind == "attached":
        keys = list(load_tensors(path))
        # What is left of ASR beside a dynamic attention after folding: the dynamic attention.
        rest = config.form == "both" and not any(key.endswith(".psi") for key in keys)
        model = build_model(config.with_overrides(form="dynamic") if rest else config, spec)
        return model if any(".branches." in key for key in keys) else _folded(model, spec)
    backbone = build_backbone(config, spec)
    if config.branch is not None and kind in ("folded", "fused"):
        # Blocks whose bias found no BatchNorm leave keys that the backbone does not have.
        backbone = _folded(build_model(config, spec), spec)
    return fold(backbone, fuse=True, example=spec.example()) if kind == "fused" else backbone


def _folded(model: nn.Module, spec: ImageSpec) -> nn.Module:
    """The model without its branch blocks."""
    blocks = any(isinstance(module, BranchBlock) for module in model.modules())
    return fold_quietly(model, spec.example()) if blocks else model


def fold_quietly(model: nn.Module, example: Any) -> nn.Module:
    """A folded copy; that gates never moved, or blocks left a bias, was said when the file was written.

    Args:
        model: With static gates or branch blocks.
        example: An input.
    """
    with warnings.catch_warnings():
        for message in (".*never moved.*", ".*have a bias that the stock ones do not have"):
            warnings.filterwarnings("ignore", message=message)
        return fold(model, check=False, example=example)


def _about(extra: Any, overrides: dict[str, Any], path: Path) -> tuple[TrainConfig, ImageSpec, bool]:
    """What a file says of its run, without what is decided here, and whether its data may be opened."""
    try:
        values = checked(dict[str, Any], extra["config"], "config")
        about = {"classes": extra["classes"], "channels": extra["channels"], "size": extra["image_size"]}
        spec = record(ImageSpec, about, "what it says of its images")
        check_known(values, where=f"{path}; a newer version may have written it")
        check_options(values.get("model_options"), path)
        own = own_run(path)
        fixed = {"image_size": spec.size, "channels": spec.channels, "resume": False, **decided_here(own)}
        config = TrainConfig(**{**values, **fixed})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say which run it comes from; give a file that train wrote") from error
    except (DocumentError, ConfigError) as error:
        raise CheckpointError(f"{path}: what it says of its run cannot be used: {error}") from error
    if "preprocessing" in overrides:  # what is given is changed, the rest stays the run's
        overrides = {**overrides, "preprocessing": {**config.preprocessing, **overrides["preprocessing"]}}
    return config.with_overrides(**overrides), spec, "data" in overrides or may_open(config, own)
