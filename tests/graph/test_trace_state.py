"""Tracing leaves no mark on the model, whatever happens, and says what went wrong."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stripefold.errors import TraceError
from stripefold.graph.trace import trace
from tests.graph.affine import is_affine


class Busy(nn.Module):
    """Does what models do to themselves while they run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.register_buffer("steps", torch.zeros(()))
        self.cache: dict[str, Any] = {}
        self.shapes: list[Any] = []
        self.fail = False
        self.frozen.eval()
        self.conv.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.cache[str(x.device)] = x
        self.shapes.append(x.shape)
        self.last = x
        torch.rand(3), random.random()
        y = self.frozen(self.norm(self.conv(x)))
        if self.fail:
            raise ValueError("on purpose")
        return y


class Reads(Busy):
    """Branches on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean().item() < 1e6 else x


def snapshot(model: nn.Module) -> list[Any]:
    flags = [(name, module.training, set(vars(module))) for name, module in model.named_modules()]
    tensors = [(name, id(t), t.requires_grad) for name, t in (*model.named_parameters(), *model.named_buffers())]
    return [flags, tensors, dict(model.cache), list(model.shapes), torch.get_rng_state().tolist(), random.getstate()]


@pytest.mark.parametrize("kind", [Busy, Reads])
@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(kind: type[Busy], fail: bool):
    model = kind()
    model.fail = fail
    state, before = copy.deepcopy(model.state_dict()), snapshot(model)
    if fail:
        with pytest.raises(TraceError, match="at its entry .* with ValueError: on purpose"):
            trace(model, torch.randn(2, 3, 8, 8, generator=torch.Generator()), is_layer=is_affine)
    else:
        trace(model, torch.randn(2, 3, 8, 8, generator=torch.Generator()), is_layer=is_affine)
    assert snapshot(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_control_the_snapshot_sees_a_run():
    model = Busy()
    before = snapshot(model)
    model(torch.randn(2, 3, 8, 8, generator=torch.Generator()))
    after = snapshot(model)
    assert all(old != new for old, new in zip(before, after, strict=True) if old is not before[1])


SEEN: list[tuple[bool, bool]] = []


def test_the_run_is_in_eval_mode_without_gradients():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
    model[1].register_forward_hook(lambda m, args, out: SEEN.append((m.training, torch.is_grad_enabled())))
    trace(model, torch.randn(2, 3), is_layer=is_affine)
    assert SEEN == [(False, False)]
    assert all(module.training for module in model.modules())


def test_own_hooks_run_and_what_they_compute_is_seen():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    handle = model[1].register_forward_hook(lambda m, args, out: args[0] + out)
    result = trace(model, torch.randn(2, 3), is_layer=is_affine)
    assert [tail.name for tail in result.residual_tails()] == ["1"]
    handle.remove()
    assert trace(model, torch.randn(2, 3), is_layer=is_affine).residual_tails() == []


def test_tensors_that_are_no_parameters():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.mean = nn.Linear(3, 3), torch.zeros(3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x - self.mean)

    result = trace(Plain(), torch.randn(2, 3), is_layer=is_affine)
    assert [tail.name for tail in result.residual_tails()] == ["linear"]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_part_keeps_its_flags():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Dropout()))
    model = nn.Sequential(nn.Linear(3, 3), scripted).train()
    result = trace(model, torch.randn(2, 3), is_layer=is_affine)
    assert [call.name for call in result.graph.calls] == ["0"]
    assert all(module.training for module in model.modules())


def test_recurrent_weights_that_are_kept_in_a_list():
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5))
    weights = list(model[1]._flat_weights)
    result = trace(model, torch.randn(2, 3), is_layer=is_affine)
    assert [node.name for node in result.graph.nodes if node.kind == "operation"] == ["recurrent"] * 3
    assert all(old is new for old, new in zip(weights, model[1]._flat_weights, strict=True))


def test_models_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    assert trace(model, torch.randn(2, 3), is_layer=is_affine).followed_by("0") == "1"


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        (torch.randn(2, 5), r"\(2, 5\) float32"),
        ((torch.randn(2, 5),), r"\(\(2, 5\) float32\)"),
        ({"input": torch.ones(2, 5, dtype=torch.long)}, r"\{input: \(2, 5\) int64\}"),
        (torch.randn(2, 3).numpy(), r"numpy\.ndarray of shape \(2, 3\) with TypeError"),
    ],
)
def test_an_example_that_does_not_fit(example: Any, shown: str):
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(TraceError, match=rf"cannot trace Sequential: the run failed in '1\.0' on the example {shown}"):
        trace(model, example, is_layer=is_affine)


def test_an_example_of_the_wrong_kind():
    with pytest.raises(TraceError, match=r"at its entry on the example \{image: 'x'\} with TypeError.*Give an example"):
        trace(nn.Sequential(nn.Linear(3, 4)), {"image": "x"}, is_layer=is_affine)


def test_a_failing_module_that_the_model_catches():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError

    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.linear = nn.Sequential(Fails()), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.bad(x)
            except ValueError:
                return x + self.linear(x)

    assert trace(Catches(), torch.randn(2, 3), is_layer=is_affine).residual_tails()[0].name == "linear"


def test_two_traces_agree():
    model = Busy()
    first, second = (trace(model, torch.randn(2, 3, 8, 8), is_layer=is_affine) for _ in range(2))
    assert first.graph.nodes == second.graph.nodes
