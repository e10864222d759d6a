"""The home of operation names: they exist in torch, and no other module of the library holds a set of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stripefold.graph import operation_names
from stripefold.graph.operation_table import OPERATIONS

LIBRARY = Path(operation_names.__file__).parents[1]
HOME = "graph/operation_names.py"
# File -> why it names several operations beside the home.
EXCEPTIONS = {
    "attention/base.py": "options that users type",
    "folding/static_constants.py": "the table of kinds of constants, and views with a cast among them",
    "graph/graph.py": "a pair of steps, one after the other",
    "graph/operation_table.py": "the table of what each operation does",
}
ATEN = {name.removeprefix("aten::").split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "aten::" in name}
KNOWN = ATEN | {name.rstrip("_") for name in ATEN} | operation_names.RECORDERS_OWN


def home_sets() -> dict[str, set[str]]:
    named = {key: value for key, value in vars(operation_names).items() if key.isupper()}
    return {key: set(value) for key, value in named.items() if isinstance(value, frozenset | dict)}


def words_of(node: ast.AST) -> list[str]:
    """The names that a literal lists: a set, tuple, list, a mapping to plain values, or a text of words."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.split()
    if isinstance(node, ast.Dict) and all(isinstance(value, ast.Constant) for value in node.values):
        elements = list(node.keys)
    elif isinstance(node, ast.Set | ast.Tuple | ast.List):
        elements = list(node.elts)
    else:
        return []
    texts = [each.value for each in elements if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return texts if len(texts) == len(elements) else []


def lists_of_operations(text: str) -> Iterator[str]:
    """Literals of a source that name two operations or more and nothing else."""
    for node in ast.walk(ast.parse(text)):
        words = words_of(node)
        if len(words) > 1 and set(words) <= KNOWN:
            yield f"line {node.lineno}: {' '.join(words)}"


def test_the_sets_are_found() -> None:
    assert {"PRODUCTS", "VIEWS", "SAME_DEGREE", "DEGREES", "KEEP_AXES"} <= set(home_sets())


@pytest.mark.parametrize("key", sorted(home_sets()))
def test_every_name_is_an_operation_of_torch(key: str) -> None:
    if key == "OUT_OF_TORCH":
        assert all(hasattr(torch.Tensor, name) for name in home_sets()[key])
    else:
        assert home_sets()[key] <= KNOWN


def test_every_row_of_the_table_is_an_operation_of_torch() -> None:
    assert set(OPERATIONS) <= KNOWN


def test_no_other_module_holds_a_set_of_operations() -> None:
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        name = path.relative_to(LIBRARY).as_posix()
        if name != HOME and (lists := list(lists_of_operations(path.read_text(encoding="utf-8")))):
            found[name] = lists
    beyond = {name: lists for name, lists in found.items() if name not in EXCEPTIONS}
    assert not beyond, "move them to graph/operation_names.py"
    assert set(EXCEPTIONS) == set(found), "an exception that nothing needs"


@pytest.mark.parametrize(
    "text",
    ['X = {"mul", "div"}', 'if name in ("add", "sub"): pass', 'X = names("mul div")', 'X = {"mul": 1, "add": 2}'],
)
def test_a_set_elsewhere_is_found(text: str) -> None:
    assert list(lists_of_operations(text))


@pytest.mark.parametrize("text", ['X = {"mul", "no_such"}', 'X = "mul"', 'X = {"mul": f, "add": g}'])
def test_other_literals_are_none(text: str) -> None:
    assert not list(lists_of_operations(text))


DIFFERENCES = [
    ("ADDITIONS", "SIGNED_SUMS", {"lerp", "addcmul"}),
    ("MULTIPLICATIONS", "PRODUCTS", {"addcmul"}),
    ("LIMITS", "CLAMPS", {"hardtanh", "threshold"}),
    ("WITH_WEIGHT", "WEIGHTED", {"instance_norm"}),
    # Products of two maps are no weighted layers.
    ("WEIGHTED", "WITH_WEIGHT", set(operation_names.LINEAR_MAPS) - {"linear"}),
    ("SAMPLE_NORMS", "MULTILINEAR", set(operation_names.SAMPLE_NORMS)),
]


@pytest.mark.parametrize(("wider", "other", "more"), DIFFERENCES)
def test_sets_that_differ_on_purpose(wider: str, other: str, more: set[str]) -> None:
    """What each adds to its neighbour, so that a name is never added to one of them by mistake."""
    assert home_sets()[wider] - home_sets()[other] == more
