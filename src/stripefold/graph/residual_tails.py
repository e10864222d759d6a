"""The tails of residual branches: the last affine layer before each addition of a branch to its shortcut.

At every sum of values (``x + f(x)``, in place, ``stack(...).sum``), chains of sums taken as one:

- A term that does not depend on the input (a position embedding, a bias) or only through integers (a mask) is no
  term, except a constant that is added once to what was computed from it (a class token).
- Layers upstream of every term are shared history. Of what is left, the term with the fewest layers is the shortcut,
  every term with more is a branch. All equal: parallel branches without a shortcut, so nothing is chosen. RepVGG's
  training form follows: where the identity branch exists, the normalisations of the 3x3 and 1x1 branches are tails, and
  where it does not (stride 2), none is.
- Parallel streams (HRNet, TNT): where even the term with the fewest layers has many, depth says little. There the terms
  that end in an earlier residual sum are streams carried on, and the terms that end in a layer are added to them.
- From the end of a branch back to its last layers: through views, dropout, activations, pools, multiplications by
  constants and by gates (along the map, not the gate), through a concatenation into every part; through a layer that
  is nothing but a multiplication by a constant (LayerScale), which is taken only where no other layer is found.
- A layer that lies upstream of the shortcut as well, or that a BatchNorm right behind cancels, is never taken.
- A branch that ends in another residual sum has no tail of its own: the inner branch's is one already.
"""

from __future__ import annotations

from dataclasses import dataclass

from stripefold.graph.consumers import cancelling_norm
from stripefold.graph.graph import Graph, Node, first_calls
from stripefold.graph.operation_names import COLLECTIONS, PRODUCTS, RECURRENT, SQUASHING, VIEWS, WEIGHTED, is_batch_norm
from stripefold.graph.sums import is_part_of_sum, is_sum, live_terms

# Layers in the longest projection on a shortcut (pool, convolution, normalisation, and one to spare).
LONGEST_PROJECTION = 3


@dataclass(frozen=True)
class ResidualTail:
    """The last affine layer of a residual branch: its dotted path and why it was chosen."""

    name: str
    why: str


@dataclass(frozen=True)
class Residual:
    """One sum of branches and shortcut; ``branches`` and ``shortcuts`` are node indices."""

    node: int
    branches: tuple[int, ...]
    shortcuts: tuple[int, ...]


def residual_tails(graph: Graph) -> tuple[list[ResidualTail], list[str]]:
    """The tails in call order, each layer once; and for every branch without one, why."""
    search = _Search(graph)
    reasons: dict[str, str] = {}
    without: list[str] = []
    for residual in search.residuals.values():
        for branch in residual.branches:
            ends = search.tails(residual, branch)
            for end in ends:
                reasons.setdefault(graph.nodes[end].name, search.why(residual, branch))
            if not ends:
                place = graph.nodes[residual.node].where or "the model itself"
                without.append(f"the branch added in {place} ends in {_describe(graph.nodes[branch])}")
    return [ResidualTail(name, reasons[name]) for name in first_calls(graph, reasons)], list(dict.fromkeys(without))


def is_layer_scale(node: Node) -> bool:
    """Whether a layer does nothing to its input but multiply it by a constant."""
    return node.kind == "layer" and "mul" in node.inner and set(node.inner) <= VIEWS | {"mul"}


def _describe(node: Node) -> str:
    if node.kind == "operation":
        return f"{node.name!r} in {node.where or 'the model itself'}"
    return f"{node.kind} {node.name!r}"


class _Search:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.residuals: dict[int, Residual] = {}
        for index in range(len(graph.nodes)):
            if is_sum(graph, index) and not is_part_of_sum(graph, index):
                residual = self._split(index)
                if residual is not None:
                    self.residuals[index] = residual

    def _split(self, index: int) -> Residual | None:
        terms = live_terms(self.graph, index)
        layers = self.graph.layers_upstream
        if len(terms) < 2:
            return None
        shared = layers[terms[0]]
        for term in terms[1:]:
            shared &= layers[term]
        depth = {term: (layers[term] & ~shared).bit_count() for term in terms}
        fewest = min(depth.values())
        shortcuts = tuple(t for t in terms if depth[t] == fewest)
        if fewest > LONGEST_PROJECTION:
            shortcuts = tuple(t for t in terms if self._is_carried(t)) or shortcuts
        branches = tuple(t for t in terms if t not in shortcuts and self._related(t, shortcuts))
        return Residual(index, branches, shortcuts) if branches else None

    def _is_carried(self, index: int) -> bool:
        """Whether a term ends in an earlier residual sum rather than in a layer."""
        if index in self.residuals:
            return True
        return self.graph.nodes[index].kind != "layer" and any(self._is_carried(i) for i in self._back(index))

    def _related(self, branch: int, shortcuts: tuple[int, ...]) -> bool:
        """Whether branch and shortcut start from a common value; a mask given as an input does not."""
        upstream, maps = self.graph.values_upstream, self.graph.activations
        return any(upstream[branch] >> s & 1 or upstream[branch] & upstream[s] & maps for s in shortcuts)

    def why(self, residual: Residual, branch: int) -> str:
        layers = self.graph.layers_upstream
        short = layers[residual.shortcuts[0]]
        depth, other = (layers[branch] & ~short).bit_count(), (short & ~layers[branch]).bit_count()
        place = self.graph.nodes[residual.node].where or "the model itself"
        return f"last layer of the branch added in {place} ({depth} deep, shortcut {other})"

    # From a branch back to its last layers.

    def tails(self, residual: Residual, branch: int) -> list[int]:
        """The layer nodes that end a branch."""
        layers = self.graph.layers_upstream
        allowed = layers[branch]
        for shortcut in residual.shortcuts:
            allowed &= ~layers[shortcut]
        return list(dict.fromkeys(self._walk(branch, allowed)))

    def _walk(self, index: int, allowed: int) -> list[int]:
        node = self.graph.nodes[index]
        if not self.graph.layers_upstream[index] & allowed:
            return []
        if node.kind != "layer":
            return [end for source in self._back(index) for end in self._walk(source, allowed)]
        if is_layer_scale(node):
            before = [end for source in self.graph.operands(index) for end in self._walk(source, allowed)]
            if before:
                return before
        if not self.graph.bit(index) & allowed or cancelling_norm(self.graph, node.name) is not None:
            return []
        return [index]

    def _back(self, index: int) -> list[int]:
        """Where a walk goes on behind an operation; nowhere where a channel no longer comes from one channel."""
        node = self.graph.nodes[index]
        operands = self.graph.operands(index)
        if index in self.residuals or node.name == RECURRENT or is_batch_norm(node.name):
            return []
        if is_sum(self.graph, index):
            return live_terms(self.graph, index)
        if node.name in WEIGHTED and len(operands) < len(set(node.inputs)):
            return []
        if len(operands) < 2 or node.name in COLLECTIONS:
            return operands
        return self._maps(operands) if node.name in PRODUCTS else []

    def _maps(self, factors: list[int]) -> list[int]:
        """The factors of a product that are feature maps and not gates on them."""
        nodes = self.graph.nodes
        largest = max(nodes[i].unbroadcast_numel for i in factors)
        wide = [i for i in factors if nodes[i].unbroadcast_numel == largest]
        ungated = [i for i in wide if not self._is_gate(i)] or wide
        depth = {i: self.graph.layers_upstream[i].bit_count() for i in ungated}
        return [i for i in ungated if depth[i] == max(depth.values())]

    def _is_gate(self, index: int) -> bool:
        """Whether a value was squashed, views and resizing apart."""
        node = self.graph.nodes[index]
        while node.kind == "operation" and len(node.inputs) == 1:
            if node.name in SQUASHING:
                return True
            if node.name not in VIEWS and not node.name.startswith(("upsample", "_upsample")):
                return False
            node = self.graph.nodes[node.inputs[0]]
        return False
