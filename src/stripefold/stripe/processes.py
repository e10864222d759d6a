"""Merge the observations of several processes, each of which saw its own share of the images."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch.distributed as dist

from stripefold.distributed import gathered, run_on_all_ranks
from stripefold.errors import ObserveError
from stripefold.stripe.report import StripeReport


def merged_over_processes(run: Callable[[], StripeReport | None], group: Any) -> StripeReport | None:
    """Run on every process and merge in the order of their ranks; a process without images adds nothing.

    Args:
        run: This process's observation, None without images.
        group: The process group.

    Raises:
        ObserveError: Any process failed; all of them raise, so that none waits for another.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ObserveError("process_group is given, but torch.distributed is not initialised: leave it out")
    report = run_on_all_ranks(run, group, ObserveError)
    reports = [found for found in gathered(report, group, ObserveError) if found is not None]
    return reduce(StripeReport.merge, reports) if reports else None
