"""Every refusal names what was found and what to do."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.ops.misc import FrozenBatchNorm2d

from stripefold.layers.refusal import refusal, refusal_in
from stripefold.modules.modules import tensor_owners


class MyNorm(nn.BatchNorm2d):
    pass


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class Rotated(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flip(0)


def parametrized() -> nn.Module:
    layer = nn.Linear(3, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Rotated())
    return layer


def patched() -> nn.Module:
    layer = nn.Linear(3, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(nn.Linear(3, 4))


def assigned() -> nn.Module:
    layer = nn.Linear(3, 4)
    del layer.weight
    layer.weight = torch.zeros(4, 3)
    return layer


def complex_weight() -> nn.Module:
    return nn.Linear(3, 4, dtype=torch.complex64)


def complex_statistics() -> nn.Module:
    layer = nn.BatchNorm1d(3)
    layer.running_mean = torch.zeros(3, dtype=torch.complex128)
    return layer


def integer_weight() -> nn.Module:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 3, dtype=torch.int8), requires_grad=False)
    return layer


CASES = [
    (lambda: MyNorm(3), r"no rule for .*MyNorm \(exact type\).*register_rule\(MyNorm, like=nn.BatchNorm2d\)"),
    (Own, r"no rule for .*Own .*register_rule\(Own, rule=Rule\(...\)\)"),
    (lambda: nn.Sequential(nn.Linear(3, 4)), "Sequential is a container: gate one of the layers in it"),
    (nn.ReLU, "ReLU has no affine part"),
    (lambda: nn.BatchNorm2d(3, affine=False), "no affine part.*affine=True"),
    (lambda: nn.LayerNorm(3, elementwise_affine=False), "no affine part.*elementwise_affine=True"),
    (lambda: nn.LayerNorm((3, 4)), r"normalises over 2 axes .*register a Rule"),
    (parametrized, "is parametrized .'weight'.*remove_parametrizations"),
    (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), "is parametrized"),
    (old_weight_norm, "weight_norm recomputes its 'weight'.*remove_weight_norm"),
    (lambda: nn.utils.spectral_norm(nn.Linear(3, 4)), "spectral_norm recomputes its 'weight'.*remove_spectral_norm"),
    (lambda: prune.random_unstructured(nn.Linear(3, 4), "weight", 0.5), "prune recomputes its 'weight'.*prune.remove"),
    (lambda: prune.random_unstructured(nn.Linear(3, 4), "bias", 0.5), "prune recomputes its 'bias'"),
    (patched, "forward is replaced on the instance.*restore"),
    (assigned, "'weight' is not one of its own parameters"),
    (integer_weight, "is quantized .Linear.*then quantize"),
    (complex_weight, "its 'weight' is complex .torch.complex64.*leave it out"),
    (complex_statistics, "its 'running_mean' is complex .torch.complex128"),
]


@pytest.mark.parametrize(("factory", "message"), CASES)
def test_reasons_and_remedies(factory, message: str) -> None:
    reason = refusal(factory())
    assert reason is not None
    assert re.search(message, reason), reason


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("factory", [lambda: nn.LazyLinear(3), nn.LazyBatchNorm2d, lambda: nn.LazyConv2d(3, 3)])
def test_lazy_layers(factory) -> None:
    assert "run the model once" in str(refusal(factory()))


def test_lazy_layers_are_sites_once_they_ran() -> None:
    layer = nn.LazyLinear(3)
    layer(torch.ones(1, 2))
    assert type(layer) is nn.Linear
    assert refusal(layer) is None


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_quantized_layers() -> None:
    layer = torch.ao.nn.quantized.dynamic.Linear(3, 4)
    assert "is quantized" in str(refusal(layer))


def test_scripted_layers() -> None:
    layer = torch.jit.script(nn.Linear(3, 4))
    assert "torch.jit" in str(refusal(layer))


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Linear(3, 3), nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.Bilinear(2, 3, 4)],
)
def test_plain_layers_are_not_refused(layer: nn.Module) -> None:
    assert refusal(layer) is None


def test_a_tied_weight_names_the_other_holder() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    reason = refusal_in("head", model["head"], tensor_owners(model))
    assert reason is not None
    assert "'weight' is tied to 'embed.weight'" in reason
    assert "parameter of its own" in reason
    model["head"].weight = nn.Parameter(model["head"].weight.detach().clone())
    assert refusal_in("head", model["head"], tensor_owners(model)) is None


@pytest.mark.parametrize("share", [lambda w: w.data, lambda w: w.data.t(), lambda w: w.data[2:]])
def test_memory_counts_not_the_object(share) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = nn.Parameter(share(model["a"].weight))
    assert "tied to 'b.weight'" in str(refusal_in("a", model["a"], tensor_owners(model)))


def test_parts_of_one_storage_are_not_tied() -> None:
    flat, model = torch.randn(8, 4), nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["a"].weight, model["b"].weight = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    assert refusal_in("a", model["a"], tensor_owners(model)) is None


def test_a_buffer_can_be_tied_too() -> None:
    model = nn.ModuleDict({"a": FrozenBatchNorm2d(3), "b": FrozenBatchNorm2d(3)})
    model["b"].weight = model["a"].weight
    assert "tied to 'b.weight'" in str(refusal_in("a", model["a"], tensor_owners(model)))


def test_a_shared_module_is_not_tied_to_itself() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.ModuleDict({"first": norm, "second": norm})
    assert refusal_in("first", norm, tensor_owners(model)) is None


def test_the_root_itself_can_be_the_layer() -> None:
    norm = nn.BatchNorm2d(3)
    assert refusal_in("", norm, tensor_owners(norm)) is None


def test_a_layers_own_reason_comes_first() -> None:
    model = nn.Sequential(MyNorm(3))
    assert "no rule" in str(refusal_in("0", model[0], tensor_owners(model)))
