"""The batches a user gives, which baking reads more than once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from stripefold.errors import BakeError, ObserveError
from stripefold.modules.example import Example, example_to
from stripefold.modules.modules import first_parameter
from stripefold.stripe.batches import Batch, batches


class Batches:
    """Data that can be read again and again, as inputs of one model.

    Args:
        data: see ``bake``.
        name: what the user calls it, for messages.
        model: what it is for.
        arguments: how many entries of a tuple are arguments of the model; the labels come behind them.

    Raises:
        BakeError: data that can be read only once.
    """

    def __init__(self, data: Any, name: str, model: nn.Module, *, arguments: int = 1) -> None:
        if isinstance(data, Iterator):
            raise BakeError(
                f"{name} is a {type(data).__name__}, which can be read only once, and baking reads it several times: "
                "give a DataLoader, or list(...) of it"
            )
        self.name = name
        self.data = data
        self._model = model
        self._arguments = arguments

    def __iter__(self) -> Iterator[Batch]:
        """The batches on the model's device, floating-point inputs in its dtype; labels stay on the CPU.

        Raises:
            BakeError: no batch at all, or one of no known form.
        """
        like = first_parameter(self._model)
        device = torch.device("cpu") if like is None else like.device
        found = 0
        try:
            for batch in batches(self.data, self._model, arguments=self._arguments):
                found += 1
                inputs = example_to(batch.inputs, device, None if like is None else like.dtype)
                yield Batch(inputs, batch.labels, batch.size, batch.number, batch.targets)
        except ObserveError as error:
            raise BakeError(f"{self.name}: {error}") from error
        if not found:
            raise BakeError(f"{self.name} holds no batch: baking needs images to learn the gates' values from")

    def first(self) -> Batch:
        """The first batch."""
        return next(iter(self))

    def example(self) -> Example:
        """Two samples, for a trace."""
        return self.first().pair()

    def labelled(self) -> bool:
        """Whether the first batch has class numbers."""
        return self.first().labels is not None
