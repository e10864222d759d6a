"""Weights of other origin: pickled ones are read as data, and values that the model's types cannot hold are refused."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import stripefold as sf
from stripefold.errors import CheckpointError


def network(seed: int = 0, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))).to(dtype)


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


STATE = network(1).state_dict()
OTHER = network(2).state_dict()
PARALLEL = {f"module.{name}": tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.pth", STATE),
        ("hub.bin", STATE),
        ("imagenet.pth.tar", {"epoch": 3, "arch": "x", "state_dict": PARALLEL, "best_acc1": torch.tensor(0.5)}),
        ("timm.pth.tar", {"args": argparse.Namespace(lr=0.1), "state_dict": STATE, "optimizer": {"state": {}}}),
        ("nested.pt", {"model": {"state_dict": {f"_orig_mod.{key}": value for key, value in STATE.items()}}}),
        ("lightning.ckpt", {"state_dict": {f"model.{key}": value for key, value in STATE.items()}, "callbacks": {}}),
        ("average.pth", {**PARALLEL, "n_averaged": torch.tensor(3)}),
        ("only_ema.pth", {"model_ema": STATE, "teacher": {"weight": torch.ones(3)}}),
        ("twice.pth", {"model": STATE, "model_ema": {key: value.clone() for key, value in STATE.items()}}),
        ("no_suffix", {"params": STATE}),
    ],
)
def test_the_state_dict_in_a_file_is_found(tmp_path: Path, name: str, content: object) -> None:
    torch.save(content, tmp_path / name)
    model = network()
    assert not same(model, STATE)
    assert sf.load_model_(model, tmp_path / name).kind == "plain"
    assert same(model, STATE)


def test_state_dicts_of_two_types_are_asked_for(tmp_path: Path) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in STATE.items()}
    torch.save({"model": STATE, "model_half": half}, tmp_path / "both.pth")
    with pytest.raises(CheckpointError, match="holds model, model_half, with other numbers each: say which"):
        sf.load_model_(network(), tmp_path / "both.pth")
    sf.load_model_(network(), tmp_path / "both.pth", key="model_half")


@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net.a", "net.b")])
def test_several_state_dicts_are_asked_for(tmp_path: Path, keys: tuple[str, str]) -> None:
    path, content = tmp_path / "two.pth", {}
    for key, state in zip(keys, (STATE, OTHER), strict=True):
        outer, _, inner = key.partition(".")
        content.setdefault(outer, {}).update({inner: state} if inner else state)
    torch.save(content, path)
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"holds {keys[0]}, {keys[1]}, with other numbers each: say which"):
        sf.load_model_(model, path)
    assert same(model, before)
    sf.load_model_(model, path, key=keys[1])
    assert same(model, OTHER)
    with pytest.raises(CheckpointError, match=f"has no state dict 'third'; it holds {keys[0]}, {keys[1]}"):
        sf.load_model_(model, path, key="third")


def test_an_attached_model_takes_pickled_weights_of_its_backbone(tmp_path: Path) -> None:
    torch.save({"state_dict": PARALLEL}, tmp_path / "backbone.pth")
    model = sf.attach(network(), where="norm")
    sf.load_model_(model, tmp_path / "backbone.pth")
    assert same(sf.detach(model), STATE)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("name", ["code.pth", "code.bin", "code.pth.tar"])
def test_nothing_in_a_file_runs(tmp_path: Path, name: str) -> None:
    proof = tmp_path / "proof"
    torch.save({"state_dict": STATE, "hook": Touch(proof)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name} is damaged or holds more than data"):
        sf.load_model_(network(), tmp_path / name)
    assert not proof.exists()
    torch.load(tmp_path / name, weights_only=False)  # the control
    assert proof.exists()


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="holds more than data"):
        sf.load_model_(network(), tmp_path / "module.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"empty.pth holds no state dict; save model.state_dict\(\)"):
        sf.load_model_(network(), tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(CheckpointError, match=r"text.pth is damaged"):
        sf.load_model_(network(), tmp_path / "text.pth")
    torch.save(STATE, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"cut.pth is damaged or truncated"):
        sf.load_model_(network(), tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"missing.pth does not exist"):
        sf.load_model_(network(), tmp_path / "missing.pth")
    save_file(STATE, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match="holds one state dict alone: leave out the key 'ema'"):
        sf.load_model_(network(), tmp_path / "one.safetensors", key="ema")


@pytest.mark.parametrize("name", ["pipe.pth", "pipe.safetensors", "pipe"])
def test_a_pipe_is_no_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name} is a pipe \(FIFO\), not a file"):
        sf.load_model_(network(), tmp_path / name)


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("dtype", "change", "reason"),
    [
        (torch.float32, {"conv.weight": (torch.float64, 1e300)}, "'conv.weight' holds 1e.300, which torch.float32"),
        (torch.float32, {"norm.running_var": (torch.float64, -1e39)}, "'norm.running_var' holds -1e.39"),
        (torch.float16, {"conv.weight": (torch.float32, 70000.0)}, "'conv.weight' holds 70000, which torch.float16"),
        (torch.float16, {"conv.bias": (torch.bfloat16, 1e9)}, "'conv.bias' holds .*, which torch.float16"),
        (torch.float32, {"conv.weight": (torch.int32, 3)}, "'conv.weight' is torch.int32, the model's torch.float32"),
        (torch.float32, {"norm.weight": (torch.uint8, 3)}, "'norm.weight' is torch.uint8"),
        (torch.float32, {"norm.weight": (torch.bool, 1)}, "'norm.weight' is torch.bool"),
        (torch.float32, {"conv.bias": (torch.complex64, 1)}, "'conv.bias' is torch.complex64"),
        (torch.float32, {"norm.num_batches_tracked": (torch.float32, 1.5)}, "'norm.num_batches_tracked' is torch"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_the_type(tmp_path: Path, dtype, change, reason: str, form: str) -> None:
    model = network(dtype=dtype)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, (kind, value) in change.items():
        state[name] = torch.full(state[name].shape, value, dtype=kind)
    path = tmp_path / f"odd.{form}"
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=f"odd.{form} .* does not fit the model: {reason}"):
            sf.load_model_(model, path, strict=strict)
    assert same(model, before)


def test_rounding_and_what_is_infinite_already_fit(tmp_path: Path) -> None:
    state = {name: tensor.double() if tensor.is_floating_point() else tensor.int() for name, tensor in STATE.items()}
    state["conv.bias"][0] = float("inf")
    save_file(state, tmp_path / "double.safetensors")
    model = network()
    sf.load_model_(model, tmp_path / "double.safetensors")
    assert torch.equal(model.conv.weight, STATE["conv.weight"])
    assert model.conv.bias[0].isinf()


def test_counts_that_are_too_large_and_tensors_that_are_not_dense(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("count", torch.zeros(2, dtype=torch.int8))
    save_file({"count": torch.tensor([1, 200])}, tmp_path / "large.safetensors")
    with pytest.raises(CheckpointError, match="'count' holds 200, which torch.int8 cannot hold"):
        sf.load_model_(model, tmp_path / "large.safetensors")
    torch.save({"count": torch.zeros(2, dtype=torch.int8).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(CheckpointError, match="'count' is no plain tensor"):
        sf.load_model_(model, tmp_path / "sparse.pth")
