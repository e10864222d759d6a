"""``fold(fuse=True)`` on whole architectures of timm: nothing fusable left, exact, once and for all.

A sample of ``tests/zoo/fuse_sweep.py``, which runs all of them.
"""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

import stripefold as sf
from tests.lifecycle import error
from tests.zoo.fuse_check import prepared
from tests.zoo.fuse_subjects import batchnorms, layer_scales
from tests.zoo.models_timm import subjects

# What a fresh fold of each leaves: BatchNorms and LayerScales.
ARCHITECTURES = {
    "repvgg_a0": (0, 0),
    "fastvit_t8": (0, 0),
    "repvit_m0_9": (0, 0),
    "levit_128s": (0, 0),
    "efficientvit_m0": (0, 0),
    "tiny_vit_5m_224": (0, 0),
    "repghostnet_050": (0, 0),
    "shvit_s1": (0, 0),
    "efficientvim_m1": (0, 0),
    "swiftformer_xs": (0, 0),
    "vit_relpos_small_patch16_224": (0, 0),
}


def ready(name: str) -> tuple[nn.Module, Tensor]:
    for subject in subjects(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return prepared(subject)
            except (RuntimeError, AssertionError, ValueError):  # too small an image for it
                continue
    raise AssertionError(f"{name} runs in none of its sizes")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_fusable_is_left(name: str) -> None:
    model, x = ready(name)
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    with torch.no_grad():
        expected = model(x)
        assert error(plain(x), expected) <= 1e-10
    assert error(expected.mean(0, keepdim=True).expand_as(expected), expected) > 1e-3  # the image matters
    assert (len(batchnorms(plain)), len(layer_scales(plain))) == ARCHITECTURES[name]
    assert len(batchnorms(model)) + len(layer_scales(model)) > 10
    assert {tensor.dtype for tensor in plain.state_dict().values() if tensor.is_floating_point()} == {torch.float64}
    again, second = sf.fold(plain, fuse=True, example=x, check=False, report=True)
    assert second.folded == ()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in plain.state_dict().items())
    assert len(report.folded) > 10


@pytest.mark.slow
def test_what_a_parameterless_branch_scales_is_left_and_named() -> None:
    """EfficientFormer's pooling branch scales what the stream is made of, and no layer makes that alone."""
    torch.manual_seed(0)
    model = timm.create_model("efficientformer_l1", depths=(1, 1, 1, 1), num_vit=1, num_classes=5).double().eval()
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert layer_scales(plain) == [f"stages.{stage}.blocks.0.ls1" for stage in range(3)]
    assert {note.name for note in report.left} == set(layer_scales(plain))
    assert all("is used unscaled, too, by 'add'" in note.why for note in report.left)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_a_mean_of_what_is_there_is_no_convolution(mode: str) -> None:
    """Why that branch gets no depthwise convolution: inside it would be right, at the border under no padding mode."""
    x = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pooled = nn.AvgPool2d(3, 1, 1, count_include_pad=False)(x)
    layer = nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode, groups=3, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, 1 / 9)
    with torch.no_grad():
        found = layer(x)
        assert error(found[..., 1:-1, 1:-1], pooled[..., 1:-1, 1:-1]) <= 1e-10
        assert error(found, pooled) > 1e-2
        rows = torch.cat([x[..., :2, :].mean(-2, True), x, x[..., -2:, :].mean(-2, True)], -2)
        whole = torch.cat([rows[..., :2].mean(-1, True), rows, rows[..., -2:].mean(-1, True)], -1)
        assert error(nn.functional.conv2d(whole, layer.weight, groups=3), pooled) <= 1e-10  # the one that is exact


@pytest.mark.slow
def test_a_scale_on_paths_that_part_and_meet_again_folds() -> None:
    """PoolFormer: g * (pool(n) - n), where a norm makes n."""
    model, x = ready("poolformer_s12")
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    assert [note.kind for note in report.folded] == ["Scale"] * 24
    assert report.left == ()
    with torch.no_grad():
        expected = model(x)
        assert error(plain(x), expected) <= 1e-10
        for module in model.modules():
            if type(module).__name__ == "Scale":
                module.scale.fill_(1.0)
        assert error(model(x), expected) > 1e-2
