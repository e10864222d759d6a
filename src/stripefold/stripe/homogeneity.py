"""How a value grows when the map it is computed from is scaled: what tells a normalisation from a gate.

Multiply a map by s > 0. A factor that normalises it is measured on the map itself and falls as 1/s, so that the product
stays what it was; a gate's factor does not, whatever it is computed by. So the question is about degrees of
homogeneity, f(s x) = s^d f(x), and the recorded run answers it operation by operation, however it is written.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from stripefold.graph.graph import Graph, Node
from stripefold.graph.operation_names import (
    BOUNDED,
    DEGREES,
    EXPONENTIAL_BASES,
    LIMITS,
    LOGARITHM_BASES,
    MULTILINEAR,
    OF_LARGER,
    OF_SMALLER,
    POWERS,
    PRODUCTS,
    SAME_DEGREE,
    SAME_LOGARITHM,
    SAMPLE_NORMS,
    SIGNED_SUMS,
    SIGNS,
    SQUASHING,
    WEIGHTED,
)

_SMALL = 0.1
"""A number added that is not larger keeps a division from failing; it is no part of what is measured."""


@dataclass(frozen=True)
class Growth:
    """A value becomes s^degree times itself, or degree log(s) is added to it.

    Attributes:
        degree: d.
        logarithm: it is the logarithm of such a value.
        affine: only in the limit of large s: a number that is not small, or a bias, was added on the way.
    """

    degree: float = 0.0
    logarithm: bool = False
    affine: bool = False


CONSTANT = Growth()


def is_normalisation(graph: Graph, scaled: int, factor: int, *, divided: bool = False) -> bool | None:
    """Whether a product stays what it is when the map that both factors are computed from is scaled.

    Args:
        graph: Of a trace.
        scaled: The factor that varies over positions.
        factor: The other one.
        divided: The product is scaled / factor.

    Returns:
        None where it hangs on the value of an exponent that is a tensor.
    """
    origin, between = common_origin(graph, (scaled, factor))
    if origin is None:
        return False
    known = _growths(graph, origin, between)
    if known.get(factor) is None and any(_has_open_exponent(graph, i) for i in _behind(graph, factor, between)):
        return None
    map_, other = known.get(scaled), known.get(factor)
    if map_ is None or other is None or map_.logarithm or other.logarithm or other.affine:
        return False
    by = -other.degree if divided else other.degree
    return map_.degree > 0 and by < 0 and math.isclose(map_.degree, -by, rel_tol=1e-6)


def common_origin(graph: Graph, values: Iterable[int]) -> tuple[int | None, list[int]]:
    """The latest value through which some values depend on the model's input; and what lies between, in order."""
    frontier = {-index for index in values}
    heap = sorted(frontier)
    between: list[int] = []
    while len(heap) > 1:
        index = -heapq.heappop(heap)
        frontier.discard(-index)
        sources = [i for i in dict.fromkeys(graph.nodes[index].inputs) if graph.nodes[i].role != "constant"]
        if not sources:
            return None, []  # an input of the model beside others
        between.append(index)
        for source in sources:
            if -source not in frontier:
                frontier.add(-source)
                heapq.heappush(heap, -source)
    return (-heap[0], between[::-1]) if heap else (None, [])


def _behind(graph: Graph, value: int, between: list[int]) -> list[int]:
    return [i for i in between if graph.values_upstream[value] >> i & 1]


def _has_open_exponent(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    return node.name in POWERS and len(node.inputs) > 1 and graph.nodes[node.inputs[1]].role == "constant"


def _growths(graph: Graph, origin: int, between: list[int]) -> dict[int, Growth | None]:
    known: dict[int, Growth | None] = {origin: Growth(1.0)}
    for index in between:
        node = graph.nodes[index]
        given = [known.get(i, CONSTANT) for i in node.inputs]
        if any(growth is None for growth in given):
            known[index] = CONSTANT if node.name in SQUASHING else None
        else:
            found = _after(graph, index, [growth for growth in given if growth is not None])
            known[index] = CONSTANT if found is not None and not found.degree else found
    return known


def _after(graph: Graph, index: int, given: list[Growth]) -> Growth | None:
    """What an operation makes of it; None where that is not known."""
    node = graph.nodes[index]
    moving = [growth for growth in given if growth != CONSTANT]
    if not moving or node.role == "integer_dependent":
        return CONSTANT
    if node.kind == "layer":
        return _through_layer(node, moving)
    if any(growth.logarithm for growth in moving):
        return _of_logarithms(node, given, moving)
    if node.name == "var_mean":
        return moving[0] if node.position > 0 else _power(moving[0], 2.0)
    if node.name in SIGNED_SUMS:
        return _sum(node, given, [graph.nodes[i].unbroadcast_numel for i in node.inputs])
    if node.name == "div":
        return Growth(given[0].degree - given[1].degree, affine=_affine(given)) if len(given) == 2 else moving[0]
    if node.name in LIMITS:
        return _clamped(node, given)
    for judge in (_through_power, _through_linear, _through_choice):
        found = judge(node, given, moving)
        if found is not None:
            return found
    return None


def _through_layer(node: Node, moving: list[Growth]) -> Growth:
    """Affine in what it is given, unless it normalises or squashes that."""
    bounded = any(name in SAMPLE_NORMS or name in BOUNDED for name in node.inner)
    degree = 0.0 if bounded else max(growth.degree for growth in moving)
    return Growth(degree, affine=True) if degree > 0 else CONSTANT


def _through_power(node: Node, given: list[Growth], moving: list[Growth]) -> Growth | None:
    if node.name in DEGREES:
        return _power(moving[0], DEGREES[node.name])
    if node.name in LOGARITHM_BASES:
        return Growth(moving[0].degree / math.log(LOGARITHM_BASES[node.name]), logarithm=True)
    number = _number(node, "exponent")
    if node.name in POWERS and number is not None:
        return _power(moving[0], number)
    return None


def _through_linear(node: Node, given: list[Growth], moving: list[Growth]) -> Growth | None:
    if node.name in MULTILINEAR:
        return Growth(sum(growth.degree for growth in moving), affine=_affine(moving) or node.name in WEIGHTED)
    return None


def _through_choice(node: Node, given: list[Growth], moving: list[Growth]) -> Growth | None:
    if node.name in OF_LARGER and len(given) > 1:
        return max(moving if node.name == "where" else given, key=lambda growth: growth.degree)
    if node.name in OF_SMALLER:
        return min(given, key=lambda growth: growth.degree)
    if node.name in SAME_DEGREE:
        return moving[0]
    falling = all(growth.degree < 0 for growth in moving)
    if node.name in SAMPLE_NORMS or (node.name in BOUNDED and (node.name not in EXPONENTIAL_BASES or falling)):
        return CONSTANT
    return None


def _of_logarithms(node: Node, given: list[Growth], moving: list[Growth]) -> Growth | None:
    """Logarithms: sums and multiples of them, means, and the way back."""
    number = _number(node)
    first = moving[0]
    if node.name in EXPONENTIAL_BASES:
        return Growth(first.degree * math.log(EXPONENTIAL_BASES[node.name]))
    base = _number(node, "self")
    if node.name == "pow" and base is not None and base > 0:
        return Growth(first.degree * math.log(base))
    if not all(growth.logarithm or growth == CONSTANT for growth in given):
        return None
    if node.name in SIGNED_SUMS:
        return replace(first, degree=sum(sign * g.degree for sign, g in zip(SIGNS[node.name], given, strict=False)))
    if node.name in PRODUCTS and number is not None and number:
        return replace(first, degree=first.degree * number if node.name == "mul" else first.degree / number)
    if node.name == "neg":
        return replace(first, degree=-first.degree)
    return first if node.name in SAME_LOGARITHM else None


def _power(growth: Growth, exponent: float) -> Growth:
    return replace(growth, degree=growth.degree * exponent)


def _sum(node: Node, given: list[Growth], sizes: list[int]) -> Growth:
    """The summand that grows fastest; one small number that is added to all changes nothing."""
    number = _number(node)
    largest = max(given, key=lambda growth: growth.degree)
    if len(given) == 1:
        if number is not None and abs(number) <= _SMALL:
            return largest
        return replace(largest, affine=True) if largest.degree > 0 else CONSTANT
    mixed = any(g.degree != largest.degree and size > 1 for g, size in zip(given, sizes, strict=True))
    return replace(largest, affine=_affine(given) or mixed)


def _clamped(node: Node, given: list[Growth]) -> Growth:
    """A bound on a size that is measured keeps it from 0; on anything else it makes a gate of it."""
    growth = given[0]
    if not growth.affine:
        return growth
    bounds = _bounds(node)
    upper, lower = bounds[1] is not None, bounds[0] is not None
    free = (growth.degree > 0 and not upper) or (growth.degree < 0 and not lower)
    return growth if free else CONSTANT


def _bounds(node: Node) -> tuple[object, object]:
    given = node.arguments
    if node.name == "threshold":
        return 0, None
    if len(node.inputs) > 1:  # tensors as bounds
        return 0, 0 if len(node.inputs) > 2 else None
    return given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))


def _affine(given: Iterable[Growth]) -> bool:
    return any(growth.affine for growth in given)


def _number(node: Node, name: str = "other") -> float | None:
    """An argument that is a number, or None."""
    number = node.arguments.get(name)
    return float(number) if isinstance(number, (int, float)) and not isinstance(number, bool) else None
