"""Segmentation networks and detectors: built small, attached, folded, compared before and behind the sorting."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import stripefold as sf
from stripefold.errors import ConfigError, VerifyError
from stripefold_lab.datasets import Shapes
from stripefold_lab.models import HeadOutputs, create_detector, create_segmenter, detector_names, segmenter_names
from tests.zoo.prepare import Randomness

BACKBONE = "backbone*layer*.bn2"
SMALL_BOXES = {
    "rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 10, "box_detections_per_img": 5, "box_score_thresh": 0.0,
}  # fmt: skip
DETECTORS = {
    "fasterrcnn_resnet18_fpn": (64, {"stages": 2, "width": 16, **SMALL_BOXES}, BACKBONE),
    "maskrcnn_resnet18_fpn": (64, {"stages": 2, "width": 16, **SMALL_BOXES}, BACKBONE),
    "retinanet_resnet18_fpn": (64, {"stages": 2, "width": 16, "score_thresh": 0.0}, BACKBONE),
    "ssdlite_mobilenet_v3_small": (64, {"score_thresh": 0.0}, "backbone.features.*.block.*.1"),
}


def scenes(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shapes = Shapes(count=4, size=size, seed=0)
    return torch.stack([shapes[index].image for index in range(4)]).to(dtype) / 255


def randomised(model: nn.Module, images: Tensor) -> nn.Module:
    """Random gates and affine parts (frozen ones too), statistics that fit one batch of each map, then jittered."""
    randomness = Randomness(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".gates." in name:
                parameter.add_(randomness.uniform(parameter, -0.5, 0.5))
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                module.weight.copy_(randomness.uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(randomness.uniform(module.bias, -0.3, 0.3))
    handles = [
        module.register_forward_pre_hook(calibrate)
        for module in model.modules()
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d))
    ]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return model


def calibrate(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    values = arguments[0]
    norm.running_mean.copy_(values.mean((0, 2, 3)) + 0.05)
    norm.running_var.copy_(values.var((0, 2, 3), correction=0) * 1.1 + 1e-3)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("name", ["fcn_resnet18", "deeplabv3_resnet18", "lraspp_mobilenet_v3_small"])
def test_segmenters_fold(name: str, norm: str) -> None:
    images = scenes(64)
    model = create_segmenter(name, num_classes=4, options={"norm": norm}).double()
    where = "backbone.*.block.*.1" if name.startswith("lraspp") else BACKBONE
    model = randomised(sf.attach(model, "se", where=where, example=images), images)
    assert model(images)["out"].shape == (4, 4, 64, 64)
    folded = sf.fold(model, example=images)
    assert sf.verify(model, folded, images).error <= 1e-10
    kinds = {type(folded.get_submodule(site)) for site in sf.sites(model).names}
    assert (FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d) in kinds
    outputs, bare = (each(images)["out"] for each in (folded, sf.detach(model).eval()))
    assert (outputs - bare).abs().max() > 1e-2 * outputs.abs().max()
    assert outputs.std(0).max() > 1e-2 * outputs.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm"), [*((name, "batch") for name in DETECTORS), ("fasterrcnn_resnet18_fpn", "frozen")]
)
def test_detectors_fold(name: str, norm: str) -> None:
    size, options, where = DETECTORS[name]
    images = scenes(size)
    model = create_detector(name, num_classes=4, image_size=size, options={"norm": norm, **options}).double()
    model = randomised(sf.attach(model, "se", where=where, example=images), images)
    folded = sf.fold(model, example=images)
    one = images[:1]  # the mask head computes much for each of its 21 boxes
    assert sf.verify(HeadOutputs(model), HeadOutputs(folded), one).error <= 1e-10
    # Boxes, labels and scores as well, and there are some.
    assert sf.verify(model, folded, images).error <= 1e-10
    found = folded(images)
    assert all(len(each["boxes"]) for each in found)
    assert not torch.equal(found[0]["scores"][:5], found[1]["scores"][:5])
    with pytest.raises(VerifyError, match="NOT equivalent"):
        sf.verify(HeadOutputs(model), HeadOutputs(sf.detach(model)), one)


def test_the_residual_branches_of_a_detector_are_found() -> None:
    model = create_detector("retinanet_resnet18_fpn", num_classes=4, image_size=64, options={"stages": 3, "width": 16})
    names = sf.sites(model, example=scenes(64, torch.float32)).names
    assert [name for name in names if "body" in name] == [
        f"backbone.body.layer{stage}.{block}.bn2" for stage in (1, 2, 3) for block in (0, 1)
    ]


def test_torchvisions_own_names_are_built() -> None:
    assert {"fcn_resnet50", "lraspp_mobilenet_v3_large"} <= set(segmenter_names())
    assert {"fasterrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large"} <= set(detector_names())
    assert not any(name.startswith("keypoint") for name in detector_names())
    model = create_segmenter("lraspp_mobilenet_v3_large", num_classes=3).eval()
    assert model(torch.randn(1, 3, 64, 64))["out"].shape == (1, 3, 64, 64)
    detector = create_detector("fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=3, image_size=64).eval()
    assert detector.transform.min_size == (64,)
    assert set(detector(torch.rand(1, 3, 64, 64))[0]) == {"boxes", "labels", "scores"}


def test_the_heads_leave_the_detector_as_it_is() -> None:
    size, options, _ = DETECTORS["fasterrcnn_resnet18_fpn"]
    model = create_detector("fasterrcnn_resnet18_fpn", num_classes=4, image_size=size, options=options).eval()
    before = copy.deepcopy(model.state_dict())
    found = HeadOutputs(model)(scenes(size, torch.float32))
    assert set(found) == {"objectness", "deltas", "scores", "regression"}
    assert found["scores"].shape == (4 * 21, 4)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("build", "name", "options", "match"),
    [
        (create_segmenter, "fcn_resnet19", {}, "no segmentation network 'fcn_resnet19'; close: .*fcn_resnet18"),
        (create_segmenter, "fcn_resnet18", {"stages": 1}, "model_options: stages is 1; give 2"),
        (create_segmenter, "fcn_resnet18", {"norm": "layer"}, "norm is 'layer'; choose batch or frozen"),
        (create_segmenter, "fcn_resnet18", {"depth": 1}, "cannot build the segmenter 'fcn_resnet18' with .*depth"),
        (create_detector, "yolo", {}, "no detector 'yolo'; there are: fasterrcnn_resnet18_fpn"),
        (create_detector, "fasterrcnn_resnet18_fpn", {"stages": 5}, "stages is 5; give 1 to 4"),
        (create_detector, "retinanet_resnet18_fpn", {"stages": 1}, "stages is 1; give 2 to 4"),
        (create_detector, "ssdlite_mobilenet_v3_small", {"depth": 1}, "SSD takes no 'depth'"),
        (create_detector, "ssdlite_mobilenet_v3_small", {"score_tresh": 0}, "no 'score_tresh'; close: score_thresh"),
        (
            create_detector,
            "maskrcnn_resnet34_fpn",
            {"box_score": 1},
            "MaskRCNN takes no 'box_score'; close: box_score_",
        ),
        (create_detector, "fasterrcnn_resnet18_fpn", {"width": "x"}, "cannot build the detector 'fasterrcnn_resnet18"),
    ],
)
def test_dense_networks_refuse_with_a_way_out(build, name: str, options: dict, match: str) -> None:
    sizes = {"image_size": 64} if build is create_detector else {}
    with pytest.raises(ConfigError, match=match):
        build(name, num_classes=4, options=options, **sizes)
