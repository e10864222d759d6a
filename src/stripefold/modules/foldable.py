"""The contract between what stripefold puts into a model and ``fold``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from stripefold.modules.float64_weights import Float64Weights


@dataclass(frozen=True, kw_only=True)
class FoldNote:
    """What folding one module did (or would do); one row of the fold report.

    Attributes:
        name: its dotted path, or that of a parameter.
        kind: what it is.
        folded: it became part of a plain layer.
        why: into what, or why it stays.
        unseen: it stays as it is, or its bias does, because of a module that did not run on the examples.
    """

    name: str
    kind: str
    folded: bool
    why: str
    unseen: bool = False


class Foldable(nn.Module):
    """A module of ours that stands in for plain layers while the model trains.

    ``fold_`` asks every one of them ``check_fold`` first and changes nothing unless all agree.
    """

    elsewhere: ClassVar[bool] = False
    """whether folding changes layers outside of it"""

    @abstractmethod
    def check_fold(self, name: str, owners: Mapping[int, list[str]]) -> list[FoldNote]:
        """Say what folding would do, without changing anything: a row for what folds, one for what stays.

        Args:
            name: this module's first path in the model.
            owners: ``tensor_owners(model)``: what was tied since this module was put in place.

        Raises:
            FoldError: folding is impossible (non-finite scale, overflow ...).
        """

    @property
    def gained_key(self) -> str | None:
        """The bias that the layer that folding gives has, and the layer it stands for had not; None: it gains none."""
        return None

    @property
    def new_keys(self) -> str | None:
        """Why folding gives keys that the plain model does not have, so that only ``fuse=True`` does it; or None."""
        return None

    @abstractmethod
    def folded_(self, weights: Float64Weights) -> nn.Module:
        """Fold in place and return the module that takes this one's position.

        Args:
            weights: learns the numbers of that module, and writes them once all of them are known.
        """

    def is_at_start(self) -> bool:
        """Whether nothing trainable here has moved since it was put in place."""
        return False
