"""torchvision: the loops of its reference scripts, for classification and for detection."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import stripefold as sf

models = pytest.importorskip("torchvision.models")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_classification(name: str) -> None:
    """SGD with the norms' decay apart, label smoothing, warm-up, EMA with buffers."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 4
    torch.manual_seed(0)
    model = sf.attach(models.get_model(name, num_classes=4), "se", example=images)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    others = sf.param_groups(model, weight_decay=1e-4, no_decay=lambda _, p: id(p) in norms)
    assert {group["name"] for group in others} == {"backbone", "backbone_no_decay", "gates"}
    optimizer = torch.optim.SGD(others, lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=3)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    before = copy.deepcopy(sf.scales(model))
    model.train()
    for _ in range(4):
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        ema.update_parameters(model)
    after = sf.scales(ema.module)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    folded = sf.fold(ema.module, example=images)
    sf.verify(ema.module, folded, images)
    assert folded.state_dict().keys() == models.get_model(name, num_classes=4).state_dict().keys()
    assert not torch.allclose(folded.eval()(images), sf.detach(ema.module).eval()(images))


def test_detection() -> None:
    torch.manual_seed(0)
    detector = models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    images = [torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(index)) for index in range(2)]
    targets = [{"boxes": torch.tensor([[10.0, 10.0, 60.0, 70.0]]), "labels": torch.tensor([1])} for _ in images]
    detector.backbone = sf.attach(detector.backbone, "se", example=torch.rand(2, 3, 320, 320))
    optimizer = torch.optim.SGD(sf.param_groups(detector, weight_decay=1e-4), lr=0.01, momentum=0.9)
    detector.train()
    for _ in range(2):
        loss = sum(detector(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sf.scales(detector)
    folded = sf.fold(detector, example=(images,), check=False)
    detector.eval()
    folded.eval()
    x = torch.rand(2, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    for mine, theirs in zip(detector.backbone(x).values(), folded.backbone(x).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    bare = sf.detach(detector.backbone)
    assert not all(torch.allclose(a, b) for a, b in zip(bare(x).values(), folded.backbone(x).values(), strict=True))
    assert folded(images)[0].keys() == {"boxes", "labels", "scores"}
