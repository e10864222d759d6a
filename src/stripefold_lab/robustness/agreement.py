"""Attached against folded while both are disturbed, in float64, with the network without gates as control."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from stripefold.asr.detach import detach
from stripefold.folding.verify import verify
from stripefold_lab.robustness.networks import MeasuredNetwork
from stripefold_lab.robustness.report import Equivalence
from stripefold_lab.training.loading import fold_quietly

if TYPE_CHECKING:
    from stripefold_lab.training.data import Data
    from stripefold_lab.training.task import Task

IMAGES = 16


class Inside(Protocol):
    """A context in which a network's layers are disturbed, for passes over so many images."""

    def __call__(self, model: nn.Module, /, *, images: int) -> AbstractContextManager[None]:
        """The context."""


class FoldAgreement:
    """Compares every run with gates, kind after kind.

    Args:
        networks: Those measured.
        data: The data set.
        task: Says what of a network is compared.
    """

    def __init__(self, networks: Sequence[MeasuredNetwork], data: Data, task: Task) -> None:
        self.found: list[Equivalence] = []
        example = data.spec.example().double()
        self._trios = [_trio(network, example) for network in networks if network.gated is not None]
        self._task = task

    def check(self, kind: str, data: Data, inside: Inside) -> None:
        """Compare under one disturbance and keep what was found.

        Args:
            kind: Its name.
            data: With the images as it leaves them.
            inside: A context in which a network's layers are disturbed.

        Raises:
            VerifyError: If a folded network computes something else.
        """
        images = data.test.first(IMAGES).double()
        for source, *trio in self._trios:
            with ExitStack() as stack:
                for model in trio:
                    stack.enter_context(inside(model, images=len(images)))
                attached, folded, bare = trio
                error = self._error(attached, folded, images, strict=True)
                control = self._error(attached, bare, images, strict=False)
            self.found.append(Equivalence(source=source, kind=kind, error=error, control=control))

    def _error(self, model: nn.Module, other: nn.Module, images: Tensor, *, strict: bool) -> float:
        ours, theirs = (self._task.comparable(each) for each in (model, other))
        return verify(ours, theirs, images, raise_on_mismatch=strict).error


def _trio(network: MeasuredNetwork, example: Tensor) -> tuple[str, nn.Module, nn.Module, nn.Module]:
    """Attached, folded and without gates, in float64: the fold is rounded to nothing coarser."""
    attached = copy.deepcopy(network.gated).double()  # type: ignore[union-attr]
    return network.source, attached, fold_quietly(attached, example), fold_quietly(detach(attached), example)
