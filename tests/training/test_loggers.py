"""The option ``logger``: Lightning's loggers get the epochs, the rate and the stripes; what is missing is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.training import train
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.loggers import logger_name, run_loggers
from stripefold_lab.training.paths import RunPaths
from stripefold_lab.training.runner import place_of

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:(mlflow|wandb|pydantic)"
)


def tensorboard_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    package = pytest.importorskip("mlflow", reason="needs the extra loggers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    package.set_tracking_uri(None)
    yield package
    package.set_tracking_uri(None)


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    package = pytest.importorskip("wandb", reason="needs the extra loggers")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    return package


def wandb_files(run: Path) -> list[bytes]:
    """What W&B's offline runs hold, in order; the names of what was logged stand in them as they are."""
    return [path.read_bytes() for path in sorted((run / "wandb").glob("offline-run-*/*.wandb"))]


def test_tensorboard(config: TrainConfig) -> None:
    observed = config.with_overrides(logger="tensorboard", form="dynamic", observe_every=1, observe_images=16)
    result = train(observed)
    found = tensorboard_scalars(result.run_dir)
    gates = {name for name in found if name.startswith("stripe_index/")}
    assert {"train_loss", "val_loss", "val_accuracy"} < found.keys()
    assert any(name.startswith("lr-SGD") for name in found)
    assert gates
    assert {step for name in gates for step, _ in found[name]} == {0, 2, 4}
    assert {name.replace("index", "change") for name in gates} < found.keys()
    assert found["val_accuracy"][-1][1] == pytest.approx(result.attached.accuracy)
    assert result.metrics_file.is_file()


def test_static_gates_have_a_change_and_no_index(config: TrainConfig) -> None:
    result = train(config.with_overrides(logger="tensorboard", observe_every=1, observe_images=16))
    found = tensorboard_scalars(result.run_dir)
    assert not any(name.startswith("stripe_index/") for name in found)
    assert any(name.startswith("stripe_change/") for name in found)


def test_what_a_killed_run_logged_too_far_is_hidden(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from stripefold_lab.training.record import EpochRecord

    whole = EpochRecord.on_train_epoch_end

    def stop(self: EpochRecord, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise TrainingError("stopped")
        whole(self, trainer, module)

    logged = config.with_overrides(logger="tensorboard")
    with monkeypatch.context() as patched:
        patched.setattr(EpochRecord, "on_train_epoch_end", stop)
        with pytest.raises(TrainingError, match="stopped"):
            train(logged)
    result = train(logged.with_overrides(resume=True))
    steps = [step for step, _ in tensorboard_scalars(result.run_dir)["val_loss"]]
    assert sorted(set(steps)) == steps
    assert len(steps) == 2


@pytest.mark.parametrize("logger", ["csv", "auto"])
def test_the_table_alone(logger: str, config: TrainConfig) -> None:
    result = train(config.with_overrides(logger=logger, epochs=1))  # tensorboard is false in these tests
    assert result.metrics_file.is_file()
    assert not (result.run_dir / "tensorboard").exists()


def test_a_logger_changes_no_bit(config: TrainConfig, tmp_path: Path) -> None:
    import torch

    plain = train(config.with_overrides(logger="csv"))
    logged = train(config.with_overrides(logger="tensorboard", run_dir=str(tmp_path / "logged")))
    ours = logged.model.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in plain.model.state_dict().items())


def test_mlflow(config: TrainConfig, mlflow: Any) -> None:
    observed = config.with_overrides(logger="mlflow", form="dynamic", observe_every=1, observe_images=16)
    result = train(observed)
    (run,) = mlflow.search_runs(experiment_names=["stripefold"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "tiny"
    assert run.data.metrics["val_accuracy"] == pytest.approx(result.attached.accuracy)
    assert any(name.startswith("stripe_index/") for name in run.data.metrics)
    # A run that goes on is the same one there.
    train(observed.with_overrides(resume=True, extend=True, epochs=3))
    (run,) = mlflow.search_runs(experiment_names=["stripefold"], output_format="list")
    steps = [each.step for each in mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_loss")]
    assert len(steps) == 3


def test_mlflow_knows_what_failed(config: TrainConfig, mlflow: Any) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        train(config.with_overrides(logger="mlflow", learning_rate=1e30))
    (run,) = mlflow.search_runs(experiment_names=["stripefold"], output_format="list")
    assert run.info.status == "FAILED"


def test_wandb_offline(config: TrainConfig, wandb: Any, tmp_path: Path) -> None:
    observed = config.with_overrides(logger="wandb", form="dynamic", observe_every=1, observe_images=16)
    result = train(observed)
    assert wandb.run is None  # it was ended here, not when the program ends
    (file,) = wandb_files(result.run_dir)
    for name in (b"train_loss", b"val_accuracy", b"lr-SGD", b"stripe_index/norm2", b"attention_options"):
        assert name in file
    assert str(result.attached.accuracy).encode() in file
    assert b"stripe_index/norm1" not in file
    train(observed.with_overrides(resume=True, extend=True, epochs=3))
    runs = [path.name.rpartition("-")[2] for path in (result.run_dir / "wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert len(set(runs)) == 1  # the same run there
    train(config.with_overrides(logger="wandb", epochs=1, run_dir=str(tmp_path / "second")))
    assert len(list((tmp_path / "second" / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_told_before_anything_is_written(
    name: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"not installed: pip install {name}, or set logger to csv"):
        train(config.with_overrides(logger=name))
    assert not (Path(str(config.run_dir)) / "config.yaml").exists()
    assert logger_name(config.with_overrides(tensorboard=name == "tensorboard")) == "csv"


def test_a_logger_that_does_not_start(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stripefold_lab.training import loggers

    def no_key(paths: RunPaths, behind: int) -> Any:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(loggers, "_is_installed", lambda package: True)
    monkeypatch.setattr(loggers, "_wandb", no_key)
    chosen = config.with_overrides(logger="wandb")
    with (
        pytest.raises(ConfigError, match="logger 'wandb' cannot be started: no API key configured; WANDB_MODE=offline"),
        run_loggers(chosen, RunPaths(tmp_path), place_of(chosen), behind=0),
    ):
        pass


def test_an_unknown_logger(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="logger is 'neptune'; choose one of auto, csv, tensorboard, wandb, mlflow"):
        config.with_overrides(logger="neptune")
