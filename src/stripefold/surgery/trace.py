"""One recorded run of a model: which module's output flows where.

It is an ordinary run on real tensors, of a structural copy. A model that lives on the meta device runs there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from stripefold.errors import TraceError
from stripefold.surgery import flow
from stripefold.surgery.graph import Call, Graph
from stripefold.surgery.record_run import Failure, IsLayer, describe, record_run
from stripefold.surgery.residual import Tail, residual_tails
from stripefold.surgery.unseen import expose_unseen


class Trace:
    """What flows where in a model, asked by dotted layer path.

    Attributes:
        graph: Every value of the run, for questions that are not asked here.
        called: Affine layers that the run used.
        uncalled: Affine layers that the run did not use.
        unseen: Modules, layers or not, that might run on another input and did not.
        writes_parameters: Whether a run has to have parameters of its own, because it writes to them.
    """

    def __init__(
        self, graph: Graph, layers: Iterable[str], *, writes_parameters: bool = False, unseen: tuple[str, ...] = ()
    ) -> None:
        self.graph = graph
        self.writes_parameters, self.unseen = writes_parameters, unseen
        used = {call.name for call in graph.calls}
        self._layers = tuple(layers)
        self.called = frozenset(used)
        self.uncalled = tuple(name for name in self._layers if name not in used)

    def other_paths(self) -> str | None:
        """Why the model may run other layers on another input, in words; None where nothing says so."""
        if not self.graph.decisions or not self.uncalled:
            return None
        where = self.graph.decisions[0]
        listed = ", ".join(map(repr, self.uncalled[:3])) + (" ..." if len(self.uncalled) > 3 else "")
        return f"{where or 'its own forward'} reads values of the input, and {listed} did not run on the example"

    def residual_tails(self) -> list[Tail]:
        """The last affine layer of every residual branch, in call order, each once."""
        return residual_tails(self.graph)[0]

    def branches_without_tail(self) -> list[str]:
        """Every residual branch that ends in no affine layer, in words."""
        return residual_tails(self.graph)[1]

    def cancelled_by(self, name: str) -> str | None:
        """The BatchNorm or InstanceNorm right behind a layer that undoes a scale of its channels, or None."""
        return flow.cancelling_norm(self.graph, self._known(name))

    def followed_by(self, name: str) -> str | None:
        """The only layer that takes this layer's output, with nothing that matters in between, or None."""
        return self.follower(name).name

    def follower(self, name: str) -> flow.Follower:
        """As ``followed_by``, with the reason."""
        return flow.follower(self.graph, self._known(name))

    def consumers(self, name: str) -> tuple[str, ...]:
        """The layers that this layer's output reaches without passing another layer."""
        return flow.consumers(self.graph, self._known(name))

    def producers(self, name: str) -> tuple[str, ...]:
        """The layers whose output reaches this layer without passing another layer."""
        return flow.producers(self.graph, self._known(name))

    def calls(self, name: str) -> list[Call]:
        """Every call of a layer, with the shapes of its inputs and outputs."""
        known = self._known(name)
        return [call for call in self.graph.calls if call.name == known]

    def _known(self, name: str) -> str:
        if name not in self._layers:
            raise TraceError(f"{name!r} is not an affine layer of the traced model: use the first of its dotted paths")
        return name


def trace(model: nn.Module, example: Any, *, is_layer: IsLayer) -> Trace:
    """Run a model once in eval mode and record what flows where; the model stays as it was.

    Args:
        model: Any model. Its own hooks run.
        example: A tensor, a tuple of positional or a mapping of keyword arguments.
        is_layer: Says which modules are affine layers; such a module is one opaque step.

    Raises:
        TraceError: The model does not run on the example.
    """
    result = record_run(model, example, is_layer=is_layer)
    if isinstance(result, Failure):
        raise _error(model, example, result) from result.error
    unseen = expose_unseen(model, [result.graph], result.layers)
    return Trace(result.graph, result.layers, writes_parameters=result.writes_parameters, unseen=unseen)


def _error(model: nn.Module, example: Any, failure: Failure) -> TraceError:
    place = f"in {failure.path!r}" if failure.path else "at its entry"
    error = failure.error
    message = (str(error).splitlines() or [""])[0]
    return TraceError(
        f"cannot trace {type(model).__name__}: the run failed {place} on the example {describe(example)} with "
        f"{type(error).__name__}: {message}. Give an example the model accepts: a tensor, a tuple of positional "
        "arguments or a mapping of keyword arguments"
    )
