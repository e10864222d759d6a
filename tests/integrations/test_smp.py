"""segmentation-models-pytorch: gates on the encoder and the decoder, a few steps, folded."""

from __future__ import annotations

import pytest
import torch

import stripefold as sf

smp = pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.parametrize(
    ("decoder", "encoder"), [("Unet", "resnet18"), ("FPN", "tu-mobilenetv3_small_075"), ("DeepLabV3Plus", "resnet18")]
)
def test_train_and_fold(decoder: str, encoder: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    masks = (images[:, 0] > 0).long()
    create = lambda: getattr(smp, decoder)(encoder, encoder_weights=None, classes=2)  # noqa: E731
    model = sf.attach(create(), "se", example=images)
    optimizer = torch.optim.AdamW(sf.param_groups(model, weight_decay=1e-2), lr=1e-3)
    loss_of = smp.losses.DiceLoss("multiclass")
    model.train()
    for _ in range(3):
        loss = loss_of(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folded = sf.fold(model, example=images)
    sf.verify(model, folded, images)
    assert not torch.allclose(folded.eval()(images), sf.detach(model).eval()(images))
    create().load_state_dict(folded.state_dict())
