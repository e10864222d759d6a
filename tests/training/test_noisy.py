"""Training under noise in BatchNorm: the option, what it does, that it is gone afterwards, and that runs are paired."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stripefold.asr.attach import attach
from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.training import TrainConfig, load_config, train
from stripefold_lab.training import runner as runner_module
from stripefold_lab.training.batch_noise import BatchNoise
from stripefold_lab.training.noise_hooks import training_noise
from tests.lifecycle import EXACT, SITES, error, images, scatter_, snapshot, tiny

RANDOM = {"kind": "random", "scale": 0.5, "shift": 0.5}


def at_step(model: nn.Module, step: int, *, seed: int = 0, **noise: float | str) -> torch.Tensor:
    """The output of a training pass under noise; running statistics stay as they were."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [(norm, norm.momentum) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        with training_noise(model.train(), BatchNoise(**noise), seed) as callbacks:  # type: ignore[arg-type]
            callbacks[0].step = step
            return model(images(8))
    finally:
        for norm, momentum in kept:
            norm.momentum = momentum


def test_constant_noise_is_the_formula() -> None:
    model = tiny()
    noisy = at_step(model, 0, kind="constant", scale=-0.2, shift=0.5)
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]:
        with torch.no_grad():
            norm.bias += 0.5 * norm.weight
            norm.weight *= 0.8
    assert error(model.train()(images(8)), noisy) <= 1e-6  # N_a and N_b are float32
    assert torch.equal(at_step(tiny(), 7, kind="constant", scale=-0.2, shift=0.5), noisy)


def test_random_noise_is_drawn_anew_at_every_step_and_again_the_same() -> None:
    found = [at_step(tiny(), step, kind="random", scale=0.5, shift=0.5) for step in (0, 1, 0)]
    assert torch.equal(found[0], found[2])
    assert error(found[0], found[1]) > 1e-2
    other = at_step(tiny(), 0, seed=1, kind="random", scale=0.5, shift=0.5)
    assert error(other, found[0]) > 1e-2
    clean = tiny().train()(images(8))
    assert error(at_step(tiny(), 0, kind="random"), clean) <= EXACT  # deviations of 0


def test_backbone_and_attached_network_meet_the_same_noise() -> None:
    """A gate that multiplies by its start is none: with the same noise both give the same."""
    plain = tiny()
    gated = attach(plain, "se", init="identity", where=SITES)
    assert error(at_step(gated, 3, **RANDOM), at_step(plain, 3, **RANDOM)) <= 1e-6
    assert error(at_step(scatter_(gated), 3, **RANDOM), at_step(plain, 3, **RANDOM)) > 1e-2  # control: gates count


def test_every_parameter_gets_a_gradient_and_evaluation_sees_no_noise() -> None:
    model = attach(tiny(), "se")
    before = snapshot(model.eval())
    with torch.no_grad():
        clean = model(images(8))
    with training_noise(model, BatchNoise(**RANDOM), 0) as callbacks:
        assert len(callbacks) == 1
        assert torch.equal(model(images(8)), clean)
    assert snapshot(model) == before
    at_step(model, 0, **RANDOM).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    with training_noise(model, None, 0) as callbacks:
        assert callbacks == []


def test_a_run_under_noise(config: TrainConfig, tmp_path) -> None:
    noisy = config.with_overrides(batch_noise=RANDOM)
    first = train(noisy)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in first.model.modules())
    assert load_config(first.run_dir).batch_noise == RANDOM
    assert "ASR(se), random noise in BatchNorm, on digits" in first.summary_file.read_text(encoding="utf-8")
    again = train(noisy.with_overrides(run_dir=str(tmp_path / "again")))
    quiet = train(config.with_overrides(run_dir=str(tmp_path / "quiet")))
    weights = [result.model.state_dict()["norm2.base.weight"] for result in (first, again, quiet)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.verification.passed


def test_a_resumed_run_goes_on_with_its_noise(config: TrainConfig, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = config.with_overrides(batch_noise=RANDOM)
    whole = train(noisy)
    stopped = noisy.with_overrides(run_dir=str(tmp_path / "stopped"))
    real = runner_module.EpochRecord.on_train_epoch_end

    def stop(self, trainer, pl_module) -> None:
        real(self, trainer, pl_module)
        raise TrainingError("stopped by the test")

    monkeypatch.setattr(runner_module.EpochRecord, "on_train_epoch_end", stop)
    built: list[nn.Module] = []
    make = runner_module.build_model
    monkeypatch.setattr(runner_module, "build_model", lambda *a, **k: built.append(make(*a, **k)) or built[-1])
    with pytest.raises(TrainingError, match="stopped by the test"):
        train(stopped)
    assert not any(module._forward_hooks for module in built[0].modules())  # taken off behind an exception too
    monkeypatch.undo()
    # The fixtures' own patches went with it: the model is made by name again.
    from stripefold_lab import models
    from tests.training.conftest import TinyNet

    monkeypatch.setattr(models, "create_model", lambda name, **o: TinyNet(o["num_classes"], o["in_channels"]))
    resumed = train(stopped.with_overrides(resume=True))
    assert resumed.epochs_run == 1
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key


def test_refused_before_anything_is_written(config: TrainConfig, tmp_path) -> None:
    from stripefold_lab import models

    class Plain(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(64, 10))

    folder = tmp_path / "refused"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "create_model", lambda *_, **__: Plain())
        with pytest.raises(ConfigError, match="Plain has no BatchNorm, so there are no batch statistics to disturb"):
            train(config.with_overrides(form="none", batch_noise=RANDOM, run_dir=str(folder)))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"kind": "loud"}, "batch_noise has kind 'loud'; choose one of constant, random"),
        ({"scale": 1.0}, "batch_noise has no kind; give kind, scale, shift"),
        ({"kind": "random", "size": 1}, "batch_noise has the key 'size'; give kind, scale, shift"),
        ({"kind": "random", "shift": -1}, "batch_noise has shift -1; of random noise it is a deviation, at least 0"),
        ({"kind": "random", "scale": "much"}, "batch_noise has scale 'much'; give a finite number"),
        ({"kind": "constant", "scale": float("nan")}, "batch_noise has scale nan; give a finite number"),
        ({"kind": "constant", "scale": True}, "batch_noise has scale True; give a finite number"),
        ("random", "batch_noise is 'random'; give a mapping"),
    ],
)
def test_refused_values(values: object, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TrainConfig(batch_noise=values)


def test_compiling_would_leave_the_noise_out() -> None:
    with pytest.raises(ConfigError, match="batch_noise is put in by hooks, which compile would leave out"):
        TrainConfig(batch_noise=RANDOM, compile=True)
    assert TrainConfig(batch_noise={"kind": "constant", "scale": -0.2}).to_dict()["batch_noise"]["scale"] == -0.2
