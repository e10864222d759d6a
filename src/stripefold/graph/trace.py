"""One recorded run of a model: which module's output flows where.

It is an ordinary run on real tensors, of a structural copy. A model that lives on the meta device runs there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from stripefold.errors import TraceError
from stripefold.graph import consumers
from stripefold.graph.graph import Call, Graph
from stripefold.graph.paths_not_taken import expose_unseen
from stripefold.graph.record_run import Failure, IsLayer, RecordedRun, describe, record_run
from stripefold.graph.residual_tails import ResidualTail, residual_tails
from stripefold.modules.example import examples_of
from stripefold.modules.modules import uninitialized


class Trace:
    """What flows where in a model, asked by dotted layer path; the answers hold for every recorded run.

    Attributes:
        graphs: Every value of each run, one graph for each example.
        called: Affine layers that one of the runs used.
        uncalled: Affine layers that no run used.
        read: Layers of which a parameter or buffer was used outside the layer.
        unseen: Modules, layers or not, that might run on another input and did not.
        writes_parameters: Whether a run has to have parameters of its own, because it writes to them.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        layers: Iterable[str],
        *,
        writes_parameters: bool = False,
        unseen: tuple[str, ...] = (),
    ) -> None:
        self.graphs = tuple(graphs)
        self.writes_parameters, self.unseen = writes_parameters, unseen
        used = {call.name for graph in graphs for call in graph.calls}
        self._layers = tuple(layers)
        self.called = frozenset(used)
        self.uncalled = tuple(name for name in self._layers if name not in used)
        self.read = frozenset().union(*(graph.read for graph in graphs))

    @property
    def graph(self) -> Graph:
        """The run on the first example."""
        return self.graphs[0]

    def residual_tails(self) -> list[ResidualTail]:
        """The last affine layer of every residual branch, in call order, each once."""
        found: dict[str, ResidualTail] = {}
        for graph in self.graphs:
            for tail in residual_tails(graph)[0]:
                found.setdefault(tail.name, tail)
        return list(found.values())

    def branches_without_tail(self) -> list[str]:
        """Every residual branch that ends in no affine layer, in words."""
        return list(dict.fromkeys(each for graph in self.graphs for each in residual_tails(graph)[1]))

    def cancelled_by(self, name: str) -> str | None:
        """The BatchNorm or InstanceNorm right behind a layer that undoes a scale of its channels, or None."""
        norms = [consumers.cancelling_norm(graph, self._known(name)) for graph in self._with(name)]
        return norms[0] if norms and all(norm is not None for norm in norms) else None

    def followed_by(self, name: str) -> str | None:
        """The only layer that takes this layer's output, with nothing but reshapes in between, or None."""
        found = {consumers.followed_by(graph, self._known(name)) for graph in self._with(name)}
        return found.pop() if len(found) == 1 else None

    def calls(self, name: str) -> list[Call]:
        """Every call of a layer, with the shapes of its inputs and outputs, run by run."""
        return [call for graph in self.graphs for call in _calls(graph, self._known(name))]

    def _with(self, name: str) -> list[Graph]:
        """The runs in which a layer ran."""
        known = self._known(name)
        return [graph for graph in self.graphs if _calls(graph, known)]

    def _known(self, name: str) -> str:
        if name not in self._layers:
            raise TraceError(f"{name!r} is not an affine layer of the traced model: use the first of its dotted paths")
        return name


def _calls(graph: Graph, name: str) -> list[Call]:
    return graph.calls_of.get(name, [])


def trace(model: nn.Module, example: Any, *, is_layer: IsLayer) -> Trace:
    """Run a copy of a model on every example and record what flows where; the model stays as it was.

    Args:
        model: Any model. Its own hooks run.
        example: A tensor, a tuple of positional or a mapping of keyword arguments; or a list of such, one for each way
            in which the model is used.
        is_layer: Says which modules are affine layers; such a module is one opaque step.

    Raises:
        TraceError: The model does not run on an example.
    """
    lazy = uninitialized(model)
    if lazy is not None:
        raise TraceError(lazy)
    runs: list[RecordedRun] = []
    for each in examples_of(example):
        result = record_run(model, each, is_layer=is_layer)
        if isinstance(result, Failure):
            raise _error(model, each, result) from result.error
        runs.append(result)
    graphs, layers = [run.graph for run in runs], runs[0].layers
    unseen = expose_unseen(model, graphs, layers)
    return Trace(graphs, layers, writes_parameters=any(run.writes_parameters for run in runs), unseen=unseen)


def _error(model: nn.Module, example: Any, failure: Failure) -> TraceError:
    place = f"in {failure.path!r}" if failure.path else "at its entry"
    error = failure.error
    message = (str(error).splitlines() or [""])[0]
    return TraceError(
        f"cannot trace {type(model).__name__}: the run failed {place} on the example {describe(example)} with "
        f"{type(error).__name__}: {message}. Give an example the model accepts: a tensor, a tuple of positional "
        "arguments or a mapping of keyword arguments; a list holds several of such",
        path=failure.path,
    )
