"""Folders for the Hub: what is in them, who reads them, and what is refused. No network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import stripefold as sf
from stripefold.asr.gate import StaticGate
from stripefold.errors import CheckpointError, ConfigError, FoldError, VerifyError
from stripefold.integrations.hub import HubCard, save_hub_folder

hub = pytest.importorskip("huggingface_hub")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

FILES = ("README.md", "config.json", "model.safetensors")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(0)


def images(channels: int = 3, side: int = 32) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, example: Any, attention: str = "se", **options: Any) -> nn.Module:
    """Attached, with gates and statistics that are not those of the start."""
    attached = sf.attach(model, attention, example=example, **options)
    generator = torch.Generator().manual_seed(2)
    for module in attached.modules():
        if isinstance(module, StaticGate):
            module.psi.data.normal_(generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)  # some start at zero
    return attached.eval()


def card_of(folder: Path) -> Any:
    return hub.ModelCard.load(folder / "README.md")


def timm_model(name: str, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (timm.create_model(name, num_classes=4, **options), images(options.get("in_chans", 3)))


TIMM = {
    "resnet": timm_model("resnet10t"),
    "one channel": timm_model("resnet10t", in_chans=1, drop_path_rate=0.1),
    "layer scale": timm_model("convnext_atto", ls_init_value=1.0),
    "no head": lambda: (timm.create_model("resnet10t", num_classes=0), images()),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm_loads_the_folder(case: str, tmp_path: Path) -> None:
    backbone, example = TIMM[case]()
    model = trained(backbone, example)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made = save_hub_folder(model, tmp_path / "net", example=example)
    assert made.files == FILES
    assert made.verification.passed
    assert made.control is not None
    assert not made.control.passed
    assert f"{made.path}: README.md" in str(made)
    again = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True)
    assert list(again.state_dict()) == list(backbone.state_dict())
    sf.verify(model, again, example)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert card_of(made.path).data.library_name == "timm"
    assert card_of(made.path).data.pipeline_tag == (
        "image-feature-extraction" if case == "no head" else "image-classification"
    )


def test_timm_loads_the_folder_in_a_process_without_stripefold(tmp_path: Path) -> None:
    backbone, example = TIMM["resnet"]()
    model = trained(backbone, example)
    folder = save_hub_folder(model, tmp_path / "net", example=example).path
    torch.save(example, tmp_path / "images.pt")
    code = (
        "import sys; sys.modules['stripefold'] = None\n"
        "import timm, torch\n"
        f"model = timm.create_model('local-dir:{folder}', pretrained=True).eval()\n"
        f"torch.save(model(torch.load('{tmp_path}/images.pt')).detach(), '{tmp_path}/out.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "out.pt"), model(example), atol=1e-5)


def convnext() -> nn.Module:
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3, image_size=16, patch_size=2,
        layer_scale_init_value=1.0,
    )  # fmt: skip
    return transformers.ConvNextForImageClassification(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    return transformers.ResNetForImageClassification(config)


@pytest.mark.parametrize("build", [convnext, vit, resnet])
def test_transformers_load_the_folder(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    backbone, example = build(), {"pixel_values": images(side=16)}
    model = trained(backbone, example)
    made = save_hub_folder(model, tmp_path, example=example)
    again = type(backbone).from_pretrained(tmp_path)
    assert list(again.state_dict()) == list(backbone.state_dict())
    sf.verify(model, again, example)
    assert not sf.verify(again, backbone, example, raise_on_mismatch=False).passed
    assert set(FILES) <= set(made.files)
    card = card_of(tmp_path)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-classification")
    assert f"{type(backbone).__name__}.from_pretrained" in card.text


class Own(nn.Module):
    """A network of the user's."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.inner(x)).mean((2, 3)))

    @classmethod
    def wide(cls, width: int) -> Own:
        return cls(width)


@pytest.mark.parametrize(
    ("build", "arguments", "word"),
    [
        (torchvision.models.resnet18, {"num_classes": 4}, "from torchvision.models.resnet import resnet18"),
        (torchvision.models.mobilenet_v2, {"num_classes": 4, "width_mult": 0.5}, "mobilenet_v2(num_classes=4"),
        (Own, {}, "model = Own()"),
        (Own.wide, {"width": 12}, None),
    ],
)
def test_a_function_that_builds_it(build: Any, arguments: dict[str, Any], word: str | None, tmp_path: Path) -> None:
    backbone, example = build(**arguments), images()
    model = trained(backbone, example)
    if word is None:  # a bound method is no function that an import gives
        with pytest.raises(ConfigError, match="is nothing that others can import"):
            save_hub_folder(model, tmp_path, example=example, build=build, build_args=arguments)
        return
    made = save_hub_folder(model, tmp_path, example=example, build=build, build_args=arguments)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {
        "weights": "model.safetensors", "build": f"{build.__module__}:{build.__qualname__}", "build_args": arguments,
    }  # fmt: skip
    again = build(**arguments)
    assert sf.load_model_(again, tmp_path / "model.safetensors").kind == "folded"
    sf.verify(model, again, example)
    assert word in card_of(tmp_path).text
    assert made.verification.passed


def test_a_class_alone(tmp_path: Path) -> None:
    model = trained(Own(), images())
    save_hub_folder(model, tmp_path, example=images())
    assert json.loads((tmp_path / "config.json").read_text())["class"].endswith(":Own")
    again = Own()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    sf.verify(model, again, images())
    assert "Own, with the arguments that it was trained with" in card_of(tmp_path).text
    assert card_of(tmp_path).data.library_name == "pytorch"


def test_branch_blocks_have_no_control(tmp_path: Path) -> None:
    model = sf.branch(torchvision.models.resnet18(num_classes=4), "acnet", example=images()).eval()
    made = save_hub_folder(
        model, tmp_path, example=images(), build=torchvision.models.resnet18, build_args={"num_classes": 4}
    )
    assert made.control is None
    assert "control" not in card_of(tmp_path).text
    assert "What was folded" in card_of(tmp_path).text


def test_the_card_says_what_was_said_and_what_was_measured(tmp_path: Path) -> None:
    model = trained(Own(), images())
    card = HubCard(
        name="My | net", license="mit", base_model="timm/resnet18.a1_in1k", datasets=("cifar10",), tags=("mine",),
        task="image-classification", repo="me/net", about={"commit": "1a2b3c", "a|b": "two\nlines"},
    )  # fmt: skip
    made = save_hub_folder(model, tmp_path, example=images(), card=card)
    read = card_of(tmp_path)
    assert read.data.to_dict() == {
        "license": "mit", "base_model": "timm/resnet18.a1_in1k", "datasets": ["cifar10"], "library_name": "pytorch",
        "tags": ["stripefold", "structural-reparameterization", "mine"], "pipeline_tag": "image-classification",
    }  # fmt: skip
    assert made.control is not None
    for text in (
        "# My | net", 'hf_hub_download("me/net"', "| commit | 1a2b3c |", "| a\\|b | two lines |", "`inner.1`",
        f"| this network | {made.verification.error:.2e} |",
        f"| control: the backbone without its gates | {made.control.error:.2e} |",
        f"| torch | {version('torch')} |",
    ):  # fmt: skip
        assert text in read.text
    assert "The control passes" not in read.text
    assert "license" not in card_without_anything(model, tmp_path / "other")


def card_without_anything(model: nn.Module, folder: Path) -> dict[str, Any]:
    save_hub_folder(model, folder, example=images())
    assert f"# {folder.name}" in card_of(folder).text
    return card_of(folder).data.to_dict()


def test_a_check_that_cannot_fail_is_called_so(tmp_path: Path) -> None:
    model = sf.attach(Own(), "se", init="identity", example=images())
    save_hub_folder(model, tmp_path, example=images())
    assert "The control passes, too" in card_of(tmp_path).text


def test_half_precision(tmp_path: Path) -> None:
    backbone, example = TIMM["resnet"]()
    model = trained(backbone, example).bfloat16()
    made = save_hub_folder(model, tmp_path, example=example.bfloat16())
    assert made.verification.dtype == "bfloat16"


def test_it_writes_over_its_own_files_only(tmp_path: Path) -> None:
    model = trained(Own(), images())
    save_hub_folder(model, tmp_path, example=images(), card=HubCard(license="mit"))
    save_hub_folder(model, tmp_path, example=images())
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match="was changed since stripefold wrote it"):
        save_hub_folder(model, tmp_path, example=images())
    assert (tmp_path / "README.md").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="was not written by stripefold"):
        save_hub_folder(model, other, example=images())
    assert [path.name for path in other.iterdir()] == ["config.json"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("")
    with pytest.raises(CheckpointError, match="cannot write into .*net"):
        save_hub_folder(trained(Own(), images()), tmp_path / "net", example=images())


def act_replaced() -> tuple[nn.Module, Any, dict[str, Any], type[Exception], str]:
    backbone, example = TIMM["resnet"]()
    backbone.layer1[0].act2 = nn.Tanh()  # nothing that timm's configuration tells
    return backbone, example, {}, VerifyError, "NOT equivalent"


def head_replaced() -> tuple[nn.Module, Any, dict[str, Any], type[Exception], str]:
    backbone, example = TIMM["resnet"]()
    backbone.fc = nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 4))
    return backbone, example, {}, CheckpointError, "is not loaded back by its library as it was built"


def wrong_arguments() -> tuple[nn.Module, Any, dict[str, Any], type[Exception], str]:
    options = {"build": torchvision.models.resnet18, "build_args": {"num_classes": 5}}
    return torchvision.models.resnet18(num_classes=4), images(), options, CheckpointError, "is not loaded back"


def unknown_arguments() -> tuple[nn.Module, Any, dict[str, Any], type[Exception], str]:
    return Own(), images(), {"build": Own, "build_args": {"depth": 5}}, CheckpointError, "unexpected keyword argument"


def random_weights() -> tuple[nn.Module, Any, dict[str, Any], type[Exception], str]:
    return Own(), images(), {"build": Own, "build_args": {"width": 9}}, CheckpointError, "say how with build="


@pytest.mark.parametrize("case", [act_replaced, head_replaced, wrong_arguments, unknown_arguments, random_weights])
def test_what_is_not_loaded_back_is_not_written(case: Any, tmp_path: Path) -> None:
    backbone, example, options, error, message = case()
    with pytest.raises(error, match=message):
        save_hub_folder(trained(backbone, example), tmp_path, example=example, **options)
    assert list(tmp_path.iterdir()) == []


def local() -> Any:
    return lambda: Own()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"build": lambda: Own()}, "is nothing that others can import"),
        ({"build": local()}, "is nothing that others can import"),
        ({"build": Own().forward}, "is nothing that others can import"),
        ({"build_args": {"width": 8}}, "build_args are the arguments of build="),
        ({"build": Own, "build_args": {"width": torch.zeros(1)}}, "what JSON cannot hold"),
    ],
)
def test_how_it_is_built_has_to_be_said(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        save_hub_folder(trained(Own(), images()), tmp_path, example=images(), **options)


def test_functions_of_a_script_are_for_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "Own", Own, raising=False)
    monkeypatch.setattr(Own, "__module__", "__main__")
    with pytest.raises(ConfigError, match="is nothing that others can import"):
        save_hub_folder(trained(Own(), images()), tmp_path, example=images(), build=Own)


def test_nothing_to_fold(tmp_path: Path) -> None:
    with pytest.raises(FoldError, match="has no gates or branch blocks to fold"):
        save_hub_folder(Own(), tmp_path, example=images())


def test_dynamic_attention_is_no_plain_network(tmp_path: Path) -> None:
    model = sf.attach_(trained(Own(), images()), "eca", form="dynamic", example=images())
    with pytest.raises(FoldError, match="bake takes dynamic attention out"):
        save_hub_folder(model, tmp_path, example=images())
    assert list(tmp_path.iterdir()) == []


def test_new_biases_are_no_plain_network(tmp_path: Path) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 4))
    model = sf.branch(backbone, "acnet", example=images()).eval()
    with (
        pytest.warns(UserWarning, match="have a bias that the stock ones do not have"),
        pytest.raises(FoldError, match="still has '0.bias', which the plain network has not"),
    ):
        save_hub_folder(model, tmp_path, example=images())


def test_something_to_compare_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say what it takes"):
        save_hub_folder(trained(Own(), images()), tmp_path)


def test_without_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="pip install huggingface_hub"):
        save_hub_folder(trained(Own(), images()), tmp_path, example=images())
    assert list(tmp_path.iterdir()) == []
