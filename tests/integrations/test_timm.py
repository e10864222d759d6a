"""timm: the loop of its training script, with layer decay, EMA, its saver and a resumed run."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stripefold as sf

timm = pytest.importorskip("timm")

NAMES = ["resnet18", "convnext_atto", "vit_tiny_patch16_224"]
IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def create(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": 32} if name.startswith("vit") else {}
    model: nn.Module = timm.create_model(name, num_classes=4, **options)
    return model


def groups(model: Any) -> list[dict[str, Any]]:
    from timm.optim import param_groups_layer_decay

    keep = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=keep)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, ema: Any, steps: range) -> None:
    model.train()
    for step in steps:
        batch = IMAGES[step % 2 * 4 :][:4]
        loss = nn.functional.cross_entropy(model(batch), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model, step=step)


@pytest.mark.parametrize("name", NAMES)
def test_train_save_resume_fold(name: str, tmp_path: Path) -> None:
    from timm.models import resume_checkpoint
    from timm.optim import create_optimizer_v2
    from timm.utils import CheckpointSaver, ModelEmaV3

    def start() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = sf.attach(create(name), "se", example=IMAGES)
        optimizer = create_optimizer_v2(groups(model), opt="adamw", lr=1e-3)
        return model, optimizer, ModelEmaV3(model, decay=0.5)

    model, optimizer, ema = start()
    saver = CheckpointSaver(model, optimizer, args=Namespace(model=name), model_ema=ema, checkpoint_dir=str(tmp_path))
    train(model, optimizer, ema, range(2))
    saver.save_checkpoint(0, metric=1.0)
    train(model, optimizer, ema, range(2, 4))

    again, optimizer, ema_again = start()  # attached again before it is loaded
    assert resume_checkpoint(again, str(tmp_path / "last.pth.tar"), optimizer, log_info=False) == 1
    from timm.models import load_checkpoint

    load_checkpoint(ema_again.module, str(tmp_path / "last.pth.tar"), use_ema=True)
    train(again, optimizer, ema_again, range(2, 4))
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    for key, value in ema.module.state_dict().items():
        assert torch.equal(value, ema_again.module.state_dict()[key]), key

    folded = sf.fold(ema.module, example=IMAGES)
    sf.verify(ema.module, folded, IMAGES)
    assert folded.state_dict().keys() == create(name).state_dict().keys()
    assert not torch.allclose(folded.eval()(IMAGES), sf.detach(ema.module).eval()(IMAGES))
    create(name).load_state_dict(folded.state_dict())


def test_a_training_file_does_not_load_into_the_plain_model(tmp_path: Path) -> None:
    from timm.models import load_checkpoint

    torch.save({"state_dict": sf.attach(create("resnet18"), "se", example=IMAGES).state_dict()}, tmp_path / "x.pth.tar")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bn2\.base\.weight"):
        load_checkpoint(create("resnet18"), str(tmp_path / "x.pth.tar"))


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay_knows_the_gates_layer(name: str) -> None:
    """A gate has the rate of the block that it stands in, and the layers inside keep theirs."""

    def scale_of(model: nn.Module) -> dict[str, tuple[float, float]]:
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        return {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups(model) for p in g["params"]}

    plain, attached = scale_of(create(name)), scale_of(sf.attach(create(name), "se", example=IMAGES))
    gates = {key: value for key, value in attached.items() if ".gates." in key}
    assert {key.replace(".base.", "."): value for key, value in attached.items() if key not in gates} == plain
    assert gates
    for key, (rate, _) in gates.items():
        assert rate == attached[f"{key.partition('.gates.')[0]}.base.weight"][0]
    assert all(decay == 0 for key, (_, decay) in gates.items() if key.endswith("psi"))
    assert len({rate for rate, _ in gates.values()}) > 1
