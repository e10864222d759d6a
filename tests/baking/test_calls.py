"""How a model calls its attention decides what may stand in its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.baking.override_gates import override_gates
from stripefold.errors import BakeError
from stripefold.stripe.discover import discover
from tests.baking.nets import SE, InPlace, Net
from tests.lifecycle import EXACT, error, images, prepared

Body = Callable[[Net, Tensor], Tensor]


class Strong(SE):
    """Takes a number beside the feature map."""

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        v = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3)))))) * strength
        return x * v[:, :, None, None]


def ignored(net: Net, x: Tensor) -> Tensor:
    """The attention works in place, between two functions that no scale passes; what it returns is not used."""
    y = F.gelu(net.conv(x))
    net.se(y)
    return F.gelu(y)


def ignored_before_conv(net: Net, x: Tensor) -> Tensor:
    y = F.gelu(x)
    net.se(y)
    return net.conv(y)


def ignored_behind_conv(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    net.se(y)
    return F.gelu(y)


def returned(net: Net, x: Tensor) -> Tensor:
    return F.gelu(net.se(F.gelu(net.conv(x))))


def both(net: Net, x: Tensor) -> Tensor:
    y = F.gelu(net.conv(x))
    return F.gelu(net.se(y)) + y


def plainly(net: Net, x: Tensor) -> Tensor:
    return net.conv(net.second(x))


BEHIND: dict[str, Body] = {
    "a second argument": lambda net, x: net.se(plainly(net, x), 2.0),
    "a keyword": lambda net, x: net.se(plainly(net, x), strength=2.0),
}


def made(body: Body, **modules: nn.Module) -> Net:
    torch.manual_seed(5)
    return prepared(Net(body, **modules).double(), images(8, seed=30)).eval()


def labelled() -> list[tuple[Tensor, Tensor]]:
    return [(images(6, seed=k), torch.arange(6) % 4) for k in range(3)]


@pytest.mark.parametrize("body", [ignored, both])
def test_an_attention_in_place_whose_input_is_read_on_stays(body: Body) -> None:
    def with_second(net: Net, x: Tensor) -> Tensor:
        return body(net, net.second(net.mid(x)))

    model = made(with_second, se=InPlace(), second=SE(), mid=nn.Conv2d(6, 6, 1))
    _, report = sf.bake(model, labelled())
    assert [(site.name, site.outcome) for site in report.sites] == [("second", "folded"), ("se", "dynamic")]
    assert "'se' writes into its input, and the model goes on with that" in report.sites[1].why
    with pytest.raises(BakeError, match=r"none of the 2 gates can be baked.*use what it returns, x = attention\(x\)"):
        sf.bake(model, labelled(), where="se")


@pytest.mark.parametrize(
    ("body", "outcome"), [(ignored_before_conv, "folded"), (ignored_behind_conv, "folded"), (returned, "multiply")]
)
def test_an_attention_in_place_is_baked_where_that_is_exact(body: Body, outcome: str) -> None:
    model, x = made(body, se=InPlace()), images(6, seed=40)
    baked, report = sf.bake(model, labelled(), recalibrate=False)
    assert [site.outcome for site in report.sites] == [outcome]
    means = {layer.name: layer.mean for layer in sf.observe(model, labelled()).layers}
    with torch.no_grad():
        with override_gates(model, discover(model, x).gates, means):
            held = model(x)
        assert error(baked(x), held) < EXACT
        assert error(baked(x), model(x)) > 1e-6
        model.se.forward = lambda y: y.mul_(means["se"][:, None, None])  # what constant means, without hooks of ours
        assert error(held, model(x)) < EXACT


def test_constants_of_an_attention_in_place_are_trained() -> None:
    model = made(ignored_behind_conv, se=InPlace())
    _, report = sf.bake(model, labelled(), recalibrate=False, finetune=sf.FineTune(steps=3))
    assert report.finetuned is not None


def test_gates_that_train_further_need_the_returned_value() -> None:
    with pytest.raises(BakeError, match="would be lost"):
        sf.bake(made(ignored_behind_conv, se=InPlace()), labelled(), to="asr")


@pytest.mark.parametrize("call", list(BEHIND))
def test_an_attention_that_is_called_with_more_than_the_map_stays(call: str) -> None:
    model = made(BEHIND[call], se=Strong(), second=SE())
    _, report = sf.bake(model, labelled())
    assert [(site.name, site.outcome) for site in report.sites] == [("second", "folded"), ("se", "dynamic")]
    assert "'se' is called with more than the feature map, or by keyword" in report.sites[1].why
