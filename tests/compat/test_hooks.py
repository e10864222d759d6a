"""Users' hooks run once per call while gates are attached, their handles keep working, and fold hands them back."""

from __future__ import annotations

import copy

import pytest
import torch

import stripefold as sf
from tests.lifecycle import assert_folds, attached, error, images, scatter_, step_, tiny

NAME = "blocks.0.bn2"


class Calls(list):
    """Counts calls by kind; survives deepcopy as the same object."""

    def __deepcopy__(self, memo: object) -> Calls:
        return self

    def forward(self, module, args, output) -> None:
        self.append("forward")

    def forward_kwargs(self, module, args, kwargs, output) -> None:
        self.append("forward_kwargs")

    def pre(self, module, args) -> None:
        self.append("pre")

    def pre_kwargs(self, module, args, kwargs) -> None:
        self.append("pre_kwargs")

    def backward(self, module, grad_input, grad_output) -> None:
        self.append("backward")

    def backward_pre(self, module, grad_output) -> None:
        self.append("backward_pre")


EVERY = ["pre", "pre_kwargs", "forward", "forward_kwargs", "backward_pre", "backward"]


def register(layer, calls: Calls) -> list:
    return [
        layer.register_forward_pre_hook(calls.pre),
        layer.register_forward_pre_hook(calls.pre_kwargs, with_kwargs=True),
        layer.register_forward_hook(calls.forward),
        layer.register_forward_hook(calls.forward_kwargs, with_kwargs=True, always_call=True),
        layer.register_full_backward_pre_hook(calls.backward_pre),
        layer.register_full_backward_hook(calls.backward),
    ]


def seen(model, calls: Calls) -> list[str]:
    calls.clear()
    model(images().requires_grad_()).sum().backward()
    return list(calls)


@pytest.mark.parametrize("where", ["residual", ["blocks.*.conv2", "blocks.*.bn2"]])
@pytest.mark.parametrize("name", [NAME, "blocks.0.conv2"])
@pytest.mark.filterwarnings("ignore:the gate on .* has no effect")
def test_hooks_registered_before_attaching(where, name: str) -> None:
    calls, backbone = Calls(), tiny()
    handles = register(backbone.get_submodule(name), calls)
    assert seen(backbone, calls) == EVERY
    model = scatter_(sf.attach(backbone, where=where))
    assert seen(model, calls) == EVERY
    plain = sf.fold(model)
    assert seen(plain, calls) == EVERY
    assert seen(sf.detach(model), calls) == EVERY
    for handle in handles:
        handle.remove()
    assert seen(backbone, calls) == []
    assert seen(model, calls) == EVERY  # a deep copy has hooks of its own, as for every module


def test_handles_keep_working_in_place() -> None:
    calls, model = Calls(), tiny()
    handles = register(model.get_submodule(NAME), calls)
    sf.attach_(model)
    handles.pop(0).remove()
    assert seen(model, calls) == EVERY[1:]
    sf.fold_(model)
    handles.pop(0).remove()
    assert seen(model, calls) == EVERY[2:]
    for handle in handles:
        handle.remove()
    assert seen(model, calls) == []
    hooks = [len(value) for key, value in vars(model.get_submodule(NAME)).items() if "hooks" in key and value]
    assert hooks == []


def test_hooks_on_the_site_survive_folding() -> None:
    calls, model = Calls(), tiny()
    register(model.get_submodule(NAME), calls)
    sf.attach_(model)
    handle = model.get_submodule(NAME).register_forward_hook(calls.forward)
    assert seen(model, calls) == [*EVERY[:4], "forward", *EVERY[4:]]
    assert seen(sf.fold(model), calls) == [*EVERY[:4], "forward", *EVERY[4:]]
    sf.fold_(model)
    handle.remove()
    assert seen(model, calls) == EVERY


def test_hooks_on_the_layer_inside_survive_folding() -> None:
    calls, model = Calls(), sf.attach(tiny())
    site = model.get_submodule(NAME)
    site.register_forward_hook(calls.forward)
    site.base.register_forward_pre_hook(calls.pre)
    assert seen(sf.fold(model), calls) == ["pre", "forward"]


def test_hooks_see_and_change_the_scaled_output() -> None:
    model = step_(attached(), images()).eval()
    outputs = {}
    site, x = model.get_submodule(NAME), images()
    site.register_forward_hook(lambda module, args, output: outputs.setdefault("seen", output.detach()))
    site.register_forward_hook(lambda module, args, output: output + 1)
    changed = model(x)
    plain = assert_folds(model, x)
    assert error(plain.eval()(x), changed) < 1e-10
    alone = sf.detach(copy.deepcopy(site))
    assert error(outputs["seen"], alone(torch.ones(1, 8, 6, 6).double())[:, :, :1, :1].expand(4, 8, 6, 6)) > 1e-3
    scaled = site.scale().detach()[:, None, None]
    inputs = {}
    site.register_forward_pre_hook(lambda module, args: inputs.setdefault("x", args[0]))
    model(x)
    assert error(outputs["seen"], site.base(inputs["x"]) * scaled) < 1e-12


def test_state_dict_hooks_stay_with_the_layer() -> None:
    backbone, prefixes = tiny(), []
    backbone.get_submodule(NAME).register_state_dict_post_hook(lambda m, s, prefix, meta: prefixes.append(prefix))
    model = sf.attach(backbone)
    model.state_dict()
    sf.fold(model, check=False).state_dict()
    assert prefixes == [f"{NAME}.base.", f"{NAME}."]


@pytest.mark.parametrize("where", ["residual", "stem"])
def test_hooks_put_on_the_layer_inside_a_site(where: str) -> None:
    calls, model = Calls(), attached(where=where)
    name = next(name for name, module in model.named_modules() if name.endswith(".base"))
    register(model.get_submodule(name), calls)
    assert seen(model, calls) == EVERY
    plain = sf.fold(model.eval())
    assert error(plain(images()), model(images())) <= 1e-10
    assert seen(plain, calls) == EVERY
