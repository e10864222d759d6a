"""What ``fold`` refuses because the model changed after attaching, and that a refusal changes nothing."""

from __future__ import annotations

import threading
import types
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import stripefold as sf
from stripefold.errors import FoldError, TraceError
from tests.lifecycle import assert_refused, attached, error, images, scatter_, tiny


class Undeclared(nn.Module):
    """A network that says nothing about its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_fuse_traces_before_the_first_gate_is_folded() -> None:
    model = attached()
    wrong = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    assert_refused(model, lambda: sf.fold_(model, fuse=True, example=wrong, check=False), TraceError, "cannot trace")


def test_a_warning_made_an_error_comes_before_the_first_gate_is_folded() -> None:
    model = scatter_(sf.attach(Undeclared(), where="net.blocks.*.bn2"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_refused(model, lambda: sf.fold_(model), UserWarning, "folding without a check")


def test_a_weight_tied_after_attaching() -> None:
    model = attached()
    model.blocks[0].bn2.weight = model.blocks[1].bn1.weight
    assert_refused(model, lambda: sf.fold_(model), FoldError, "'blocks.0.bn2': its 'weight' is tied to 'blocks.1.bn1")


def test_a_layer_parametrized_after_attaching_keeps_its_gate_through_a_copy() -> None:
    model = scatter_(sf.attach(tiny(), where="stem"))
    parametrizations.weight_norm(model.stem.base)
    assert_refused(model, lambda: sf.fold_(model), FoldError, "'stem': it is parametrized")
    with pytest.raises(FoldError, match="it is parametrized"):
        sf.fold(model)


def test_tensors_that_cannot_be_written() -> None:
    with torch.inference_mode():
        model = tiny()
    scatter_(sf.attach_(model))
    assert_refused(
        model, lambda: sf.fold_(model, check=False), FoldError, "under torch.inference_mode and is read-only"
    )
    plain = sf.fold(model)
    assert not plain.blocks[0].bn2.weight.is_inference()
    with torch.no_grad():
        assert error(plain.eval()(images()), model.eval()(images())) <= 1e-10


def test_one_number_for_many_channels() -> None:
    backbone = tiny()
    backbone.blocks[0].bn2.weight = nn.Parameter(torch.ones(1, dtype=torch.float64).expand(8), requires_grad=False)
    model = scatter_(sf.attach(backbone, where=["blocks.0.bn2", "blocks.1.bn2"]))
    model.blocks[0].bn2.base.weight = nn.Parameter(torch.ones(1, dtype=torch.float64).expand(8), requires_grad=False)
    assert_refused(model, lambda: sf.fold_(model, check=False), FoldError, "is an expanded tensor")


def test_a_model_that_cannot_be_copied_folds_in_place() -> None:
    model = attached()
    expected = model.eval()(images())
    model.lock = threading.Lock()
    with pytest.raises(FoldError, match="cannot be copied .*use fold_"):
        sf.fold(model)
    assert error(sf.fold_(model, check=False)(images()), expected) <= 1e-10


@pytest.mark.parametrize("verb", [sf.fold, sf.attach, sf.detach, lambda model: sf.branch(model, "repvgg")])
def test_a_model_that_holds_a_scripted_function_is_not_copied(verb: Any) -> None:
    model = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch says that scripting goes away
        model.scripted = torch.jit.script(_twice)
    with pytest.raises(sf.errors.StripefoldError, match=r"TinyNet cannot be copied \(ScriptFunction .*in place"):
        verb(model)


def _twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class FromAList(nn.Module):
    """Calls its layers from a list, a dictionary, a tuple and an attribute that torch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = (3, 6, 6)
        self.parts = nn.ModuleList(nn.Conv2d(3, 3, 3) for _ in range(6))
        self.listed, self.named, self.pair = [self.parts[0]], {"second": self.parts[1]}, (self.parts[2],)
        self.rows = [[self.parts[4]], {"deep": (self.parts[5],)}]
        self.rows.append(self.rows)  # type: ignore[arg-type]  # a list may hold itself
        self.__dict__["direct"] = self.parts[3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (*self.listed, self.named["second"], *self.pair, *self.rows[0], *self.rows[1]["deep"]):
            x = part(torch.nn.functional.pad(x, (1, 1, 1, 1)))
        return self.direct(x).mean((2, 3))


def test_layers_called_from_plain_containers() -> None:
    torch.manual_seed(0)
    backbone = FromAList().double()
    model = scatter_(sf.attach(backbone, where="affine"))
    model(images()).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in model.named_parameters() if "psi" in n)
    plain = sf.fold(model)
    assert plain.listed[0] is plain.parts[0]
    assert error(plain(images()), model(images())) <= 1e-10
    assert error(plain(images()), backbone(images())) > 1e-2
    assert error(sf.detach(model)(images()), backbone(images())) == 0


def test_a_forward_that_holds_on_to_the_training_model() -> None:
    """A closure survives the copy, so the folded model would go on with the gates of the other one."""
    model = attached()
    kind = type(model)
    model.forward = lambda x: kind.forward(model, x)  # type: ignore[method-assign]
    with pytest.raises(FoldError, match="still runs '.*' of the training model.*types.MethodType"):
        sf.fold(model, example=images())
    model.forward = types.MethodType(kind.forward, model)  # type: ignore[method-assign]
    assert not isinstance(sf.fold(model, example=images()), tuple)
