"""A trainer class for ultralytics that attaches gates to the model it builds."""

from __future__ import annotations

from typing import Any

from torch import nn

from stripefold.asr.attach import attach_
from stripefold.asr.sites import scales
from stripefold.errors import CheckpointError


def attached_trainer(trainer: Any, attention: str = "se", **options: Any) -> Any:
    """A subclass of an ultralytics trainer whose model has gates: ``YOLO("yolov8n.yaml").train(trainer=...)``.

    Plain weights are loaded before attaching, those of an attached model after it.

    Args:
        trainer: The class, such as ``DetectionTrainer``.
        attention: For ``attach``.
        options: Likewise; ``example`` may be left out: the model is then tried on noise of ``imgsz``.
    """

    class AttachedTrainer(trainer):
        """``trainer`` with gates."""

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            """Build the model, attach, and load.

            Raises:
                AttachError: The attention does not suit the model.
                CheckpointError: The weights are of an attached model with other gates.
            """
            gated = isinstance(weights, nn.Module) and bool(scales(weights))
            model: nn.Module = super().get_model(cfg, None if gated else weights, verbose)
            attach_(model, attention, **{"example": _noise(self), **options})
            if gated:
                _load_(model, weights)
            return model

    AttachedTrainer.__name__ = f"Attached{trainer.__name__}"
    return AttachedTrainer


def _noise(trainer: Any) -> Any:
    import torch

    side = max(64, int(trainer.args.imgsz if isinstance(trainer.args.imgsz, int) else max(trainer.args.imgsz)))
    return torch.rand(1, trainer.data["channels"], side, side, generator=torch.Generator().manual_seed(0))


def _load_(model: nn.Module, weights: nn.Module) -> None:
    try:
        model.load_state_dict(weights.float().state_dict())
    except RuntimeError as error:
        raise CheckpointError(
            "the weights are of a model with other gates or classes: attach with the options they were trained with"
        ) from error
