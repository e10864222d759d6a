"""What can go wrong in the middle of a run, and what is left then."""

from __future__ import annotations

import errno
import pickle
import signal
from pathlib import Path

import pytest
import torch

from stripefold.errors import CheckpointError, ConfigError, TrainingError
from stripefold.folding.weight_files import save_model
from stripefold_lab.training import TrainConfig, evaluate, train
from stripefold_lab.training.build import build_model
from stripefold_lab.training.checkpoint import SafeCheckpointIO, read_checkpoint
from stripefold_lab.training.data import ImageSpec
from stripefold_lab.training.training_module import TrainingModule
from tests.training.conftest import TinyNet


def spoil_step(monkeypatch: pytest.MonkeyPatch, step: int, act) -> None:
    original = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            batch = act(self, batch)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)


def nan_images(task, batch):
    return batch[0] * float("nan"), batch[1]


def test_a_loss_that_is_not_finite_stops_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as spoiled:
        spoil_step(spoiled, 3, nan_images)  # two steps an epoch: the last step of epoch 2
        with pytest.raises(TrainingError, match=r"not finite at epoch 2, step 4: the last good checkpoint is kept"):
            train(config.with_overrides(epochs=3))
    kept = read_checkpoint(Path(str(config.run_dir)) / "checkpoints" / "last.ckpt")
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert train(config.with_overrides(epochs=3, resume=True)).epochs_run == 2


def test_weights_spoilt_by_the_last_step_are_not_saved(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(self, *args):
        with torch.no_grad():
            self.model.head.weight.fill_(float("inf"))

    monkeypatch.setattr(TrainingModule, "on_train_epoch_end", spoil, raising=False)
    monkeypatch.setattr(TrainingModule, "on_validation_start", spoil)
    with pytest.raises(TrainingError, match=r"the test loss is not finite after epoch 1, step 2"):
        train(config)
    assert not (Path(str(config.run_dir)) / "checkpoints" / "last.ckpt").exists()


def test_a_full_disk_keeps_the_last_checkpoint(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = Path.write_bytes, []

    def write_bytes(self, data):
        seen.append(self)
        if len(seen) > 2:
            original(self, bytes(data)[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(
            TrainingError, match=r"cannot write .*\.ckpt: the disk is full .*; the last good checkpoint"
        ):
            train(config)
    folder = Path(str(config.run_dir)) / "checkpoints"
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert train(config.with_overrides(resume=True)).epochs_run == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full (Linux)")
def test_the_system_itself_says_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(self, data):
        with open("/dev/full", "wb", buffering=0) as full:
            return full.write(data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(TrainingError, match="the disk is full"):
        SafeCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["metrics.csv", "summary.md", "config.yaml"])
def test_tables_and_texts_fail_as_clearly(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    original = Path.write_text

    def write_text(self, text, **options):
        if file in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, text, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(TrainingError, match=r"cannot write .*(the disk is full|No space left)"):
        train(config)
    assert not (Path(str(config.run_dir)) / file).exists()


def test_any_other_system_error_in_the_loop(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(task, batch):
        raise OSError(errno.EACCES, "Permission denied", "events")

    spoil_step(monkeypatch, 1, fail)
    with pytest.raises(TrainingError, match="cannot write .*events: Permission denied; .*make it writable"):
        train(config)


def test_ctrl_c_is_clean(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(task, batch):
        raise KeyboardInterrupt

    with monkeypatch.context() as pressed:
        spoil_step(pressed, 3, interrupt)
        with pytest.raises(KeyboardInterrupt, match="stopped by Ctrl-C; go on with `stripefold train --resume"):
            train(config)
    assert signal.getsignal(signal.SIGINT) is handler
    assert train(config.with_overrides(resume=True)).epochs_run == 1


def test_a_polite_signal_is_clean(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(task, batch):
        signal.raise_signal(signal.SIGTERM)
        return batch

    handler = signal.getsignal(signal.SIGTERM)
    spoil_step(monkeypatch, 0, terminate)
    with pytest.raises(TrainingError, match="stopped from outside .*; no epoch was finished"):
        train(config)
    assert signal.getsignal(signal.SIGTERM) is handler


class Malicious:
    ran: list[bool] = []

    def __reduce__(self):
        return Malicious.ran.append, (True,)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 not really")


def text(path: Path) -> None:
    path.write_text("root:x:0:0:root:/root:/bin/bash\n", encoding="utf-8")


def poison(path: Path) -> None:
    torch.save({"stripefold": Malicious(), "state_dict": {}}, path)


def poison_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"stripefold": Malicious()}))


def replace_with_foreign(path: Path) -> None:
    torch.save({"model": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (truncate, "is damaged or truncated"),
        (empty, "is damaged or truncated"),
        (noise, "is damaged"),
        (text, "is damaged or truncated, or no checkpoint at all"),
        (poison, "is damaged or holds more than data; nothing in it was run"),
        (poison_plain_pickle, "is damaged or holds more than data; nothing in it was run"),
        (replace_with_foreign, "is no training checkpoint of stripefold"),
    ],
)
def test_a_bad_checkpoint_is_refused_unrun(config: TrainConfig, spoil, match: str) -> None:
    last = train(config.with_overrides(epochs=1)).last_checkpoint
    spoil(last)
    content = last.read_bytes()
    for act in (lambda: train(config.with_overrides(epochs=1, resume=True)), lambda: evaluate(last)):
        with pytest.raises(CheckpointError, match=match):
            act()
    assert not Malicious.ran
    assert last.read_bytes() == content


def test_files_of_the_wrong_kind(config: TrainConfig, tmp_path: Path) -> None:
    result = train(config.with_overrides(epochs=1))
    with pytest.raises(CheckpointError, match="is a weights file, not a training checkpoint"):
        read_checkpoint(result.folded_file)
    with pytest.raises(CheckpointError, match=r"no checkpoint .*none\.ckpt"):
        evaluate(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match=r"holds no checkpoints/last\.ckpt"):
        evaluate(tmp_path)
    foreign = save_model(TinyNet(10, 1), tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="does not say which run it comes from"):
        evaluate(foreign)
    checkpoint = read_checkpoint(result.last_checkpoint)
    del checkpoint["state_dict"]["model.head.bias"]
    SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "less.ckpt")
    with pytest.raises(CheckpointError, match="does not fit the model its configuration describes"):
        evaluate(tmp_path / "less.ckpt")
    SafeCheckpointIO().remove_checkpoint(tmp_path / "less.ckpt")
    assert not (tmp_path / "less.ckpt").exists()


def test_the_model_must_suit_the_images(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="takes 3 channels, the data has 1"):
        build_model(config.with_overrides(model="torchvision/resnet18"), ImageSpec(classes=("a",), channels=1, size=8))
    with pytest.raises(ConfigError, match="does not run on images of 8 x 8: set image_size"):
        build_model(config.with_overrides(model="torchvision/vgg11"), ImageSpec(classes=("a",), channels=3, size=8))
