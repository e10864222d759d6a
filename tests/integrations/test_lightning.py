"""Lightning: a LightningModule with and without ``forward``, trained, observed and folded by callbacks."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stripefold as sf
from stripefold.errors import ConfigError
from stripefold.folding.weight_files import file_info
from tests.lifecycle import SITES, TinyNet

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|smaller than the logging|LeafSpec|available but not|load_from_checkpoint)"
)


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def lightning(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


@pytest.fixture
def callbacks() -> Any:
    pytest.importorskip("pytorch_lightning")
    return importlib.import_module("stripefold.integrations.lightning")


def module_of(lightning: Any, *, forward: bool) -> Any:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = sf.attach(TinyNet(), "se")

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(sf.param_groups(self, weight_decay=1e-4), lr=0.05)

    class WithForward(Module):
        def forward(self, x: Any) -> Any:
            return self.net(x)

    torch.manual_seed(0)
    return WithForward() if forward else Module()


def fit(lightning: Any, module: Any, folder: Path, *callbacks: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(16, 3, 6, 6, generator=generator), torch.arange(16) % 4)
    lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), default_root_dir=folder, enable_checkpointing=False,
    ).fit(module, DataLoader(data, batch_size=8))  # fmt: skip


def test_folds_verifies_and_saves(lightning: Any, callbacks: Any, tmp_path: Path) -> None:
    """Both packages, whichever of them the callbacks are built on."""
    module = module_of(lightning, forward=False)
    before = {name: value.clone() for name, value in sf.scales(module.net).items()}
    path = tmp_path / "new" / "folded.safetensors"
    fold = callbacks.FoldOnEnd(path, part="net")
    stripes = callbacks.StripeCallback(torch.randn(4, 3, 6, 6), part="net")
    fit(lightning, module, tmp_path, fold, stripes)
    assert stripes.trajectory.epochs == [0, 1, 2]
    assert list(stripes.trajectory.gates) == SITES
    after = sf.scales(module.net)
    assert all(not torch.equal(before[name], after[name]) for name in SITES)  # it did train
    assert file_info(path).kind == "folded"
    assert "equivalent" in str(fold.report)
    plain = TinyNet()
    sf.load_model_(plain, path)
    x = torch.randn(5, 3, 6, 6)
    sf.verify(module.net, plain, x)
    assert not torch.allclose(sf.detach(module.net).eval()(x), plain.eval()(x))  # the gates do something


def test_a_module_with_a_forward_is_folded_whole(lightning: Any, callbacks: Any, tmp_path: Path) -> None:
    module = module_of(lightning, forward=True)
    module.example_input_array = torch.randn(2, 3, 6, 6)
    fold = callbacks.FoldOnEnd(tmp_path / "fused.safetensors", fuse=True)
    fit(lightning, module, tmp_path, fold)
    assert file_info(fold.path).kind == "fused"
    x = torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(fold.folded.eval()(x), module.eval()(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in fold.folded.modules())
    assert sf.scales(module)  # the trained one keeps its gates


@pytest.mark.parametrize(
    ("forward", "part", "message"),
    [
        (False, "", r"FoldOnEnd: Module has no forward of its own.*part= \('net'\)"),
        (True, "network", r"FoldOnEnd: part='network' is no module of WithForward; its own are 'net'"),
        (True, "", "compares the folded WithForward with the trained one and has no input"),
    ],
)
def test_refused_before_it_trains(
    lightning: Any, callbacks: Any, tmp_path: Path, forward: bool, part: str, message: str
) -> None:
    module = module_of(lightning, forward=forward)
    start = module.net.head.weight.clone()
    with pytest.raises(ConfigError, match=message):
        fit(lightning, module, tmp_path, callbacks.FoldOnEnd(tmp_path / "x.safetensors", part=part))
    assert torch.equal(module.net.head.weight, start)
    assert not list(tmp_path.iterdir())


def test_the_observer_wants_a_network_too(lightning: Any, callbacks: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="StripeCallback: Module has no forward of its own"):
        fit(lightning, module_of(lightning, forward=False), tmp_path, callbacks.StripeCallback(torch.randn(2, 3, 6, 6)))


def test_the_name_of_the_file(callbacks: Any) -> None:
    with pytest.raises(ConfigError, match=r"end folded\.pth in \.safetensors"):
        callbacks.FoldOnEnd("folded.pth")


def test_a_dict_of_inputs_goes_to_the_device(callbacks: Any) -> None:
    meta = nn.Linear(2, 2, device="meta")
    moved = callbacks._on_device_of(meta, {"x": (torch.ones(1), [torch.ones(1)], 3)})
    assert moved["x"][0].is_meta
    assert moved["x"][1][0].is_meta
    assert moved["x"][2] == 3
    assert callbacks._on_device_of(nn.ReLU(), 1) == 1


def test_without_lightning_it_says_what_to_install(callbacks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(callbacks.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="needs Lightning, which is not installed: pip install lightning"):
        callbacks._lightning()
