"""Layers that did not run on the examples, and the values they may meet on another path.

Which layers run may hang on an argument, an attribute, a size, a value. A layer that did not run would be called by the
code of the innermost module around it that did run. So every value which that code handles may go into the layer, or
may be what the layer gives on the other path: nothing may be moved across such a value. What lies between two layers
inside another module's call is not seen by that code, and may be merged. A layer that this code does not mention is
called by nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from stripefold.graph.alternatives import is_alternative
from stripefold.graph.graph import Graph
from stripefold.modules.mentions import may_call
from stripefold.modules.tensor_mentions import NamedPlaces, tensors_named

# Nothing changes by going past one of these, but they may be taken in place of what does something.
_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NEUTRAL_NAMES = frozenset({"DropPath", "StochasticDepth", "PatchDropout", "DropBlock2d"})


DID_NOT_RUN = "did not run on the example"
"""Part of every reason that hangs on such a layer, and of what is told about them."""


@dataclass
class _Tree:
    """A model's modules by all of their paths.

    Attributes:
        first: ``id`` of a module -> the first of its paths, by which a graph knows it.
        modules: every path -> module.
        called: first paths of the modules that ran, in whichever run.
    """

    first: dict[int, str] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)

    def name(self, path: str) -> str:
        """The first path of the module at a path."""
        return self.first[id(self.modules[path])]

    def caller(self, path: str) -> str:
        """The path, along this one, of the innermost module around that ran, the model itself in the end."""
        parts = path.split(".")
        for length in range(len(parts) - 1, 0, -1):
            above = ".".join(parts[:length])
            if self.name(above) in self.called:
                return above
        return ""


def expose_unseen(model: nn.Module, graphs: Sequence[Graph], layers: Iterable[str]) -> tuple[str, ...]:
    """Mark the values that layers may meet which ran in none of the graphs (``Graph.exposed``).

    Args:
        model: that was recorded.
        graphs: one for each example.
        layers: the paths of what was one opaque step; what lies inside one is not looked at.

    Returns:
        The first paths of what did not run.
    """
    tree = _tree(model, graphs)
    opaque = tuple(f"{path}." if path else "" for path in layers)
    unseen: dict[str, None] = {}
    for path, module in tree.modules.items():
        if path.startswith(opaque) or not _can_run(module) or tree.name(path) in tree.called:
            continue
        if not module._modules and not _is_used(path, module, graphs):
            caller = tree.caller(path)
            if not _may_run(tree, caller, path):
                continue
            unseen[tree.name(path)] = None
            reason = f"may meet {path!r}, which {DID_NOT_RUN},"
            for graph in graphs:
                _expose(
                    graph,
                    graph.visible.get(tree.name(caller), ()),
                    reason,
                    weighted=any(True for _ in module.parameters()),
                )
        elif module._modules:
            _expose_shared(tree, path, graphs)
    _mark_read(tree, graphs, frozenset(layers))
    return tuple(unseen)


def _mark_read(tree: _Tree, graphs: Sequence[Graph], layers: frozenset[str]) -> None:
    """Count a layer as read in all runs whose tensors one of them read, or the code of a module names."""
    read = set().union(*(graph.read for graph in graphs))
    known: dict[type, NamedPlaces] = {}
    for path in tree.called - layers:
        named = (layer for layer, _ in tensors_named(tree.modules[path], known))
        read |= {tree.first[id(layer)] for layer in named if id(layer) in tree.first}
    for graph in graphs:
        graph.read |= read


def _may_run(tree: _Tree, caller: str, path: str) -> bool:
    """Whether the code of a module may call what is at a path below it; one that does nothing, in place of another."""
    above, parts = tree.modules[caller], path.removeprefix(f"{caller}." if caller else "").split(".")
    if not _is_neutral(tree.modules[path]):
        return may_call(above, parts[0], tree.modules[path])
    paths = [".".join([*([caller] if caller else []), *parts[: k + 1]]) for k in range(len(parts))]
    unit = next(tree.modules[each] for each in paths if _can_run(tree.modules[each]) and not _has_run(tree, each))
    ran = {name for name, child in above._modules.items() if child is not None and _holds_called(tree, child)}
    return is_alternative(above, parts[0], unit, ran)


def _has_run(tree: _Tree, path: str) -> bool:
    """Whether a module, or anything in it, was called: slices of a sequence run its modules, not itself."""
    return _holds_called(tree, tree.modules[path])


def _holds_called(tree: _Tree, module: nn.Module) -> bool:
    return any(tree.first.get(id(each)) in tree.called for each in module.modules())


def _tree(model: nn.Module, graphs: Sequence[Graph]) -> _Tree:
    tree = _Tree()
    scripted: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.jit.ScriptModule):  # which tells nothing of what runs in it
            scripted = (*scripted, f"{path}.")
        if isinstance(module, torch.jit.ScriptModule) or path.startswith(scripted or ("\0",)):
            continue
        tree.first.setdefault(id(module), path)
        tree.modules[path] = module
    for graph in graphs:
        tree.called |= {visit.name for visit in graph.module_calls} | {call.name for call in graph.calls}
    return tree


def _can_run(module: nn.Module) -> bool:
    """Whether a module has a forward; lists and dictionaries of modules have none."""
    return type(module).forward is not nn.Module.forward


def _is_neutral(module: nn.Module) -> bool:
    return isinstance(module, _NEUTRAL) or type(module).__name__ in _NEUTRAL_NAMES


def _is_used(path: str, module: nn.Module, graphs: Sequence[Graph]) -> bool:
    """Whether a layer's tensors took part in a run without a call of the layer."""
    return any(f"{path}.{key}" in graph.tensors for graph in graphs for key in (*module._parameters, *module._buffers))


def _expose_shared(tree: _Tree, path: str, graphs: Sequence[Graph]) -> None:
    """A module that did not run, and holds by another path what did run: there it meets other neighbours."""
    reason = f"is handled by {path!r}, too, which {DID_NOT_RUN},"
    inside = f"{path}."
    own = (inside, f"{tree.name(path)}.")  # by whichever path it is known
    for inner in [each for each in tree.modules if each.startswith(inside)]:
        name = tree.name(inner)
        if name == inner or name.startswith(own) or name not in tree.called:
            continue
        for graph in graphs:
            _expose(graph, _around(graph, name), reason, weighted=True)


def _around(graph: Graph, name: str) -> Iterator[int]:
    """What the calls of a module were given, and what they returned."""
    for visit in graph.module_calls:
        if visit.name == name:
            yield from (*visit.inputs, *visit.outputs)
    for index in graph.results(name):
        yield from (index, *graph.nodes[index].inputs)


def _expose(graph: Graph, values: Iterable[int], reason: str, *, weighted: bool) -> None:
    for index in values:
        if weighted and index not in graph.meets_weights:
            graph.meets_weights.add(index)
            graph.exposed[index] = reason
        graph.exposed.setdefault(index, reason)


def unseen_in_words(unseen: Sequence[str] | Mapping[str, object]) -> str:
    """A few of the layers that did not run, for messages."""
    names = list(unseen)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
