"""Checkpoints: written whole or not at all, read without running anything that is in them."""

from __future__ import annotations

import errno
import io
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from stripefold.atomic import atomic_path
from stripefold.documents import DocumentError, check_depth
from stripefold.errors import CheckpointError, TrainingError
from stripefold.inputs import check_regular
from stripefold.records import checked

KEY = "stripefold"
"""Where a checkpoint holds what it is: configuration, classes, image size."""


class SafeCheckpointIO(CheckpointIO):
    """Lightning's way to the disk, replaced by an atomic write and a load that accepts data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; the file that was there stays until the new one is complete.

        Raises:
            TrainingError: If it cannot be written, such as on a full disk.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        except OSError as error:
            raise TrainingError(write_failure(Path(path), error)) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Read a checkpoint of ours; see ``read_checkpoint``."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Take a checkpoint away."""
        Path(path).unlink(missing_ok=True)


def write_failure(path: Path, error: OSError) -> str:
    """What to say when a file of a run cannot be written.

    Args:
        path: The file.
        error: What the system said.
    """
    cure = "make it writable"
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free / 2**20
        reason = f"the disk is full ({free:.0f} MiB free)"
        cure = "free some space"
    return f"cannot write {path}: {reason}; the last good checkpoint is kept: {cure}, then go on with --resume"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint of ours onto the CPU; nothing but tensors and plain values is accepted.

    Args:
        path: A ``.ckpt`` file.

    Raises:
        CheckpointError: If it is missing, damaged, holds anything but data, or is no training checkpoint.
    """
    path = Path(path)
    if path.suffix in (".onnx", ".pt2"):
        raise CheckpointError(
            f"{path} is an exported program, which `stripefold export` compared before it wrote it; give a run's "
            "folder, a .ckpt or a .safetensors file"
        )
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} is a weights file, not a training checkpoint; give checkpoints/last.ckpt of the run"
        )
    check_regular(path, CheckpointError)
    try:
        with warnings.catch_warnings():
            # Files of another origin; what they are is said below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no checkpoint {path}: no such file or folder; give a run's folder, a .ckpt or a .safetensors file"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is damaged or holds more than data; nothing in it was run") from error
    except Exception as error:  # whatever bytes can make of two readers: a zip's, and the old format's stack machine
        raise CheckpointError(
            f"{path} is damaged or truncated, or no checkpoint at all ({type(error).__name__}); give another .ckpt file"
        ) from error
    if not isinstance(content, dict) or KEY not in content or "state_dict" not in content:
        raise CheckpointError(f"{path} is no training checkpoint of stripefold; give a .ckpt file of a run")
    try:
        check_depth(checked(dict[str, Any], content[KEY], KEY))
        checked(dict[str, torch.Tensor], content["state_dict"], "state_dict")
    except DocumentError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return content


def model_state(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's own state dict in a training checkpoint.

    Args:
        checkpoint: What ``read_checkpoint`` gave.
    """
    prefix = "model."
    return {key[len(prefix) :]: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
