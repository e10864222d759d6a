"""A callback for transformers' Trainer: checkpoints that ``from_pretrained`` loads as what was trained.

The Trainer saves an attached model under the attached model's keys. ``from_pretrained`` builds the plain one, finds no
weights for the gated layers, and initialises them anew. So every checkpoint gets the folded weights beside them, and
its ``config.json`` names these: ``transformers_weights``, a setting of transformers.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold.asr.adapter import backbone_fingerprint, save_adapter
from stripefold.asr.sites import scales
from stripefold.atomic import atomic_path, write_text
from stripefold.errors import CheckpointError
from stripefold.folding.fold import fold
from stripefold.folding.weight_files import file_info
from stripefold.modules.example import Example

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "stripefold.integrations.transformers needs transformers, which is not installed: pip install transformers",
        name="transformers",
    ) from error

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, GATES, CONFIG = "folded.safetensors", "stripefold_gates.safetensors", "config.json"
_ONE_FILE = "1000TB"


def save_folded_beside(model: nn.Module, folder: str | os.PathLike[str], *, example: Example | None = None) -> None:
    """Make a folder in which an attached model was saved one that ``from_pretrained`` loads as what was trained.

    Writes ``folded.safetensors``, the plain model's weights with the gates folded in, names it in ``config.json``, and
    writes the gates alone for ``stripefold.load_adapter``. What the Trainer resumes from stays as it is.

    Args:
        model: The attached model, as it was saved there.
        folder: With its ``config.json``.
        example: For the check of the fold; what the model declares if None.

    Raises:
        CheckpointError: The folder has no ``config.json``, or a file cannot be written.
        FoldError: The model cannot be folded; nothing is written.
    """
    place = Path(folder)
    config = place / CONFIG
    if not config.is_file():
        raise CheckpointError(f"{place} has no {CONFIG}: save the model there first, with save_pretrained")
    plain: Any = fold(model, example=example)
    try:
        save_adapter(model, place / GATES)
        with tempfile.TemporaryDirectory(dir=place) as temporary, atomic_path(place / WEIGHTS) as written:
            plain.save_pretrained(temporary, max_shard_size=_ONE_FILE)
            (Path(temporary) / "model.safetensors").replace(written)
        settings = json.loads(config.read_text(encoding="utf-8"))
        write_text(config, json.dumps({**settings, "transformers_weights": WEIGHTS}, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write into {place}: {error.strerror or error}") from error


class FoldCallback(TrainerCallback):
    """Writes the folded weights into every checkpoint of a Trainer, and refuses to resume without the trained ones.

    ``from_pretrained(checkpoint)`` then gives the plain model that computes what the attached one computes. A model
    without gates is left alone.

    Args:
        example: For the check of the fold; what the model declares if None.
    """

    def __init__(self, *, example: Example | None = None) -> None:
        self.example = example

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the folded weights beside the attached ones.

        Raises:
            CheckpointError: A file cannot be written.
            FoldError: The model cannot be folded.
        """
        model = kwargs["model"]
        if state.is_world_process_zero and scales(model):
            save_folded_beside(model, _checkpoint(args, state), example=self.example)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See that a run which is resumed has the weights of its checkpoint.

        Raises:
            CheckpointError: It has others: the keys differ, of which the Trainer only warns.
        """
        model, folder = kwargs["model"], _checkpoint(args, state)
        if not state.global_step or not (folder / GATES).is_file():
            return
        saved = file_info(folder / GATES).extra
        if not scales(model):
            raise CheckpointError(
                f"{folder} is of an attached model, and the one that resumes from it has no gates: attach first, with "
                "the same options, then make the Trainer"
            )
        if saved.get("fingerprint", {}).get("weights") != backbone_fingerprint(model)["weights"]:
            raise CheckpointError(
                f"the model does not have the weights of {folder}, although the Trainer resumes from it: attach with "
                "the same options as before. Some versions of transformers save keys that their own Trainer cannot "
                f"load (it warns of missing keys): load {GATES} with stripefold.load_adapter into "
                "from_pretrained's model then"
            )


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
