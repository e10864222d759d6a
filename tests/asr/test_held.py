"""A layer that a function on the model holds: what would take its place there would not be run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import AttachError, BakeError, BranchError, FoldError
from tests.lifecycle import assert_refused, error, images, scatter_


class Held(nn.Module):
    """A residual branch whose last layer runs through ``run``; ``plain`` is an ordinary one behind it."""

    def __init__(self, hold: Callable[[Held], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.plain = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)
        self.run = hold(self)

    def forward(self, x: Tensor) -> Tensor:
        run = self.run if callable(self.run) else self.run["last"][0]
        x = x + run(self.conv(x))
        return self.head((x + self.plain(torch.tanh(x))).mean((2, 3)))


def closed_over(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x)


HOLD: dict[str, Callable[[Held], Any]] = {
    "forward": lambda model: model.norm.forward,
    "call": lambda model: model.norm.__call__,
    "partial": lambda model: functools.partial(model.norm),
    "partial of forward": lambda model: functools.partial(model.norm.forward),
    "of a module outside": lambda model: nn.Sequential(model.norm).forward,
    "deep": lambda model: {"last": [functools.partial(functools.partial(model.norm.forward))]},
}


@pytest.mark.parametrize("how", list(HOLD))
def test_a_layer_that_a_function_holds_is_no_site(how: str) -> None:
    model = Held(HOLD[how]).double().eval()
    for call in (sf.attach, sf.attach_):
        assert_refused(
            model,
            lambda call=call: call(model, where="norm"),
            AttachError,
            "cannot attach to 'norm': 'run' holds it inside a f",
        )
    refused = {site.name: site.why for site in sf.sites(model, where="affine").refused}
    gated = sf.attach(model, where="residual", example=images())
    assert sorted(sf.scales(gated)) == ["plain"]
    assert "'run' holds it" in refused["norm"]


def block(model: Held) -> Any:
    model.part = nn.Sequential(model.norm)  # type: ignore[assignment]
    return model.part.forward


def test_what_holds_a_block_or_a_list_of_layers_is_followed() -> None:
    torch.manual_seed(0)
    for hold in (lambda model: {"last": [model.norm]}, block):
        model = Held(hold).double().eval()
        gated = scatter_(sf.attach(model, where="norm"))
        assert error(gated(images()), model(images())) > 1e-3
        assert error(sf.fold(gated, example=images())(images()), gated(images())) < 1e-10


def test_a_closure_does_not_come_along_in_a_copy() -> None:
    model = Held(lambda model: lambda x: model.norm(x)).double().eval()
    assert_refused(model, lambda: sf.attach(model, where="norm"), AttachError, "would still run modules of the model")
    gated = scatter_(sf.attach_(model, where="norm"))
    with pytest.raises(FoldError, match="still runs 'norm' of the training model"):
        sf.fold(gated, example=images())
    for made in (lambda: sf.branch(model, "repvgg", where="conv"), lambda: sf.detach(gated)):
        with pytest.raises((BranchError, AttachError), match="would still run modules of the model itself"):
            made()
    inner = Held(lambda model: closed_over(model.norm)).double().eval()
    assert_refused(inner, lambda: sf.attach_(inner, where="norm"), AttachError, "'run' holds it inside a function")


def test_blocks_and_constants_are_not_put_where_they_would_not_run() -> None:
    model = Held(lambda model: model.norm.forward).double().eval()
    model.keep = model.conv.forward  # type: ignore[assignment]
    assert_refused(model, lambda: sf.branch(model, "repvgg", where="conv"), BranchError, "'keep' holds it inside a f")
    gated = sf.attach(Held(lambda model: nn.Identity()).double(), where="plain", form="dynamic").eval()
    attention = gated.plain.gates[0].attention
    gated.keep = attention.forward  # type: ignore[assignment]
    with pytest.raises(BakeError, match="cannot be replaced: 'keep' holds it inside a function"):
        sf.bake(gated, [images(), images(seed=1)], example=images())
