"""The costs of docs/guides/scale.md: formulas against networks, and the page against the script."""

from __future__ import annotations

import pytest
import torch

import stripefold as sf
from benchmarks.scale import NETWORKS, PAGE, all_reduced, attached, cost_of, moment_bytes, sharded, with_costs
from stripefold.stripe.moments import Moments
from stripefold_lab.models import create_model


def test_the_formulas_of_the_page() -> None:
    model = sf.attach(create_model("resnet20"), "se", attention_options={"reduction": 4})
    cost = cost_of(model)
    widths = [len(v) for v in sf.scales(model).values()]
    hidden = [max(1, round(width / 4)) for width in widths]
    assert (cost.sites, cost.channels) == (9, sum(widths))
    assert cost.gates == sum(2 * c * h + h + 2 * c for c, h in zip(widths, hidden, strict=True))
    assert cost.multiply_adds == sum(2 * c * h + 2 * c for c, h in zip(widths, hidden, strict=True))
    assert cost.backbone == sum(parameter.numel() for parameter in sf.detach(model).parameters())
    assert cost.gradient_bytes == (4 * cost.backbone, 4 * cost.gates)
    # Two layers, ReLU and sigmoid for v; v times the weight, v times the bias.
    assert cost.operators == 6


def test_repeated_gates_cost_more() -> None:
    costs = [cost_of(sf.attach(create_model("resnet20"), "se", repeats=repeats)) for repeats in (1, 2)]
    assert costs[1].gates == 2 * costs[0].gates
    assert costs[1].operators > costs[0].operators


def test_moments_do_not_grow_with_images() -> None:
    few, many = (Moments.of(torch.randn(count, 7)) for count in (2, 2000))
    assert few.mean.nbytes + few.m2.nbytes == many.mean.nbytes + many.m2.nbytes == 7 * moment_bytes()


def test_bytes_on_the_wire() -> None:
    assert all_reduced(100, 1) == sharded(100, 1) == 0
    assert all_reduced(100, 2) == 100
    assert sharded(100, 2) == 150


@pytest.mark.slow
def test_the_page_has_the_figures_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_costs(page, [(name, cost_of(attached(name))) for name in NETWORKS]) == page
