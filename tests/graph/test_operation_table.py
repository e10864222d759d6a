"""The table of operations against execution: row x {scale, shift} x {backward, forward}, exact or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.graph.absorption import FoldTarget, Refusal
from stripefold.graph.graph import Graph
from stripefold.graph.operation_names import names
from stripefold.graph.operation_table import OPERATIONS, Change
from stripefold.graph.propagate import Flow
from stripefold.graph.trace import trace
from stripefold.layers.absorb import absorb
from stripefold.layers.accepts import Acceptance
from stripefold.layers.rule import rule_for
from stripefold.modules.float64_weights import Float64Weights
from tests.lifecycle import EXACT, error

Step = Callable[[Tensor], Tensor]
WAYS: list[tuple[Change, str]] = [("scale", "back"), ("scale", "ahead"), ("shift", "back"), ("shift", "ahead")]
CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
ATEN = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """An operation, and what the table says of it.

    Attributes:
        step: what is computed of (N, C, positions).
        says: for each of ``WAYS``: "+" any, "n" not negative, "-" refused.
        dims: position axes.
        axis: of the channels of the result.
        why: part of every refusal.
    """

    step: Step
    says: str
    dims: int = 2
    axis: int = 1
    why: str = ""


class Two(nn.Module):
    """Two layers that meet."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor], inputs: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b, self.meet = nn.Conv2d(inputs, outputs, 1), nn.Conv2d(inputs, outputs, 1), meet

    def forward(self, x: Tensor) -> Tensor:
        return self.meet(self.a(x), self.b(x))


def ones(x: Tensor) -> Tensor:
    """Another map of the same shape, not changed."""
    return torch.ones_like(x).cumsum(2)


def around(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def shuffled(x: Tensor) -> Tensor:
    n, c, *rest = x.shape
    return x.view(n, 2, c // 2, *rest).transpose(1, 2).reshape(n, c, *rest)


EVERYTHING = {
    "flatten and back": lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0),
    "view as": lambda x: ATEN.view_as(x, x.clone()),
    "channel shuffle": shuffled,
    "transposed and back": lambda x: x.transpose(1, 2).transpose(1, 2),
    "slice": lambda x: x[..., 1:-1],
    "select": lambda x: x[..., 1],
    "clone": lambda x: x.contiguous(memory_format=torch.channels_last).clone().detach(),
    "another type and back": lambda x: x.to(torch.float64, copy=True),
    "roll": lambda x: torch.roll(x, 1, 2),
    "flip": lambda x: x.flip(3),
    "minus": lambda x: -x,
    "mean": lambda x: x.mean(3, keepdim=True),
    "mean and gone": lambda x: x.mean(3),
    "expanded mean": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3),
    "average pooling": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "average, padded, not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replication": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest exact": lambda x: F.interpolate(x, size=(5, 7), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, size=(5, 7), mode="bicubic", align_corners=True),
    "bilinear, smoothed": lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True),
    "bicubic, smoothed": lambda x: F.interpolate(x, size=(3, 3), mode="bicubic", antialias=True),
    "times a number": lambda x: x * 3.0 / 2.0,
    "a number times": lambda x: torch.mul(-3.0, x),
}
FLAT = {
    "average pooling": lambda x: F.avg_pool1d(x, 2),
    "adaptive average": lambda x: F.adaptive_avg_pool1d(x, 3),
    "reflection": lambda x: F.pad(x, (1, 2), mode="reflect"),
    "replication": lambda x: F.pad(x, (1, 2), mode="replicate"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest exact": lambda x: F.interpolate(x, size=5, mode="nearest-exact"),
    "linear": lambda x: F.interpolate(x, size=5, mode="linear"),
    "expanded": lambda x: ATEN.expand_as(x.mean(2, keepdim=True), x),
}
SOLID = {
    "average pooling": lambda x: F.avg_pool3d(x, 2),
    "adaptive average": lambda x: F.adaptive_avg_pool3d(x, 2),
    "reflection": lambda x: F.pad(x, (1,) * 6, mode="reflect"),
    "replication": lambda x: F.pad(x, (1,) * 6, mode="replicate"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest exact": lambda x: F.interpolate(x, size=(3, 4, 5), mode="nearest-exact"),
    "trilinear": lambda x: F.interpolate(x, size=(3, 4, 5), mode="trilinear"),
}
MAXIMA = {
    "largest": lambda x: x.amax(3, keepdim=True),
    "smallest": lambda x: x.amin(3, keepdim=True),
    "max pooling": lambda x: F.max_pool2d(x, 3, 2, 1),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, 2),
}
RECTIFIERS = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu_(x * 1.0),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "prelu": nn.PReLU(),
    "rrelu": nn.RReLU(),
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(0),
    "clamp_min": lambda x: ATEN.clamp_min(x, 0),
    "threshold": nn.Threshold(0.0, 0.0),
}
NEVER = {
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "relu6": F.relu6,
    "silu": F.silu,
    "clamp elsewhere": lambda x: x.clamp(0.1),
    "threshold elsewhere": nn.Threshold(0.1, 0.0),
    "softmax": lambda x: x.softmax(1),
    "cumsum": lambda x: x.cumsum(2),
    "mean over channels": lambda x: x.mean(1, keepdim=True).expand(-1, x.shape[1], -1, -1),
    "roll of channels": lambda x: torch.roll(x, 1, 1),
    "square": lambda x: x * x,
    "its own gate": lambda x: x * x.mean((2, 3), keepdim=True),
    "1 over": lambda x: 1.0 / (x.abs() + 3),
    "rounded quotient": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "largest of two": lambda x: torch.maximum(x, ones(x)),
    "to an integer": lambda x: (3 * x).to(torch.int32).double(),
}
CASES: dict[str, Case] = {
    **{name: Case(step, "++++") for name, step in EVERYTHING.items()},
    **{f"{name} 1d": Case(step, "++++", dims=1) for name, step in FLAT.items()},
    **{f"{name} 3d": Case(step, "++++", dims=3) for name, step in SOLID.items()},
    **{name: Case(step, "nn++") for name, step in MAXIMA.items()},
    "max pooling 1d": Case(lambda x: F.max_pool1d(x, 2), "nn++", dims=1),
    "adaptive max 1d": Case(lambda x: F.adaptive_max_pool1d(x, 2), "nn++", dims=1),
    "max pooling 3d": Case(lambda x: F.max_pool3d(x, 2), "nn++", dims=3),
    "adaptive max 3d": Case(lambda x: F.adaptive_max_pool3d(x, 2), "nn++", dims=3),
    **{name: Case(step, "nn--", why="does not pass on") for name, step in RECTIFIERS.items()},
    **{name: Case(step, "----") for name, step in NEVER.items()},
    "channels last": Case(last, "++++", axis=3),
    "flattened": Case(lambda x: x.mean((2, 3)).flatten(1), "++++"),
    "sum": Case(lambda x: x.sum(3, keepdim=True), "++--", why="it adds it several times"),
    "average, padded": Case(lambda x: F.avg_pool2d(x, 3, 2, 1), "++--", why="padded zeros are averaged, too"),
    "average with a divisor": Case(lambda x: F.avg_pool2d(x, 2, divisor_override=3), "++--", why="by another number"),
    "zero padding": Case(lambda x: F.pad(x, (1, 2, 0, 1)), "++--", why="would have to be shifted, too"),
    "padding with 1": Case(lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), "----", why="constant_pad_nd"),
    "plus 1": Case(lambda x: x + 1.0, "--++", why="adds"),
    "minus 1": Case(lambda x: x - 1.0, "--++", why="adds"),
    "1 minus": Case(lambda x: 1.0 - x, "----", why="'rsub'"),
    "plus a complex number": Case(lambda x: (x + (1 + 0j)).real, "----"),
    "times a complex number": Case(lambda x: (x * (2 + 0j)).real, "----"),
    "times nothing": Case(lambda x: x * 0.0 + ones(x), "----"),
    "plus another": Case(lambda x: x + ones(x), "--++", why="adds what"),
    "another minus": Case(lambda x: ones(x) - x, "--++", why="adds what"),
    "plus twice another": Case(lambda x: torch.add(ones(x), x, alpha=2), "--++", why="adds what"),
    "times another": Case(lambda x: x * ones(x), "++--", why="it multiplies what is added, too"),
    "over another": Case(lambda x: x / ones(x), "++--", why="it multiplies what is added, too"),
    "another over": Case(lambda x: ones(x) / (x + 0), "----"),
    "x + x c": Case(lambda x: x + x * ones(x)[:, :, :1, :1], "++--"),
    "x + 2 x": Case(lambda x: x + x * 2.0, "++-+", why="used unshifted, too"),
    "x + mean": Case(lambda x: x + around(x), "++-+", why="used unshifted, too"),
    "beside another": Case(lambda x: torch.cat([ones(x), x], 1), "-+-+", why="a constant"),
    "a piece": Case(lambda x: x.split(2, 1)[1], "-+-+", why="some of the channels"),
    "an uneven piece": Case(lambda x: x.split([1, x.shape[1] - 1], 1)[1], "-+-+", why="some of the channels"),
    "some channels": Case(lambda x: x[:, 1:], "-+-+", why="some of the channels"),
    "both pieces": Case(lambda x: torch.cat(x.chunk(2, 1), 1), "-+-+", why="some of the channels"),
}  # fmt: skip


class Changed(nn.Module):
    """x * v, or x + t: what is to move."""

    def __init__(self, vector: Tensor, change: Change, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("vector", vector)
        self.change, self.shape = change, shape

    def forward(self, x: Tensor) -> Tensor:
        return x * self.vector.view(self.shape) if self.change == "scale" else x + self.vector.view(self.shape)


class Function(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


def example(dims: int, generator: torch.Generator) -> Tensor:
    """Random sizes, such that axes cannot be told apart by them: some are as long as others."""
    sizes = torch.randint(4, 8, (dims,), generator=generator).tolist()
    return torch.randn((2, 3, *sizes), generator=generator, dtype=torch.float64)


def network(case: Case, change: Change, way: str, seed: int) -> tuple[nn.Sequential, Tensor, int]:
    """producer - step - change, or producer - change - step - consumer; an input; the channel axis at the change."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, channels = example(case.dims, generator), 2 * int(torch.randint(2, 5, (), generator=generator))
    producer = CONVOLUTIONS[case.dims](3, channels, 1).double()
    step = (case.step if isinstance(case.step, nn.Module) else Function(case.step)).double()
    with torch.no_grad():
        made = step(producer(x))
    axis, rank = (case.axis, made.dim()) if way == "back" else (1, x.dim())
    width = made.shape[axis] if way == "back" else channels
    neutral = torch.ones if change == "scale" else torch.zeros
    changed = Changed(neutral(width, dtype=torch.float64), change, (*[1] * axis, width, *[1] * (rank - axis - 1)))
    if way == "back":
        return nn.Sequential(producer, step, changed, nn.Tanh()).eval(), x, axis
    if case.axis != 1 or made.dim() == 2:
        head: nn.Module = nn.Linear(made.shape[case.axis], 3)
    else:
        head = CONVOLUTIONS[made.dim() - 2](made.shape[1], 3, 1)
    return nn.Sequential(producer, changed, step, head.double(), nn.Tanh()).eval(), x, axis


def recorded(model: nn.Module, x: Tensor) -> Graph:
    return trace(model, x, is_layer=lambda m: rule_for(m) is not None).graph


def propagated(model: nn.Module, x: Tensor, change: Change, way: str, axis: int) -> FoldTarget | Refusal:
    graph = recorded(model, x)
    place = "2" if way == "back" else "1"
    result = next(i for i, n in enumerate(graph.nodes) if n.where == place and n.name in ("mul", "add"))
    moved = max(graph.nodes[result].inputs, key=lambda i: graph.nodes[i].role != "constant")
    flow = Flow(graph=graph, accept=Acceptance(model), dead=graph.dead)
    if way == "back":
        return flow.backward(change, moved, axis, user=result)
    return flow.forward(change, result, axis)


def carried_out(model: nn.Module, target: FoldTarget, vector: Tensor, x: Tensor) -> float:
    """How far the model with the vector in its layers is from the one that multiplies, or adds it."""
    folded, expected = copy.deepcopy(model), copy.deepcopy(model)
    (changed,) = [module for module in expected.modules() if isinstance(module, Changed)]
    changed.vector.copy_(vector)
    merged = Float64Weights()
    for part in target.parts:
        absorb(merged, folded.get_submodule(part.layer), part, vector)
    merged.write_()
    with torch.no_grad():
        assert error(expected(x), model(x)) > 1e-4  # the control: the change is seen
        return error(folded(x), expected(x))


def vector_for(model: nn.Module) -> Tensor:
    """Of both signs, away from 0 and 1."""
    (changed,) = [module for module in model.modules() if isinstance(module, Changed)]
    size = 0.3 + 0.5 * torch.rand(
        changed.vector.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    return size * (-1) ** torch.arange(size.numel())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_every_entry_is_exact_or_refused(name: str, seed: int) -> None:
    case = CASES[name]
    for (change, way), says in zip(WAYS, case.says, strict=True):
        model, x, axis = network(case, change, way, seed)
        found = propagated(model, x, change, way, axis)
        if says == "-":
            assert isinstance(found, Refusal), (change, way)
            assert case.why in found.why or len(case.says.strip("-")) == 0, (change, way, found.why)
            continue
        assert isinstance(found, FoldTarget), (change, way, found)
        assert found.nonnegative == (says == "n"), (change, way)
        vector = vector_for(model)
        if says == "n":
            assert carried_out(model, found, vector, x) > 1e-4  # the condition is a real one
            vector = vector.abs()
        assert carried_out(model, found, vector, x) < EXACT, (change, way)


def test_every_row_is_run() -> None:
    """No row of the table is there on trust: all but other names of the same operation are in a recorded run."""
    ran: set[str] = set()
    for case, (change, way) in product(CASES.values(), WAYS[1:2]):
        model, x, _ = network(case, change, way, 0)
        ran |= {node.name for node in recorded(model, x).nodes}
    # Names under which another way of running torch hands on the same operations.
    same = names(
        "_reshape_alias reshape flatten unflatten view_as t expand_as alias contiguous detach to lift_fresh concat "
        "concatenate prelu dropout feature_dropout alpha_dropout unsafe_split unsafe_split_with_sizes "
        "_adaptive_avg_pool1d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
        "avg_pool1d max_pool1d max_pool1d_with_indices max_pool2d max_pool3d"
    )
    assert set(OPERATIONS) - ran - same == set()


MEETINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "sum": (torch.add, "ab a"),
    "difference": (torch.sub, "ab a"),
    "weighted sum": (lambda a, b: torch.add(a.tanh(), b, alpha=3), "- b"),
    "subtrahend": (lambda a, b: a.tanh() - b, "- b"),
    "joined": (lambda a, b: torch.cat([a, b], 1), "ab ab"),
    "gated": (lambda a, b: torch.sigmoid(a) * b, "b -"),
    "quotient": (lambda a, b: a / (2 + torch.sigmoid(b)), "a -"),
    "divisor": (lambda a, b: torch.sigmoid(a) / b, "- -"),
}


@pytest.mark.parametrize("name", MEETINGS)
def test_where_two_layers_meet_backward(name: str) -> None:
    """A scale goes into every summand and one factor, a shift into one summand."""
    meet, says = MEETINGS[name]
    for change, takers in zip(("scale", "shift"), says.split(), strict=True):
        case = Case(Two(meet, 4, 4), "")
        torch.manual_seed(0)
        x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
        width = 8 if name == "joined" else 4
        neutral = torch.ones if change == "scale" else torch.zeros
        changed = Changed(neutral(width, dtype=torch.float64), change, (1, width, 1, 1))  # type: ignore[arg-type]
        model = nn.Sequential(nn.Conv2d(3, 4, 1), case.step, changed, nn.Tanh()).double().eval()  # type: ignore[arg-type]
        found = propagated(model, x, change, "back", 1)  # type: ignore[arg-type]
        if takers == "-":
            assert isinstance(found, Refusal)
            continue
        assert isinstance(found, FoldTarget), found
        assert found.layers == tuple(f"1.{name}" for name in takers)
        assert carried_out(model, found, vector_for(model), x) < EXACT
