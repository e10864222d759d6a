"""A file decides what the network is, never what is opened, started or downloaded here."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import stripefold as sf
from stripefold.errors import CheckpointError, ConfigError, DataError
from stripefold.folding.weight_files import file_info, load_tensors, save_tensors
from stripefold_lab.cli import main
from stripefold_lab.training import TrainConfig, evaluate, train
from stripefold_lab.training.loading import load_run

OPENED: list[str] = []


def _listen(event: str, arguments: tuple) -> None:
    if OPENED and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(_listen)  # stays; it looks only while OPENED is not empty


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for half in ("train", "test"):
        for label, level in (("dark", 30), ("light", 220)):
            (root / half / label).mkdir(parents=True)
            for number in range(4):
                pixels = np.full((8, 8, 3), level + number, dtype=np.uint8)
                Image.fromarray(pixels).save(root / half / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    target = tmp_path_factory.mktemp("runs") / "run"
    train(
        TrainConfig(
            model="resnet8", data=f"folder:{folder}", epochs=1, batch_size=4, run_dir=str(target), progress="none",
            tensorboard=False,
        )
    )  # fmt: skip
    return target


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch):
    """Nothing is started or fetched, and what is opened is written down."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("started or fetched")

    for owner, name in ((subprocess, "Popen"), (socket.socket, "connect"), (torch.hub, "load_state_dict_from_url")):
        monkeypatch.setattr(owner, name, refuse)
    whole = DataLoader.__init__

    def alone(self: Any, *words: Any, **options: Any) -> None:
        assert not options.get("num_workers")
        whole(self, *words, **options)

    monkeypatch.setattr(DataLoader, "__init__", alone)
    OPENED.append("listening")
    yield OPENED
    OPENED.clear()


def changed(source: Path, target: Path, **config: object) -> Path:
    """A weights file or a checkpoint whose configuration says something else."""
    if source.suffix == ".ckpt":
        content = torch.load(source, weights_only=True)
        content["stripefold"]["config"].update(config)
        torch.save(content, target)
        return target
    about, tensors = file_info(source), load_tensors(source)
    about.extra["config"].update(config)
    return save_tensors(tensors, target, kind=about.kind, extra=about.extra)


FILES = ("folded.safetensors", "checkpoints/last.ckpt")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("inside", [False, True])
def test_a_path_in_a_file_is_not_opened(
    run: Path, folder: Path, tmp_path: Path, quiet, name: str, inside: bool
) -> None:
    trap = tmp_path / "trap"
    shutil.copytree(folder, trap)
    home = tmp_path / "copy"
    if inside:
        shutil.copytree(run, home)
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    path = changed(run / name, home / name, data=f"folder:{trap}", download=True, workers=3, data_dir=str(trap))
    del quiet[1:]  # what the test itself opened
    loaded = load_run(path)
    assert (loaded.config.workers, loaded.config.data_dir, loaded.config.download) == (0, None, False)
    with pytest.raises(DataError, match=r"only .* itself says that its images lie in 'folder:.*trap'.*--data"):
        evaluate(path)
    assert main(["export", str(path), "-o", str(tmp_path / "net.safetensors")]) == 0
    if name.endswith("ckpt"):
        assert main(["fold", str(path), "-o", str(tmp_path / "folded.safetensors")]) == 0
    assert not [each for each in quiet if str(trap) in each]
    assert evaluate(path, data=f"folder:{trap}").accuracy >= 0  # the control: who names it opens it
    assert [each for each in quiet if str(trap) in each]


@pytest.mark.parametrize("name", FILES)
def test_a_run_keeps_its_own_images(run: Path, name: str) -> None:
    assert evaluate(run / name).images == 8
    assert evaluate(run).images == 8


def test_another_tools_config_is_no_run(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "folded.safetensors", tmp_path / "net.safetensors")
    (tmp_path / "config.yaml").write_text("engine: v8\n")
    with pytest.raises(DataError, match="opens nothing here"):
        evaluate(tmp_path / "net.safetensors")


@pytest.mark.parametrize("data", ["cifar10", "fashion_mnist", "imagenet"])
def test_nothing_is_downloaded(run: Path, tmp_path: Path, monkeypatch, quiet, data: str, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    path = changed(
        run / "folded.safetensors", tmp_path / "net.safetensors", data=data, download=True, data_dir="/srv/elsewhere"
    )
    assert main(["eval", str(path)]) == 2
    assert f"{data} was looked for in {tmp_path / 'data'}" in capsys.readouterr().err
    assert main(["export", str(path), "-o", str(tmp_path / "net.onnx")]) == 0
    assert not [each for each in quiet if "/srv/elsewhere" in each]


@pytest.mark.parametrize("name", ["hf-hub:someone/network", "timm/hf-hub:someone/network", "local-dir:/etc"])
def test_a_model_from_elsewhere_is_unknown(run: Path, tmp_path: Path, quiet, name: str) -> None:
    path = changed(run / "folded.safetensors", tmp_path / "net.safetensors", model=name)
    with pytest.raises(ConfigError, match="unknown model|knows no classifier"):
        load_run(path)


@pytest.mark.parametrize(
    "options",
    [{"checkpoint_path": "/etc/passwd"}, {"pretrained_cfg": {"url": "https://example.org/x"}}, {"a": ["C:\\weights"]}],
)
def test_options_that_name_a_path_are_refused(run: Path, tmp_path: Path, quiet, options: dict) -> None:
    path = changed(
        run / "folded.safetensors", tmp_path / "net.safetensors", model="timm/resnet18", model_options=options
    )
    with pytest.raises(CheckpointError, match="model_options holds .*, a path or an address; a file opens nothing"):
        load_run(path)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg_overlay", "cache_dir"])
def test_options_that_load_weights_are_no_options_of_a_network(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model_options holds '{name}', which is no option of the network"):
        sf_model(name)


def sf_model(name: str) -> torch.nn.Module:
    from stripefold_lab.models import create_model

    return create_model("timm/resnet10t", options={name: "somewhere"})


@pytest.mark.parametrize("model", ["fcn_resnet18", "fcn_resnet50"])
def test_the_weights_of_a_backbone_are_not_fetched(run: Path, tmp_path: Path, quiet, model: str) -> None:
    options = {"weights_backbone": "DEFAULT"}
    path = changed(
        run / "folded.safetensors", tmp_path / "net.safetensors", task="segmentation", data="shapes", model=model,
        model_options=options, pretrained=True,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="cannot build the segmenter"):
        load_run(path)


def test_weights_of_a_run_have_to_fit_its_types(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(key for key in content["state_dict"] if key.endswith("conv1.weight"))
    content["state_dict"][name] = content["state_dict"][name].double().fill_(1e300)
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"does not fit the model its configuration describes: .* holds 1e\+300"):
        load_run(tmp_path / "last.ckpt")
    assert sf.__version__
