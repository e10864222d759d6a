"""Looking at the gates while a network trains: what is recorded, and that training does not notice."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy
import pytest
import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stripefold as sf
from stripefold.errors import ConfigError, ObserveError, TrainingError
from stripefold.integrations.lightning import StripeCallback
from stripefold.integrations.observing import look
from stripefold.stripe.report import StripeReport
from stripefold.stripe.trajectory import Trajectory
from stripefold_lab.training import TrainConfig, train
from stripefold_lab.training.checkpoint import model_state, read_checkpoint
from stripefold_lab.training.data import load_data
from stripefold_lab.training.fixed import fixed_images
from stripefold_lab.training.training_module import TrainingModule
from tests.training.conftest import TinyNet

WATCHED = {"form": "dynamic", "observe_every": 2, "observe_images": 20, "epochs": 3}


def recorded(config: TrainConfig) -> Trajectory:
    return Trajectory.load(Path(config.run_dir) / "stripes" / "trajectory.json")


def test_a_run_records_start_every_second_epoch_and_end(config: TrainConfig) -> None:
    config = config.with_overrides(**WATCHED)
    result = train(config)
    folder = result.run_dir / "stripes"
    trajectory = recorded(config)
    assert trajectory.epochs == [0, 2, 3]
    assert trajectory.images == 20
    (gate,) = trajectory.gates
    assert trajectory.series(gate, "first_difference")[0] is None
    assert all(value > 0 for value in trajectory.series(gate, "first_difference")[1:])
    # The last record is of the network that the run gives back, on the test images at even distances.
    images, labels = next(iter(fixed_images(load_data(config), 20, 20)))
    assert torch.equal(images[1], load_data(config).test[1 * 32 // 20][0])
    again = sf.observe(result.model, [(images, labels)], by_class=True)
    assert trajectory.rows(gate)[-1].stripe_index == pytest.approx(again.layers[0].stripe_index, abs=1e-6)
    assert trajectory.rows(gate)[-1].class_share == pytest.approx(again.layers[0].class_share, abs=1e-5)
    kept = StripeReport.load(folder / "stripes.safetensors")
    torch.testing.assert_close(kept.layers[0].sample, again.layers[0].sample)
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "<title>tiny with se on digits, seed 0</title>" in page
    assert "Over training" in page
    assert (folder / "pictures" / "trajectory.png").is_file()
    assert "stripes/index.html" in result.summary_file.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["dynamic", "static"])
def test_training_does_not_notice(config: TrainConfig, form: str, tmp_path: Path) -> None:
    config = config.with_overrides(form=form, epochs=2)
    left_alone = train(config)
    watched = train(config.with_overrides(observe_every=1, observe_images=20, run_dir=str(tmp_path / "watched")))
    first, second = (read_checkpoint(result.last_checkpoint) for result in (left_alone, watched))
    for name, value in model_state(first).items():
        assert torch.equal(value, model_state(second)[name]), name
    for key, state in first["optimizer_states"][0]["state"].items():
        assert torch.equal(state["momentum_buffer"], second["optimizer_states"][0]["state"][key]["momentum_buffer"])
    rows = [[line.split(",")[:-1] for line in r.metrics_file.read_text().splitlines()] for r in (left_alone, watched)]
    assert rows[0] == rows[1]
    other = train(config.with_overrides(seed=1, run_dir=str(tmp_path / "other")))
    assert not torch.equal(model_state(read_checkpoint(other.last_checkpoint))["head.weight"], first_head(first))


def first_head(checkpoint: dict) -> torch.Tensor:
    return model_state(checkpoint)["head.weight"]


def test_a_run_that_was_stopped_keeps_its_epochs(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.with_overrides(**{**WATCHED, "observe_every": 1, "epochs": 4})
    train(config.with_overrides(run_dir=str(tmp_path / "whole")))
    whole = (tmp_path / "whole" / "stripes" / "trajectory.json").read_text(encoding="utf-8")
    real = TrainingModule.training_step

    def stopping(self: TrainingModule, *words):
        if self.global_step == 5:  # in the middle of the third epoch
            raise KeyboardInterrupt
        return real(self, *words)

    monkeypatch.setattr(TrainingModule, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert recorded(config).epochs == [0, 1, 2]
    monkeypatch.undo()
    monkeypatch.setattr("stripefold_lab.models.create_model", lambda name, **options: TinyNet(10, 1))
    train(config.with_overrides(resume=True))
    assert (Path(config.run_dir) / "stripes" / "trajectory.json").read_text(encoding="utf-8") == whole
    assert json.loads(whole)["epochs"] == [0, 1, 2, 3, 4]


def test_static_gates_show_their_scales(config: TrainConfig) -> None:
    config = config.with_overrides(form="static", epochs=2, observe_every=1)
    result = train(config)
    trajectory = recorded(config)
    assert trajectory.gates == ("norm2",)
    torch.testing.assert_close(
        trajectory.channel_means("norm2")[-1], sf.scales(result.model)["norm2"], rtol=1e-5, atol=0
    )
    assert all(value > 0 for value in trajectory.series("norm2", "first_difference")[1:])
    assert "1 static gate of TinyNet" in (result.run_dir / "stripes" / "index.html").read_text(encoding="utf-8")


def test_a_network_without_gates_is_refused_before_anything_is_written(config: TrainConfig) -> None:
    config = config.with_overrides(form="none", observe_every=1)
    with pytest.raises(
        ConfigError, match=r"observe_every is 1, but TinyNet has no attention .*\(model 'tiny', form 'none'\); set form"
    ):
        train(config)
    assert not Path(config.run_dir).exists()


def test_what_draws_must_be_there_from_the_start(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "plotly" else real(name, *more)
    )
    with pytest.raises(ConfigError, match=r"drawn by plotly, which is not installed: pip install 'stripefold\[plot\]'"):
        train(config.with_overrides(**WATCHED))
    with pytest.raises(ConfigError, match="drawn by plotly"):
        StripeCallback(torch.zeros(2, 1, 8, 8), folder="stripes")
    StripeCallback(torch.zeros(2, 1, 8, 8))  # what writes nothing needs nothing


def test_a_record_that_cannot_be_written_says_so(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Trajectory, path: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trajectory, "save", full)
    with pytest.raises(TrainingError, match=r"cannot write .*trajectory.json: No space left on device; make room"):
        train(config.with_overrides(**WATCHED))


@pytest.mark.parametrize(("name", "value"), [("observe_every", -1), ("observe_images", 0)])
def test_options_out_of_range(config: TrainConfig, name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be at least"):
        config.with_overrides(**{name: value})


def test_bad_arguments_of_the_callback() -> None:
    with pytest.raises(ConfigError, match="every is 0; it must be at least 1 epoch"):
        StripeCallback(torch.zeros(2, 3, 8, 8), every=0)
    with pytest.raises(ConfigError, match="images is a generator, which can be gone through only once"):
        StripeCallback(batch for batch in [torch.zeros(2, 3, 8, 8)])


def test_nothing_to_observe() -> None:
    with pytest.raises(ObserveError, match="TinyNet has no attention to observe, neither dynamic nor static"):
        look(TinyNet(10, 1), torch.randn(2, 1, 8, 8))


class Mine(lightning.LightningModule):
    """Somebody else's training, with an attention of their own in a network that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.2))
        self.gate = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return self.head(x.mean((2, 3)))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        noise = random.random() + numpy.random.rand() + float(torch.rand(()))
        return nn.functional.cross_entropy(self(batch[0] * noise), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|smaller than the logging|LeafSpec|available but not)")
def test_in_anybodys_lightning_training(tmp_path: Path) -> None:
    images = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(48) % 2)
    ends, callback = [], StripeCallback(images[:16], every=2, folder=tmp_path / "stripes", title="Mine")
    for callbacks in ([], [callback]):
        lightning.seed_everything(0, verbose=False)
        model = Mine()
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, callbacks=callbacks, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(model, DataLoader(data, batch_size=8, shuffle=True))
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert callback.trajectory.epochs == [0, 2, 3]
    assert callback.trajectory.gates == ("",)
    assert "<title>Mine</title>" in (tmp_path / "stripes" / "index.html").read_text(encoding="utf-8")
