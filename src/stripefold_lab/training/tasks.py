"""The table of tasks: the only place that names them, beside their own modules."""

from __future__ import annotations

import functools
import pkgutil
from typing import TYPE_CHECKING

from stripefold.documents import shown
from stripefold.errors import ConfigError

if TYPE_CHECKING:
    from stripefold_lab.training.task import Task

TASKS = {
    "classification": "stripefold_lab.training.classification:Classification",
    "segmentation": "stripefold_lab.training.segmentation:Segmentation",
    "detection": "stripefold_lab.training.detection:Detection",
}
"""Name -> class, imported when it is asked for. The first one is the default."""
DEFAULT_TASK = next(iter(TASKS))


def get_task(name: str) -> Task:
    """The task of a name.

    Args:
        name: As ``TrainConfig.task`` gives it.

    Raises:
        ConfigError: There is none.

    >>> get_task("segmentation").score.word
    'mIoU'
    """
    if name not in TASKS:
        raise ConfigError(f"task is {shown(name)}; choose one of {', '.join(TASKS)}")
    return _made(name, TASKS[name])


@functools.cache
def _made(name: str, place: str) -> Task:
    task: Task = pkgutil.resolve_name(place)(name)
    return task
