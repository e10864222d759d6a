"""transformers' Trainer: what it saves, what ``from_pretrained`` makes of that, and resuming."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stripefold as sf
from stripefold.errors import CheckpointError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # the Trainer's own need
pytestmark = pytest.mark.filterwarnings("ignore:.*(pin_memory|torch_dtype)")

IMAGES = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def convnext() -> Any:
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3, image_size=16, patch_size=2,
        layer_scale_init_value=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.ConvNextForImageClassification(config)


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config)


def trainer(model: Any, folder: Path, steps: int, *, callback: bool = True) -> Any:
    from stripefold.integrations.transformers import FoldCallback

    data = [{"pixel_values": image, "labels": index % 3} for index, image in enumerate(IMAGES)]
    settings = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=2, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, disable_tqdm=True, learning_rate=0.01,
        lr_scheduler_type="constant",
    )  # fmt: skip
    return transformers.Trainer(
        model=model, args=settings, train_dataset=data, callbacks=[FoldCallback()] if callback else []
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=IMAGES).logits


@pytest.mark.parametrize("build", [convnext, vit])
def test_from_pretrained_loads_what_was_trained(build: Any, tmp_path: Path) -> None:
    model = sf.attach(build(), "se")
    trainer(model, tmp_path, 2).train()
    folder = tmp_path / "checkpoint-2"
    plain = type(build()).from_pretrained(folder)
    assert not sf.scales(plain)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(build()), logits(model))
    # The way without the callback: the gated layers are initialised anew, and transformers' log alone says so.
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert settings.pop("transformers_weights") == "folded.safetensors"
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert not torch.allclose(logits(type(build()).from_pretrained(folder)), logits(model), rtol=1e-2, atol=1e-3)


def test_a_folded_model_is_saved_as_any_other(tmp_path: Path) -> None:
    model = sf.attach(convnext(), "se")
    run = trainer(model, tmp_path, 2, callback=False)
    run.train()
    sf.fold(run.model).save_pretrained(tmp_path / "plain")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(again), logits(run.model), rtol=1e-4, atol=1e-5)


def test_a_save_of_ones_own(tmp_path: Path) -> None:
    from stripefold.integrations.transformers import save_folded_beside

    model = sf.attach(convnext(), "eca")
    model.save_pretrained(tmp_path / "mine")
    save_folded_beside(model, tmp_path / "mine")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "mine")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)
    again.save_pretrained(tmp_path / "again")  # the setting does not travel on with what was loaded
    assert "transformers_weights" not in json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(CheckpointError, match=r"has no config\.json: save the model there first"):
        save_folded_beside(model, tmp_path)


def test_resumes_where_it_was(tmp_path: Path) -> None:
    whole = sf.attach(convnext(), "se")
    trainer(whole, tmp_path / "whole", 4).train()
    trainer(sf.attach(convnext(), "se"), tmp_path / "cut", 2).train()
    again = sf.attach(convnext(), "se")
    trainer(again, tmp_path / "cut", 4).train(resume_from_checkpoint=True)
    assert (tmp_path / "cut" / "checkpoint-4" / "folded.safetensors").is_file()
    torch.testing.assert_close(logits(again), logits(whole))
    assert not torch.allclose(logits(convnext()), logits(whole), rtol=1e-2, atol=1e-2)


def test_resuming_without_gates_is_refused(tmp_path: Path) -> None:
    trainer(sf.attach(convnext(), "se"), tmp_path, 2).train()
    # The optimiser's state would not fit either, but the Trainer says that in other words, and later.
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="the one that resumes from it has no gates: attach first"):
        trainer(convnext(), tmp_path, 4).train(resume_from_checkpoint=True)


def test_resuming_with_other_weights_is_refused(tmp_path: Path) -> None:
    """As transformers 5 resumes any ViT: under keys that it renamed when it saved, so that nothing is loaded."""
    trainer(sf.attach(convnext(), "se"), tmp_path, 2).train()
    from safetensors.torch import load_file, save_file

    path = tmp_path / "checkpoint-2" / "model.safetensors"
    save_file({f"renamed.{name}": value for name, value in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="does not have the weights of .*checkpoint-2"):
        trainer(sf.attach(convnext(), "se"), tmp_path, 4).train(resume_from_checkpoint=True)


def test_a_model_without_gates_is_left_alone(tmp_path: Path) -> None:
    trainer(convnext(), tmp_path, 2).train()
    assert not (tmp_path / "checkpoint-2" / "folded.safetensors").exists()


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "stripefold.integrations.transformers", raising=False)
    with pytest.raises(ModuleNotFoundError, match="which is not installed: pip install transformers"):
        importlib.import_module("stripefold.integrations.transformers")
