"""Forty models of the zoo, one of a family, in every run of the tests; and that the zoo's checks can fail."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stripefold as sf
from stripefold.asr.gate import StaticGate
from tests.zoo import check as zoo
from tests.zoo.models_timm import subjects
from tests.zoo.worker import run_one

SAMPLE = {
    "timm": (
        "cait_xxs24_224",
        "coat_lite_tiny",
        "convnext_atto",
        "dla46_c",
        "edgenext_xx_small",
        "efficientformerv2_s0",
        "fastvit_t8",
        "gcvit_xxtiny",
        "ghostnet_050",
        "hrnet_w18_small",
        "lcnet_035",
        "levit_128s",
        "mobilenetv3_small_050",
        "mobilevit_xxs",
        "nf_regnet_b0",
        "poolformer_s12",
        "pvt_v2_b0",
        "regnety_002",
        "repvgg_a0",
        "resmlp_12_224",
        "resnet10t",
        "tf_efficientnet_lite0",
        "vit_tiny_patch16_224",
        "xcit_nano_12_p16_224",
    ),
    "torchvision": (
        "fasterrcnn_mobilenet_v3_large_fpn",
        "lraspp_mobilenet_v3_large",
        "resnet18",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        "ssdlite320_mobilenet_v3_large",
    ),
    "transformers": ("albert", "bert", "clip", "detr", "gemma", "gpt2", "llama_tied", "swin", "t5", "whisper"),
}
CASES = [(library, name) for library, chosen in SAMPLE.items() for name in chosen]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), CASES, ids=[f"{library}-{name}" for library, name in CASES])
def test_model_folds(library: str, name: str) -> None:
    line = run_one(library, name)
    assert line["passed"], line["failure"]


def subject():
    return subjects("test_resnet")[0]


def spoiled(spoil, fold=sf.fold):
    """`sf.fold` with a mistake in its result."""

    def wrong(model: nn.Module, **options: object) -> nn.Module:
        folded = fold(model, **options)
        with torch.no_grad():
            spoil(folded)
        return folded

    return wrong


def forget_a_norm(folded: nn.Module) -> None:
    next(m for m in reversed(list(folded.modules())) if isinstance(m, nn.BatchNorm2d)).weight.mul_(1 + 1e-8)


def rename(folded: nn.Module) -> None:
    folded.extra = nn.Linear(1, 1)


def test_the_harness_passes_what_is_right() -> None:
    assert zoo.check(subject())["error64"] <= 1e-10


@pytest.mark.parametrize(
    ("spoil", "message"), [(forget_a_norm, "float64 error"), (rename, "not the backbone's: .'extra.bias'")]
)
def test_the_harness_sees_a_wrong_fold(monkeypatch: pytest.MonkeyPatch, spoil, message: str) -> None:
    monkeypatch.setattr(zoo.sf, "fold", spoiled(spoil))
    with pytest.raises(zoo.Unequal, match=message):
        zoo.check(subject())


def test_the_harness_sees_gates_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.sf, "detach", sf.fold)
    with pytest.raises(zoo.Unequal, match="the bare backbone computes the same"):
        zoo.check(subject())


def test_the_harness_sees_a_gate_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = StaticGate.forward

    def cut(gate: StaticGate, dtype: torch.dtype | None = None) -> torch.Tensor:
        return forward(gate, dtype).detach()

    monkeypatch.setattr(StaticGate, "forward", cut)
    with pytest.raises(zoo.Unequal, match="gate parameters have no gradient after 3 steps"):
        zoo.check(subject())
