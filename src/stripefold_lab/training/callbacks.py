"""The Stripe Observation callback of a training run, and its checks before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from stripefold.errors import ConfigError, ObserveError, TraceError
from stripefold.integrations.lightning import StripeCallback
from stripefold.integrations.observing import check_drawing, look
from stripefold_lab.training.fixed import fixed_images
from stripefold_lab.training.tasks import get_task

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.data import Data


def check_observable(model: nn.Module, data: Data, config: TrainConfig) -> None:
    """Refuse before anything is written what asks for an observation that cannot be made.

    Args:
        model: The network with its attention.
        data: The data set.
        config: The run's configuration.

    Raises:
        ConfigError: The network has nothing to observe, or what draws is not installed.
    """
    if not config.observe_every:
        return
    check_drawing()
    try:
        look(model, data.spec.example())
    except (ObserveError, TraceError) as error:
        raise ConfigError(
            f"observe_every is {config.observe_every}, but {error} (model {config.model!r}, form {config.form!r}); set "
            "form to dynamic or static, or observe_every to 0"
        ) from error


def run_observer(data: Data, config: TrainConfig, folder: Path) -> StripeCallback | None:
    """The callback of a run that asks for one, or None.

    Args:
        data: The data set.
        config: The run's configuration.
        folder: Where the record goes.
    """
    if not config.observe_every:
        return None
    return StripeCallback(
        fixed_images(data, config.observe_images, config.batch_size),
        every=config.observe_every,
        keep=config.observe_images,
        by_class=get_task(config.task).labels_images,
        folder=folder,
        part="model",
        title=f"{config.model} with {config.attention} on {config.data.partition(':')[0]}, seed {config.seed}",
    )
