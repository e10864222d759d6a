"""What is found, in code that has never been seen, and what is listed instead of being taken for a gate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import TraceError
from stripefold.modules.example import infer_example
from stripefold.stripe.discover import Discovery, discover
from tests.lifecycle import images as tiny_images
from tests.lifecycle import snapshot, tiny
from tests.stripe.gated import (
    CHANNELS,
    LISTED,
    NO_PRODUCT,
    WRITTEN_OUT,
    Gated,
    Stacked,
    Tokens,
    images,
    seeded,
    split,
    two,
)

NAMED = {
    "mobilenetv3_large_100": 8,
    "efficientnet_b0": 16,
    "regnety_002": 13,
    "seresnet50": 16,
    "ghostnet_100": 7,
    "ecaresnet50d": 16,
}
NAMED_TORCHVISION = {"efficientnet_b0": 16, "mobilenet_v3_large": 8, "regnet_y_400mf": 16}


def found(model: nn.Module, size: tuple[int, ...] | None = None) -> Discovery:
    return discover(model, torch.zeros(2, *size) if size else infer_example(model))


@pytest.mark.parametrize(("name", "count"), NAMED.items())
def test_timm_counts(name: str, count: int) -> None:
    discovery = found(timm.create_model(name))
    assert len(discovery.gates) == len({gate.name for gate in discovery.gates}) == count
    assert all(gate.whole and gate.source and gate.entry and gate.split == 1 for gate in discovery.gates)
    assert discovery.others == ()


@pytest.mark.parametrize(("name", "count"), NAMED_TORCHVISION.items())
def test_torchvision_counts(name: str, count: int) -> None:
    discovery = found(torchvision.models.get_model(name))
    assert len(discovery.gates) == count
    assert all(gate.whole and gate.kind == "SqueezeExcitation" and gate.axis == 1 for gate in discovery.gates)
    assert all(str(gate.source).endswith("scale_activation") for gate in discovery.gates)


def test_control_without_attention() -> None:
    assert found(timm.create_model("resnet18")).gates == found(torchvision.models.resnet18()).gates == ()


ATTENTION_LAYERS = {
    "se": (8, 0, 0), "ese": (8, 0, 0), "eca": (8, 0, 0), "ceca": (8, 0, 0), "gc": (8, 0, 0),
    "gca": (0, 8, 0), "cbam": (8, 8, 0), "lcbam": (8, 8, 0), "sk": (8, 0, 2), "splat": (8, 0, 2),
}  # fmt: skip


@pytest.mark.parametrize("layer", ATTENTION_LAYERS)
def test_every_attention_of_timm(layer: str) -> None:
    gates, others, branches = ATTENTION_LAYERS[layer]
    if layer in ("sk", "splat"):
        model = timm.create_model({"sk": "skresnet18", "splat": "resnest14d"}[layer])
        gates = 8 if layer == "sk" else 4
    else:
        model = timm.create_model("resnet18", block_args={"attn_layer": layer})
    discovery = found(model, (3, 64, 64))
    assert len(discovery.gates) == gates
    assert len(discovery.others) == others
    assert all(gate.split == (branches or 1) for gate in discovery.gates)


@pytest.mark.parametrize(
    ("layer", "reason"), [("gca", "additive gate"), ("cbam", "spatial gate"), ("lcbam", "spatial gate")]
)
def test_the_other_half_is_listed(layer: str, reason: str) -> None:
    discovery = found(timm.create_model("resnet18", block_args={"attn_layer": layer}), (3, 64, 64))
    assert {reason in other.why for other in discovery.others} == {True}


@pytest.mark.parametrize("gate", WRITTEN_OUT, ids=lambda gate: gate.__name__)
def test_code_with_the_product_in_its_forward(gate: object) -> None:
    discovery = discover(seeded(Gated, gate), images())
    (only,) = discovery.gates
    assert (only.name, only.where, only.kind, only.channels, only.whole) == ("", "", "Gated", CHANNELS, False)
    assert only.source is None
    assert only.entry == "fc"
    assert only.axis == (3 if gate.__name__ == "channel_last" else 1)
    nodes = discovery.trace.graph.nodes
    assert nodes[only.descriptor].unbroadcast_numel == len(images()) * CHANNELS
    assert {only.gate, only.scaled} <= set(nodes[only.product].inputs)


@pytest.mark.parametrize("gate", NO_PRODUCT, ids=lambda gate: gate.__name__)
def test_constants_are_nothing(gate: object) -> None:
    discovery = discover(seeded(Gated, gate), images())
    assert (discovery.gates, discovery.others) == ((), ())


@pytest.mark.parametrize(("gate", "reason"), LISTED.items(), ids=[gate.__name__ for gate in LISTED])
def test_listed_with_the_reason(gate: object, reason: str) -> None:
    discovery = discover(seeded(Gated, gate), images())
    assert discovery.gates == ()
    (other,) = discovery.others
    assert reason in other.why
    assert len(other.shape) in (3, 4)


@pytest.mark.parametrize(
    ("kind", "reason"), [("channel", ""), ("token", "spatial gate"), ("glu", "element by element")]
)
def test_tokens(kind: str, reason: str) -> None:
    discovery = discover(seeded(Tokens, kind), torch.zeros(2, 7, 5, dtype=torch.float64))
    assert [gate.axis for gate in discovery.gates] == ([] if reason else [2])
    assert [reason in other.why for other in discovery.others] == ([True] if reason else [])


class Conditioned(nn.Module):
    """Scale and image are two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, CHANNELS, 3), nn.Linear(5, CHANNELS)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.conv(x) * self.fc(condition)[:, :, None, None]


def test_a_scale_from_another_input_is_listed() -> None:
    discovery = discover(Conditioned(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5)))
    assert discovery.gates == ()
    assert ["another input" in other.why for other in discovery.others] == [True]


def test_a_second_product_in_one_module_gets_a_number() -> None:
    gates = discover(seeded(Gated, two), images()).gates
    assert [gate.name for gate in gates] == ["", "#2"]
    assert [gate.entry for gate in gates] == ["fc", "other"]


def test_branches_are_what_they_are() -> None:
    (gate,) = discover(seeded(Gated, split), images()).gates
    assert (gate.split, gate.channels, gate.axis) == (2, 2 * CHANNELS, 2)


def test_a_shared_gate_is_two_gates() -> None:
    gates = discover(seeded(Stacked, shared=True), images()).gates
    assert [(gate.name, gate.source, gate.source_call, gate.where_call) for gate in gates] == [
        ("gate1", "gate1.gate", 0, 0),
        ("gate1#2", "gate1.gate", 1, 1),
    ]
    assert all(gate.whole for gate in gates)


@pytest.mark.parametrize(("extent", "gates"), [(0, 1), (2, 0)])
def test_gather_excite_is_a_channel_gate_over_the_whole_map_only(extent: int, gates: int) -> None:
    gather = timm.layers.GatherExcite(CHANNELS, extent=extent, use_mlp=False)
    discovery = discover(nn.Sequential(nn.Conv2d(3, CHANNELS, 3), gather, nn.ReLU()), images().float())
    assert len(discovery.gates) == gates
    assert ["element by element" in other.why for other in discovery.others] == [True] * (1 - gates)


def test_behind_a_norm_that_computes_in_ways_of_its_own() -> None:
    """Nothing in what EvoNorm computes tells where the channels are; its rule does."""
    discovery = found(timm.create_model("test_efficientnet_evos"), (3, 64, 64))
    assert (len(discovery.gates), len(discovery.others)) == (2, 0)


def test_maps_of_one_position() -> None:
    """At 32 x 32 the last stage has 1 x 1 maps, on which a gate has the shape of the map."""
    assert len(found(timm.create_model("legacy_seresnet18"), (3, 32, 32)).gates) == 8


OWN = [name for name in sf.attention_names(acts="channels", how="multiply") if name != "scale"]


@pytest.mark.parametrize("attention", OWN)
def test_own_dynamic_attention(attention: str) -> None:
    model = sf.attach(tiny(), attention, form="dynamic")
    gates = discover(model, tiny_images()).gates
    assert [gate.where.partition(".gates")[0] for gate in gates] == ["blocks.0.bn2", "blocks.1.bn2"]


def test_static_gates_are_no_dynamic_attention() -> None:
    discovery = discover(sf.attach(tiny(), "se"), tiny_images())
    assert (discovery.gates, discovery.others) == ((), ())


def test_the_model_stays_as_it_was() -> None:
    model = seeded(Stacked).train()
    before = snapshot(model)
    discover(model, images())
    assert snapshot(model) == before


def test_an_example_that_does_not_fit() -> None:
    with pytest.raises(TraceError, match=r"'conv1' on the example \(2, 5, 8, 8\)"):
        discover(seeded(Stacked), torch.zeros(2, 5, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("pool", [F.adaptive_avg_pool2d, F.adaptive_max_pool2d])
def test_a_gate_on_a_map_of_one_position_is_found_by_its_pooling(pool: Callable[..., Tensor]) -> None:
    def gate(model: Gated, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(model.fc(pool(x, 1).flatten(1)))[:, :, None, None]

    def element_by_element(model: Gated, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(model.fc(x.flatten(1)))[:, :, None, None]

    assert len(discover(Gated(gate).eval(), torch.randn(2, 3, 8, 8)).gates) == 1
    assert not discover(Gated(element_by_element).eval(), torch.randn(2, 3, 8, 8)).gates


def test_what_is_no_gate_is_listed_in_the_order_of_the_run() -> None:
    def several(model: Gated, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(model.spatial(x[:, :2]))
        x = x * torch.sigmoid(x)
        return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()

    others = discover(Gated(several).eval(), torch.randn(2, 3, 8, 8)).others
    starts = [next(k for k, word in enumerate(ORDER) if word in other.why) for other in others]
    assert starts == [0, 1, 2]


ORDER = ("a spatial gate", "element by element", "a normalisation")
