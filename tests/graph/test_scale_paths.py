"""Where a per-channel scale may go: every answer is carried out and compared, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.graph.absorption import FoldTarget, Refusal
from stripefold.graph.propagate import Flow
from stripefold.graph.trace import trace
from stripefold.layers.absorb import absorb
from stripefold.layers.accepts import Acceptance
from stripefold.layers.rule import register_rule, rule_for
from stripefold.modules.float64_weights import Float64Weights
from tests.lifecycle import EXACT, error

C = 6
Step = Callable[[Tensor], Tensor]


class Function(nn.Module):
    """A function as a module, so that it can stand in a table."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


class Scaled(nn.Module):
    """conv -> before -> times v -> after -> head."""

    def __init__(self, before: nn.Module, after: nn.Module, head: nn.Module, axis: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, C, 3, padding=1)
        self.before, self.after, self.head, self.axis = before, after, head, axis
        self.register_buffer("v", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self.conv(x))
        shape = [1] * x.dim()
        shape[self.axis] = C
        return self.head(self.after(x * self.v.reshape(shape)))


def scaled(before: Step | nn.Module, after: Step | nn.Module, head: nn.Module | None = None, axis: int = 1) -> Scaled:
    torch.manual_seed(0)
    parts = [part if isinstance(part, nn.Module) else Function(part) for part in (before, after)]
    model = Scaled(*parts, head or nn.Conv2d(C, 4, 1), axis).double().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    return model


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def paths(model: Scaled, x: Tensor | None = None) -> tuple[FoldTarget | Refusal, FoldTarget | Refusal]:
    """Backward and forward from the product."""
    graph = trace(model, image() if x is None else x, is_layer=lambda m: rule_for(m) is not None).graph
    product = next(i for i, n in enumerate(graph.nodes) if n.name == "mul" and n.where == "")
    source = next(i for i in graph.nodes[product].inputs if graph.nodes[i].role == "activation")
    flow = Flow(graph=graph, accept=Acceptance(model), dead=graph.dead)
    return (
        flow.backward("scale", source, model.axis, user=product),
        flow.forward("scale", product, model.axis),
    )


def assert_exact(model: Scaled, target: FoldTarget | Refusal, *, nonnegative: bool = False) -> None:
    """Carrying it out is multiplying; not carrying it out is not; and the sign condition is a real one."""
    assert isinstance(target, FoldTarget), target
    assert target.nonnegative == nonnegative
    v = 0.5 + torch.rand(C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if not nonnegative:
        v[::2] *= -1
    assert carried_out(model, target, v) < EXACT
    assert error(model(image()), multiplied(model, v)) > 1e-3
    if nonnegative:
        v[::2] *= -1
        assert carried_out(model, target, v) > 1e-3


def multiplied(model: Scaled, v: Tensor) -> Tensor:
    held = copy.deepcopy(model)
    held.v.copy_(v)
    return held(image())


def carried_out(model: Scaled, target: FoldTarget, v: Tensor) -> float:
    folded = copy.deepcopy(model)
    merged = Float64Weights()
    for part in target.parts:
        absorb(merged, folded.get_submodule(part.layer), part, v)
    merged.write_()
    return error(folded(image()), multiplied(model, v))


def same(x: Tensor) -> Tensor:
    return x


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def assert_reason(found: FoldTarget | Refusal, match: str) -> None:
    assert isinstance(found, Refusal), found
    with pytest.raises(ValueError, match=match):
        raise ValueError(found.why)


LAYERS = {
    "conv": (nn.Conv2d(3, C, 3), nn.Conv2d(C, 4, 3)),
    "grouped": (nn.Conv2d(C, C, 3, groups=2), nn.Conv2d(C, 4, 3, groups=2)),
    "depthwise": (nn.Conv2d(C, C, 3, groups=C), nn.Conv2d(C, 2 * C, 3, groups=C, padding_mode="circular", padding=1)),
    "transposed": (nn.ConvTranspose2d(C, C, 3, groups=3), nn.ConvTranspose2d(C, 4, 3, groups=2, stride=2)),
    "batch norm": (nn.BatchNorm2d(C), nn.BatchNorm2d(C)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_a_scale_on_both_sides(name: str) -> None:
    maker, taker = (copy.deepcopy(layer) for layer in LAYERS[name])
    if getattr(maker, "in_channels", C) == 3:
        maker = nn.Sequential(nn.Conv2d(C, 3, 1), maker)
    model = scaled(maker, same, taker)
    back, ahead = paths(model)
    assert_exact(model, back)
    assert_exact(model, ahead)


def test_flattened_maps_before_a_linear_layer() -> None:
    model = scaled(same, nn.Flatten(), nn.Linear(C * 64, 3))
    ahead = paths(model)[1]
    assert_exact(model, ahead)
    assert isinstance(ahead, FoldTarget)
    assert ahead.parts[0].index == tuple(c for c in range(C) for _ in range(64))


def test_tokens() -> None:
    model = scaled(lambda x: last(x).flatten(1, 2), nn.ReLU(), nn.Linear(C, 3), axis=2)
    back, ahead = paths(model)
    assert_exact(model, back)
    assert_exact(model, ahead, nonnegative=True)


def test_another_axis_than_the_layers_own() -> None:
    model = scaled(lambda x: x[..., :C], lambda x: x[:, :, :, :C], nn.Conv2d(C, 3, 1), axis=3)
    back, ahead = paths(model)
    assert_reason(back, "'slice' in 'before' does not commute")
    assert_reason(ahead, "not the channels at the input of 'head'")


class Pieces(nn.Module):
    """The channels in two pieces, a layer for each."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.parts = nn.ModuleList(nn.Conv2d(size, 2, 1) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.split(self.sizes, 1) if len(set(self.sizes)) > 1 else x.chunk(len(self.sizes), 1)
        return torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=True)], 1)


@pytest.mark.parametrize("sizes", [(2, 4), (3, 3), (1, 2, 3)])
def test_a_split_scales_each_layer_by_its_piece(sizes: tuple[int, ...]) -> None:
    model = scaled(same, Pieces(*sizes), nn.Conv2d(2 * len(sizes), 3, 1))
    ahead = paths(model)[1]
    assert_exact(model, ahead)
    assert isinstance(ahead, FoldTarget)
    assert [len(part.index) for part in ahead.parts] == list(sizes)


class Two(nn.Module):
    """Two layers; how their outputs are put together is the question."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], outputs: int = C) -> None:
        super().__init__()
        self.a, self.b, self.join = nn.Conv2d(C, outputs, 1), nn.Conv2d(C, C - (outputs % C), 1), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.a(x), self.b(x))


class Parted(nn.Module):
    """One layer whose output goes several ways that meet again."""

    def __init__(self, meet: Callable[[Tensor], Tensor], outputs: int = C) -> None:
        super().__init__()
        self.layer, self.meet = nn.Conv2d(C, outputs, 1), meet

    def forward(self, x: Tensor) -> Tensor:
        return self.meet(self.layer(x))


def around(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


@pytest.mark.parametrize(
    "meet",
    [
        lambda x: around(x) - x,  # PoolFormer's token mixer
        lambda x: around(around(x) + x) + F.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1],
        lambda x: torch.sigmoid(torch.ones_like(x)) * (around(x) + x),
    ],
)
def test_backward_through_paths_that_part_and_meet_again(meet: Step) -> None:
    model = scaled(Parted(meet), same)
    back = paths(model)[0]
    assert_exact(model, back)
    assert isinstance(back, FoldTarget)
    assert [part.layer for part in back.parts] == ["before.layer"]


def test_paths_that_part_carry_the_scale_all_of_them_and_the_same_one() -> None:
    assert_reason(paths(scaled(Parted(lambda x: around(x) - x.tanh()), same))[0], "'tanh' in 'before' does not commute")
    model = scaled(Parted(lambda x: (around(x) - x) * x.mean()), same)
    assert_reason(paths(model)[0], "used unscaled, too, by 'mean' in 'before'")
    model = scaled(Parted(lambda x: torch.cat([x, around(x)], 1), C // 2), same)
    assert_reason(paths(model)[0], "one value would have to carry two different scales")


def test_every_consumer_takes_the_scale_or_none_does() -> None:
    model = scaled(same, Two(torch.add))
    ahead = paths(model)[1]
    assert_exact(model, ahead)
    assert isinstance(ahead, FoldTarget)
    assert [part.layer for part in ahead.parts] == ["after.a", "after.b"]
    model = scaled(same, Two(torch.add))
    model.after.b = nn.GroupNorm(2, C).double()
    assert_reason(paths(model)[1], "'after.b': GroupNorm has no input side")


class Twice(nn.Module):
    """Two splits of one value, so that four pieces look alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(C // 2, 2, 1), nn.Conv2d(C // 2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)[0], x.chunk(2, 1)[1]
        return self.a(first) + self.b(second)


def test_pieces_of_a_map_that_is_split_twice() -> None:
    model = scaled(same, Twice(), nn.Conv2d(2, 3, 1))
    assert_exact(model, paths(model)[1])


def test_one_value_twice_in_a_concatenation() -> None:
    halved = nn.Sequential(nn.Conv2d(C, 3, 1), Function(lambda x: torch.cat([x, x], 1)))
    assert_reason(paths(scaled(halved, same))[0], "takes one value twice")


class Optional(nn.Conv2d):
    """A convolution that may take a second input and give a second output."""

    def forward(self, x: Tensor, more: Tensor | None = None, both: bool = False) -> Tensor:
        y = super().forward(x)
        y = y if more is None else y + more
        return (y, 2 * y) if both else y  # type: ignore[return-value]


class Calls(nn.Module):
    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = Optional(C, C, 1), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


def test_layers_with_more_than_one_input_or_output() -> None:
    register_rule(Optional, like=nn.Conv2d)
    ahead = paths(scaled(same, Calls(lambda layer, x: layer(x, torch.ones_like(x).cumsum(1)))))[1]
    assert_reason(ahead, "'after.layer' takes other inputs, too")
    alone = scaled(Calls(lambda layer, x: layer(x, None, True)[0]), same)
    assert_reason(paths(alone)[0], "'before.layer' is called with more than its rule was tried with")

    class Both(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            y, z = self.before.layer(self.conv(x), None, True)
            return self.head(y * self.v.reshape(1, C, 1, 1)) + z.mean()

    alone.__class__ = Both
    assert_reason(paths(alone)[0], "'before.layer' returns several values")


class Shared(nn.Module):
    """A layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.relu(self.layer(x)))


def test_a_layer_that_is_called_twice_takes_nothing() -> None:
    assert_reason(paths(scaled(Shared(), same))[0], "'before.layer' is called 2 times")
    assert_reason(paths(scaled(same, Shared()))[1], "'after.layer' is called 2 times")


class Borrowed(nn.Module):
    """A layer whose weight is used without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.layer.weight)


def test_a_weight_used_without_its_layer_takes_nothing() -> None:
    assert_reason(paths(scaled(Borrowed(), same))[0], "without calling the layer")
    assert_reason(paths(scaled(same, Borrowed()))[1], "without calling the layer")


class Regularised(Borrowed):
    """A layer that is called, and whose weight is read besides."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (1 + self.layer.weight.square().mean())


def test_a_weight_that_is_read_elsewhere_takes_nothing() -> None:
    assert_reason(paths(scaled(Regularised(), same))[0], "a tensor of 'before.layer' is read outside its call")
    assert_reason(paths(scaled(same, Regularised()))[1], "a tensor of 'after.layer' is read outside its call")


def test_a_batch_norm_behind_takes_it_in_evaluation_mode_only() -> None:
    back, ahead = paths(scaled(same, same, nn.BatchNorm2d(C)))
    assert isinstance(back, FoldTarget)
    assert isinstance(ahead, FoldTarget)
    assert (back.eval_only, ahead.eval_only) == (False, True)


def test_a_tied_layer_takes_nothing() -> None:
    model = scaled(Two(lambda a, b: b), same, nn.Conv2d(C, C, 1))
    model.before.a.weight = model.before.b.weight
    assert_reason(paths(model)[0], "'before.b': its 'weight' is tied to 'before.a.weight'")
    model = scaled(Two(lambda a, b: b), same, nn.Conv2d(C, C, 1))
    model.before.a.weight = model.head.weight
    assert_reason(paths(model)[1], "'head': its 'weight' is tied to 'before.a.weight'")


def test_what_is_returned_unscaled_or_used_elsewhere_is_in_the_way() -> None:
    model = scaled(same, same)

    class Returns(Scaled):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            x = self.conv(x)
            return x * self.v.reshape(1, C, 1, 1), x  # type: ignore[return-value]

    model.__class__ = Returns
    back, ahead = paths(model)
    assert_reason(back, "returned by the model unscaled, too")
    assert_reason(ahead, "returned by the model")


def test_a_value_with_two_users() -> None:
    class Skips(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            x = self.before(self.conv(x))
            return self.head(x * self.v.reshape(1, C, 1, 1)) + x.mean()

    model = scaled(same, same)
    model.__class__ = Skips
    assert_reason(paths(model)[0], "used unscaled, too, by 'mean' in the model itself")


def test_the_input_of_the_model_is_no_layer() -> None:
    class Direct(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.repeat(1, 2, 1, 1) * self.v.reshape(1, C, 1, 1))

    model = scaled(same, same)
    model.__class__ = Direct
    assert isinstance(paths(model)[0], Refusal)
    model.forward = lambda x: model.head(x * model.v.reshape(1, C, 1, 1))  # type: ignore[method-assign]
    wide = torch.randn(2, C, 4, 4, dtype=torch.float64)
    assert_reason(paths(model, wide)[0], "no layer's output but the model's input")


def test_nothing_behind() -> None:
    class Ends(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y * self.v.reshape(1, C, 1, 1)
            return self.head(y)

    model = scaled(same, same)
    model.__class__ = Ends
    assert_reason(paths(model)[1], "reaches no layer")


def test_what_lost_its_last_use_is_unused() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x.amax((2, 3), keepdim=True))

    model = nn.Sequential(nn.Conv2d(3, C, 1), Gate())
    graph = trace(model, torch.randn(2, 3, 4, 4), is_layer=lambda m: rule_for(m) is not None).graph
    product = next(i for i, n in enumerate(graph.nodes) if n.name == "mul")
    layer, gate = graph.nodes[product].inputs
    gone = graph.dead_without({product: {gate}})
    assert gate in gone
    assert not {layer, product} & gone
    assert graph.dead == frozenset()
