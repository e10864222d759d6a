"""Gates over positions in networks of timm and torchvision, and folded models where stripefold is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import ResolutionError, VerifyError
from tests.asr.position_nets import Adaptive, Pooled, gated, pictures
from tests.compat.test_without_stripefold import run_without
from tests.lifecycle import EXACT, assert_folds, error, prepared, scatter_


def mixer(**options: Any) -> nn.Module:
    model = MlpMixer(num_classes=4, img_size=32, patch_size=8, num_blocks=2, embed_dim=24, **options)
    nn.init.normal_(model.head.weight)
    return model


def vgg() -> nn.Module:
    """torchvision's VGG with its adaptive pooling to 7 x 7, its layers narrower."""
    with torch.device("meta"):
        model = torchvision.models.VGG(nn.Identity(), num_classes=4, init_weights=False)
    model.features = torchvision.models.vgg.make_layers([6, "M", 8, "M"], batch_norm=True)
    model.classifier[0] = nn.Linear(8 * 49, 16)
    model.classifier[3], model.classifier[6] = nn.Linear(16, 16), nn.Linear(16, 4)
    return model


def images(side: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CASES: dict[str, tuple[Callable[[], nn.Module], int, list[str]]] = {
    "mixer": (mixer, 32, ["blocks.0.mlp_tokens.fc2", "blocks.1.mlp_tokens.fc2"]),
    "resmlp": (
        lambda: mixer(mlp_ratio=4, block_layer=ResBlock, norm_layer=Affine), 32,
        ["blocks.0.linear_tokens", "blocks.1.linear_tokens"],
    ),
    "vgg": (vgg, 28, ["classifier.0"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_keys_stay(case: str) -> None:
    build, side, names = CASES[case]
    torch.manual_seed(0)
    backbone = prepared(build().double(), images(side, 6)).eval()
    if case == "resmlp":
        for block in backbone.blocks:  # starts at 1e-4, which hides what the branch does
            nn.init.ones_(block.ls1)
    model = scatter_(sf.attach(backbone, "spatial", where="positions", example=images(side)))
    assert list(sf.scales(model)) == names
    plain = assert_folds(model, images(side), keys=list(backbone.state_dict()), dependence=1e-3)
    if case == "vgg":  # the positions are those behind the pooling: any size of image
        for other in (14, 35):
            assert error(plain.eval()(images(other)), model.eval()(images(other))) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_resnet_with_global_pooling(library: str) -> None:
    torch.manual_seed(0)
    created = timm.create_model("resnet18") if library == "timm" else torchvision.models.resnet18()
    name = "global_pool.pool" if library == "timm" else "avgpool"
    x = images(96)
    backbone = prepared(created.double(), x).eval()
    model = scatter_(sf.attach(sf.attach(backbone, "se", example=x), "spatial", where="positions", example=x))
    assert list(sf.scales(model))[-1] == name
    with pytest.raises(sf.errors.FoldError, match=rf"'{name}' and keep the backbone's keys"):
        sf.fold(model, example=x)
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert error(plain(x), model(x)) <= EXACT
    with pytest.raises(VerifyError, match="NOT equivalent"):
        sf.verify(model, sf.detach(model), x)
    without = sf.fold(sf.attach(backbone, "se", example=x), fuse=True, example=x)
    assert set(plain.state_dict()) - set(without.state_dict()) == {f"{name}.weights.weight"}
    assert any(f"new key '{name}.weights.weight'" in note.why for note in report.folded)
    with pytest.raises(ResolutionError, match="3x3 positions, but found a map of 4x4"):
        model(images(128))
    with pytest.raises(RuntimeError, match=r"Provided sizes \[3\] don't multiply .* dim 2 \(4\)"):
        plain(images(128))


def test_a_fused_file_loads_into_a_model_made_alike(tmp_path: Path) -> None:
    """With new numbers of the same gates: attach, fold with fuse=True, load."""
    model = gated(Pooled).eval()
    plain = sf.fold(model, fuse=True, example=pictures())
    sf.save_model(plain, tmp_path / "fused", kind="fused")
    fresh = sf.attach(Pooled().double(), "spatial", where="positions", example=pictures())
    other = sf.fold(fresh, fuse=True, example=pictures()).eval()
    sf.load_model_(other, tmp_path / "fused")
    assert torch.equal(other(pictures()), plain(pictures()))
    with pytest.raises(sf.errors.CheckpointError, match=r"unexpected \['pool\.weights\.weight'\]"):
        sf.load_model_(sf.fold(Pooled().double(), fuse=True, example=pictures()), tmp_path / "fused")


@pytest.mark.slow
def test_folded_models_need_no_stripefold(tmp_path: Path) -> None:
    """The control, an attached one that does, is tests/compat/test_without_stripefold.py."""
    saved = []
    for module, shape in ((gated(Pooled).pool, (2, 8, 4, 4)), (gated(Adaptive).classifier[1], (2, 96))):
        x = torch.randn(shape, dtype=torch.float64)
        plain = sf.fold(nn.Sequential(module), fuse=True, check=False, example=x).eval()
        saved.append((plain, x, plain(x).detach()))
    torch.save(saved, tmp_path / "folded.pt")
    code = """
import torch
for model, x, expected in torch.load(sys.argv[1], weights_only=False):
    assert torch.equal(model(x), expected)
assert "stripefold" not in sys.modules
"""
    done = run_without(code, tmp_path / "folded.pt")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("build", [Adaptive, Pooled])
def test_compiled(build: type[nn.Module]) -> None:
    model = gated(build).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert error(compiled(pictures()), model(pictures())) <= 1e-12
    torch._dynamo.reset()
