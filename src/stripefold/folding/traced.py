"""A traced model whose static constants are being folded: what is known of it, and what is neutral by now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypedDict

from torch import nn

from stripefold.folding.ledger import Ledger
from stripefold.folding.sides import LayerSides
from stripefold.graph.graph import Graph
from stripefold.graph.scale_paths import Sides
from stripefold.modules.modules import tensor_owners


class Known(TypedDict):
    """Arguments of a search."""

    sides: Sides
    ignoring: Collection[int]
    neutral: Mapping[int, int]


class Traced:
    """What the folding of every constant of one model shares.

    Args:
        model: a plain (folded) model.
        graph: of a trace of it.
        ledger: what earlier steps have merged.

    Attributes:
        modules: dotted path -> module.
        owners: ``modules.modules.tensor_owners`` of the model.
        neutral: node -> the operand that it passes on unchanged: products by ones, additions of zeros.
        known: what every search of ``graph.scale_paths`` and ``graph.shift_paths`` wants to know: which layer takes
            what on which side, the nodes that lead to no output, the neutral ones.
    """

    def __init__(self, model: nn.Module, graph: Graph, ledger: Ledger) -> None:
        self.graph, self.ledger = graph, ledger
        self.modules = dict(model.named_modules())
        self.owners = tensor_owners(model)
        self.neutral: dict[int, int] = {}
        self.known: Known = {"sides": LayerSides(model), "ignoring": graph.dead, "neutral": self.neutral}
