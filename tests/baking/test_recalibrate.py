"""BatchNorm statistics: exact over all batches, only behind the gates, everything else as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stripefold.baking.batches import Batches
from stripefold.baking.recalibrate import norms_behind, recalibrate_
from stripefold.errors import BakeError
from stripefold.graph.trace import trace
from stripefold.layers.rule import rule_for
from tests.lifecycle import images, snapshot, tiny


def norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def uneven() -> Tensor:
    """12 images whose mean drifts, so that batches differ."""
    return images(12) + torch.linspace(-2, 2, 12, dtype=torch.float64)[:, None, None, None]


def inputs_of(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a norm is given when all of x runs at once, (C, values)."""
    kept: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return kept[0].transpose(0, 1).flatten(1)


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [1, 2, 9]])
def test_statistics_are_those_of_all_images(sizes: list[int]) -> None:
    model = tiny().eval()
    name = "blocks.0.bn1"  # nothing in front of it is normalised
    values = inputs_of(model, name, uneven())
    recalibrate_(model, norms(model), Batches(uneven().split(sizes), "data", model))
    norm = model.get_submodule(name)
    assert torch.allclose(norm.running_mean, values.mean(1), rtol=1e-12, atol=1e-12)
    assert torch.allclose(norm.running_var, values.var(1), rtol=1e-12, atol=1e-12)


def test_the_mean_of_the_batches_variances_would_be_another_number() -> None:
    model = tiny().eval()
    values = inputs_of(model, "blocks.0.bn1", uneven()).unflatten(1, (12, -1))
    naive = torch.stack([part.flatten(1).var(1) for part in values.split(4, dim=1)]).mean(0)
    recalibrate_(model, norms(model), Batches(uneven().split(4), "data", model))
    assert bool((model.blocks[0].bn1.running_var > 1.05 * naive).any())


def test_one_batch_gives_what_training_with_momentum_one_gives() -> None:
    model, reference = tiny().eval(), tiny().train()
    for norm in norms(reference).values():
        norm.momentum = 1.0
    with torch.no_grad():
        reference(uneven())
    before = {name: norm.running_mean.clone() for name, norm in norms(model).items()}
    recalibrate_(model, norms(model), Batches(uneven(), "data", model))
    for name, norm in norms(model).items():
        assert torch.allclose(norm.running_mean, norms(reference)[name].running_mean, rtol=1e-10, atol=1e-10)
        assert torch.allclose(norm.running_var, norms(reference)[name].running_var, rtol=1e-10)
        assert not torch.allclose(norm.running_mean, before[name], rtol=1e-2)


def test_nothing_but_the_named_statistics_changes() -> None:
    model = tiny().eval()
    before, old = snapshot(model), copy.deepcopy(model.state_dict())
    recalibrate_(model, {"blocks.1.bn2": model.blocks[1].bn2}, Batches(uneven().split(4), "data", model))
    changed = [key for key, value in model.state_dict().items() if not torch.equal(old[key], value)]
    assert changed == ["blocks.1.bn2.running_mean", "blocks.1.bn2.running_var"]
    model.load_state_dict(old)
    assert snapshot(model) == before  # flags and hooks too


def test_norms_behind_a_value() -> None:
    model = tiny()
    graph = trace(model, images(), is_layer=lambda m: rule_for(m) is not None).graph
    (value,) = graph.results("blocks.0.bn2")
    assert list(norms_behind(model, graph, [value])) == ["blocks.0.bn2", "blocks.1.bn1", "blocks.1.bn2"]
    assert list(norms_behind(model, graph, graph.results("head"))) == []


def test_norms_without_statistics_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4)).double()
    graph = trace(model, images(), is_layer=lambda m: rule_for(m) is not None).graph
    assert list(norms_behind(model, graph, graph.results("0"))) == ["2"]


def test_single_values_are_refused_and_undone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    before = snapshot(model)
    with pytest.raises(BakeError, match=r"'?calibration'? has batches of a single value per channel.*larger batches"):
        recalibrate_(model, {"1": model[1]}, Batches([torch.ones(4, 3), torch.ones(1, 3)], "calibration", model))
    assert snapshot(model) == before


def test_inputs_that_are_not_finite_are_refused_and_undone() -> None:
    model = tiny().eval()
    before = snapshot(model)
    bad = images().index_fill(0, torch.tensor([1]), float("nan"))
    with pytest.raises(BakeError, match=r"the inputs of 'blocks.0.bn1' are not finite"):
        recalibrate_(model, norms(model), Batches([images(), bad], "data", model))
    assert snapshot(model) == before


def test_an_interrupt_leaves_the_model_as_it_was() -> None:
    model = tiny().eval()
    before = snapshot(model)

    class Stopped:
        def __iter__(self):
            yield images()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recalibrate_(model, norms(model), Batches(Stopped(), "data", model))
    assert snapshot(model) == before
