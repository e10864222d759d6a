"""Residual tails of small blocks, one property each; every block has a control that lacks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stripefold.graph.trace import Trace, trace
from tests.graph.affine import is_affine

Forward = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """Layers to compose, and a forward that is given."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(4)
        self.plain = nn.InstanceNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.position = nn.Parameter(torch.ones(1, 4, 8, 8))
        self.token = nn.Parameter(torch.ones(1, 4, 1, 8))
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def traced(forward: Forward) -> Trace:
    return trace(Block(forward), torch.randn(2, 4, 8, 8), is_layer=is_affine)


def tails(forward: Forward) -> list[str]:
    return [tail.name for tail in traced(forward).residual_tails()]


def branch(m: Block, x: Tensor) -> Tensor:
    return m.second(m.first(x).relu())


def into_slice(m: Block, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[:, :, :4] = m.first(x)[:, :, :4]
    y[:, :, 4:] = m.second(x)[:, :, 4:]
    return x + y


def half_in_place(m: Block, x: Tensor) -> Tensor:
    """The two halves are views of one tensor; a write into one must not touch the other."""
    left, right = m.first(x).chunk(2, dim=2)
    left += m.second(right)
    return torch.cat([left, right], dim=2)


def decoder(m: Block, x: Tensor) -> Tensor:
    """As in DETR: the stream starts at zero, the same positions are added in each step, norms stand behind the sums."""
    stream = torch.zeros(2, 4, 8, 8)
    stream = m.norm(stream + m.first(stream + m.position))
    stream = m.norm(stream + m.second(stream + m.position + x))
    return m.norm(stream + m.position)


def in_place(m: Block, x: Tensor) -> Tensor:
    x = m.third(x)
    y = branch(m, x)
    y += x
    return y


def through_view(m: Block, x: Tensor) -> Tensor:
    x = m.third(x)
    y = branch(m, x)
    y.view(2, -1).add_(x.flatten(1))
    return y.sigmoid()


SUMS: dict[str, Forward] = {
    "+": lambda m, x: x + branch(m, x),
    "reversed": lambda m, x: branch(m, x) + x,
    "-": lambda m, x: x - branch(m, x),
    "alpha": lambda m, x: torch.add(x, branch(m, x), alpha=0.5),
    "in place": in_place,
    "in place through a view": through_view,
    "sum of a list": lambda m, x: sum([x, branch(m, x)]),
    "sum of a stack": lambda m, x: torch.stack([x, branch(m, x)], dim=1).sum(1),
    "mean of a stack": lambda m, x: torch.stack([x, branch(m, x)]).mean(0),
    "lerp": lambda m, x: torch.lerp(x, branch(m, x), 0.3),
    "addcmul": lambda m, x: torch.addcmul(x, m.scale, branch(m, x)),
    "parameter": lambda m, x: x + m.scale * branch(m, x),
    "dropout": lambda m, x: x + nn.functional.dropout(branch(m, x), 0.5, m.training),
    "activation": lambda m, x: x + branch(m, x).relu(),
    "views": lambda m, x: x + branch(m, x).flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape),
    "roll and pad": lambda m, x: x + nn.functional.pad(branch(m, x).roll(1, 2), (1, 1))[..., 1:-1],
    "gate": lambda m, x: x + (y := branch(m, x)) * m.gate(y.mean((2, 3), keepdim=True)).sigmoid(),
    "expanded gate": lambda m, x: x + (y := branch(m, x)) * m.gate(y.mean((2, 3), keepdim=True)).expand_as(y),
    "gate as large as the map": lambda m, x: x + branch(m, x) * m.gate(x).sigmoid(),
    "projection": lambda m, x: m.gate(x) + m.norm(m.second(m.first(x)))[:, :] * 1.0,
    "norm behind": lambda m, x: m.norm(x + branch(m, x)),
    "fixed position": lambda m, x: (y := x + m.position) + branch(m, y),
    "mask": lambda m, x: x + branch(m, x).masked_fill(x > 0, 0.0),
}


@pytest.mark.parametrize("name", SUMS)
def test_sum_of_a_branch_and_its_shortcut(name: str):
    expected = ["norm"] if name == "projection" else ["second"]
    assert tails(SUMS[name]) == expected


NO_RESIDUAL: dict[str, Forward] = {
    "no sum": branch,
    "sum over another dimension": lambda m, x: torch.stack([x, branch(m, x)], dim=1).sum(2),
    "position embedding": lambda m, x: branch(m, x) + m.position,
    "constant from a layer": lambda m, x: branch(m, x) + m.third(m.position),
    "mask": lambda m, x: branch(m, x) + (x > 0).float(),
    "twice the same": lambda m, x: (y := branch(m, x)) + y,
    "equal branches": lambda m, x: m.first(x) + m.second(x),
    "number": lambda m, x: branch(m, x) + 1,
}


@pytest.mark.parametrize("name", NO_RESIDUAL)
def test_other_sums_are_not_residual(name: str):
    result = traced(NO_RESIDUAL[name])
    assert result.residual_tails() == []
    assert result.branches_without_tail() == []


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        pytest.param(lambda m, x: x + torch.cat([m.first(x)[:, :2], m.second(x)[:, 2:]], 1), "first second", id="cat"),
        pytest.param(into_slice, "first second", id="written into slices"),
        pytest.param(half_in_place, "second", id="write into one half"),
        pytest.param(lambda m, x: x + m.first(x) + m.third(m.second(x)), "first third", id="chain of sums"),
        pytest.param(lambda m, x: x + (m.first(x) + m.second(x)), "first second", id="parallel branches"),
        pytest.param(lambda m, x: m.third(x) + branch(m, x) + x, "third second", id="unequal parallel branches"),
        pytest.param(lambda m, x: x + ((y := m.first(x)) + branch(m, y)).relu(), "second", id="branch ends in a sum"),
        pytest.param(lambda m, x: x + m.first(m.first(x)), "first", id="layer called twice"),
        pytest.param(decoder, "first second", id="positions added to a stream that starts as a constant"),
        pytest.param(
            lambda m, x: (t := m.token.expand(2, -1, -1, -1)) + branch(m, torch.cat([t, x], 2))[:, :, :1],
            "second",
            id="class token",
        ),
    ],
)
def test_where_branches_end(forward: Forward, expected: str):
    assert tails(forward) == expected.split()


def test_layer_scale_is_walked_through_and_taken_only_alone():
    class LayerScale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gamma

    def run(forward: Forward) -> list[str]:
        model = Block(forward)
        model.scaling = LayerScale()
        return [tail.name for tail in trace(model, torch.randn(2, 4, 8, 8), is_layer=is_affine).residual_tails()]

    assert run(lambda m, x: x + m.scaling(branch(m, x))) == ["second"]
    assert run(lambda m, x: x + m.scaling(x.relu())) == ["scaling"]


def test_a_cancelled_layer_is_never_a_tail():
    cancelled = traced(lambda m, x: x + m.plain(branch(m, x)))
    assert cancelled.residual_tails() == []
    assert cancelled.branches_without_tail() == ["the branch added in the model itself ends in 'view' in plain"]
    assert cancelled.cancelled_by("second") == "plain"
    assert tails(lambda m, x: x + m.norm(branch(m, x))) == ["norm"]


def test_attention_scores_have_no_tail():
    result = traced(lambda m, x: m.first(x) @ m.second(m.third(x)) + m.norm(x))
    assert result.residual_tails() == []
    assert "'_unsafe_view'" in result.branches_without_tail()[0]


def test_why_names_the_place_and_the_depths():
    (tail,) = traced(SUMS["projection"]).residual_tails()
    assert tail.why == "last layer of the branch added in the model itself (3 deep, shortcut 1)"


def test_separate_inputs_do_not_make_a_residual():
    class Biased(Block):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return branch(self, x) + bias

    pair = torch.randn(2, 2, 4, 8, 8).unbind()
    assert trace(Biased(branch), tuple(pair), is_layer=is_affine).residual_tails() == []


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_projection_that_is_never_called(norm_first: bool, batch_first: bool):
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=norm_first, batch_first=batch_first)
    result = trace(layer, torch.randn(3, 5, 8), is_layer=is_affine)
    assert [tail.name for tail in result.residual_tails()] == ["self_attn.out_proj", "linear2"]
    (call,) = result.calls("self_attn.out_proj")
    assert call.implicit
    assert not result.calls("linear1")[0].implicit
    assert result.uncalled == ()


def test_transformer_with_masks_and_cross_attention():
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    x = torch.randn(2, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    names = [t.name for t in trace(model, {"src": x, "tgt": x, "tgt_mask": mask}, is_layer=is_affine).residual_tails()]
    assert names == [
        "encoder.layers.0.self_attn.out_proj",
        "encoder.layers.0.linear2",
        "decoder.layers.0.self_attn.out_proj",
        "decoder.layers.0.multihead_attn.out_proj",
        "decoder.layers.0.linear2",
    ]
