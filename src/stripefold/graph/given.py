"""What a layer is called with: the tensors that its rule was tried with, or more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Given:
    """What a call of a layer is given; or may be given, where something is known of such calls alone.

    Attributes:
        tensors: How many.
        settings: Whether anything else that is not None.
    """

    tensors: int = 1
    settings: bool = False

    def within(self, most: Given) -> bool:
        """Whether it is no more than another."""
        return self.tensors <= most.tensors and self.settings <= most.settings
