"""A whole run, what it leaves, and going on with it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import stripefold as sf
from stripefold.errors import CheckpointError, ConfigError, StripefoldError
from stripefold.folding.weight_files import file_info
from stripefold_lab.training import TrainConfig, evaluate, load_config, train
from stripefold_lab.training.build import build_backbone, build_model
from stripefold_lab.training.checkpoint import read_checkpoint
from stripefold_lab.training.data import ImageSpec, load_data
from stripefold_lab.training.training_module import TrainingModule
from tests.training.conftest import TinyNet

SPEC = ImageSpec(classes=("a", "b"), channels=1, size=8)


def test_a_run_leaves_one_folder(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    level = logging.getLogger("pytorch_lightning").level
    result = train(config.with_overrides(progress="lines"))
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.getLogger("pytorch_lightning").level == level
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]

    files = {str(path.relative_to(result.run_dir)) for path in result.run_dir.rglob("*") if path.is_file()}
    texts = {"config.yaml", "metrics.csv", "summary.md"}
    assert files == {*texts, "folded.safetensors", "checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    assert load_config(result.run_dir) == config.with_overrides(progress="lines")
    assert yaml.safe_load((result.run_dir / "config.yaml").read_text())["model"] == "tiny"
    assert len(result.metrics_file.read_text().splitlines()) == 3
    assert result.attached.accuracy == result.deployed.accuracy
    assert result.verification.passed
    assert (result.epochs_run, result.attached.images) == (2, 32)
    assert result.example.shape == (32, 1, 8, 8)

    plain = TinyNet(10, 1)
    plain.load_state_dict(load_file(result.folded_file), strict=True)
    assert torch.allclose(plain.eval()(result.example), result.model(result.example), atol=1e-5)
    assert not torch.allclose(sf.detach(result.model)(result.example), plain(result.example), atol=1e-3)


def test_the_summary_can_be_read(config: TrainConfig) -> None:
    result = train(config.with_overrides(learning_rate=1e-12, weight_decay=0, repeats=2))
    text = result.summary_file.read_text()
    assert text.startswith("# tiny, ASR(se), 2 gates per site, on digits, seed 0\n")
    for part in ("| trained |", "| deployed |", "equivalent in float32", "2 gates.", "Dead hidden units:", "## Time"):
        assert part in text
    # At this rate nothing moves, and the summary says so.
    assert re.search(r"Gates that never moved: norm2.gates.0, norm2.gates.1\.", text)


@pytest.mark.parametrize("form", ["none", "dynamic", "both"])
def test_every_form_trains_and_evaluates(config: TrainConfig, form: str) -> None:
    result = train(config.with_overrides(form=form, epochs=1))
    deployed = evaluate(result.folded_file)
    assert deployed.accuracy == result.deployed.accuracy == result.attached.accuracy
    assert (result.verification is not None) == (form == "both")
    plain = "stripefold is not needed" in result.summary_file.read_text(encoding="utf-8")
    assert plain == (form == "none")
    assert evaluate(result.run_dir).kind == ("backbone" if form == "none" else "attached")


def test_evaluate_agrees_with_the_run(config: TrainConfig) -> None:
    result = train(config)
    for source in (result.run_dir, result.last_checkpoint, str(result.folded_file)):
        found = evaluate(source)
        assert found.accuracy == result.attached.accuracy
        assert found.loss == pytest.approx(result.attached.loss, rel=1e-5)
    best = evaluate(result.best_checkpoint)
    assert best.accuracy == pytest.approx(result.best_score)
    assert evaluate(result.run_dir, limit_test=16).images == 16
    with pytest.raises(ConfigError, match="unknown option 'limit' in the overrides"):
        evaluate(result.run_dir, limit=3)


def test_resuming_a_finished_run_changes_nothing(config: TrainConfig) -> None:
    first = train(config)
    before = first.last_checkpoint.read_bytes(), first.metrics_file.read_bytes(), file_info(first.folded_file)
    folded = load_file(first.folded_file)
    again = train(config.with_overrides(resume=True))
    after = again.last_checkpoint.read_bytes(), again.metrics_file.read_bytes(), file_info(again.folded_file)
    assert before == after
    # Not the file's bytes: older safetensors write their metadata in any order.
    assert all(torch.equal(tensor, folded[key]) for key, tensor in load_file(again.folded_file).items())
    assert again.epochs_run == 0


def test_a_dynamic_chain_goes_on_with_the_same_bits(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of dia is of one forward: no checkpoint holds any, none is missed."""
    plan = config.with_overrides(model="resnet20", attention="dia", form="dynamic", attention_options={})
    alone = train(plan.with_overrides(run_dir=f"{plan.run_dir}-alone"))
    with monkeypatch.context() as patch:
        step = TrainingModule.training_step

        def stopping(self: TrainingModule, *args: object) -> torch.Tensor:
            if self.global_step == 3:  # in the middle of the second epoch
                raise RuntimeError("stopped here")
            return step(self, *args)

        patch.setattr(TrainingModule, "training_step", stopping)
        with pytest.raises(Exception, match="stopped here"):
            train(plan)
    resumed = train(plan.with_overrides(resume=True))
    assert resumed.epochs_run == 1
    ends = [read_checkpoint(run.last_checkpoint) for run in (alone, resumed)]
    assert ends[0]["state_dict"].keys() == ends[1]["state_dict"].keys()
    assert all(torch.equal(tensor, ends[1]["state_dict"][key]) for key, tensor in ends[0]["state_dict"].items())
    assert evaluate(resumed.run_dir).accuracy == resumed.attached.accuracy == alone.attached.accuracy
    assert evaluate(resumed.folded_file).loss == pytest.approx(resumed.attached.loss, rel=1e-6)


def test_a_moved_folder_is_resumed(config: TrainConfig, tmp_path: Path) -> None:
    first = train(config)
    first.run_dir.rename(tmp_path / "moved")
    again = train(config.with_overrides(resume=True, run_dir=str(tmp_path / "moved")))
    assert (again.epochs_run, again.best_score) == (0, first.best_score)


def test_two_runs_of_one_seed_are_the_same(config: TrainConfig, tmp_path: Path) -> None:
    one = train(config)
    torch.manual_seed(99)
    two = train(config.with_overrides(run_dir=str(tmp_path / "two")))
    other = train(config.with_overrides(run_dir=str(tmp_path / "three"), seed=1))
    weights = [run.folded.state_dict()["head.weight"] for run in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_worker_processes_change_nothing(config: TrainConfig, tmp_path: Path) -> None:
    config = config.with_overrides(augmentation="crop-flip")
    alone = train(config)
    helped = train(config.with_overrides(run_dir=str(tmp_path / "helped"), workers=1))
    assert torch.equal(alone.folded.state_dict()["head.weight"], helped.folded.state_dict()["head.weight"])


def test_an_occupied_folder_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    train(config.with_overrides(epochs=1))
    with pytest.raises(
        ConfigError, match="holds a run already; choose another, or go on with `stripefold train --resume"
    ):
        train(config)
    with pytest.raises(ConfigError, match="cannot resume .*: epochs was 1 and is now 2; resume with"):
        train(config.with_overrides(resume=True))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(config.with_overrides(run_dir=str(tmp_path / "other")))


def test_a_folder_is_named_after_the_run(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [train(config.with_overrides(run_dir=None, epochs=1)).run_dir.name for _ in range(2)]
    assert names == ["digits-tiny-static-se-seed0", "digits-tiny-static-se-seed0-2"]


def test_tensorboard_and_the_bar(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(config.with_overrides(epochs=1, tensorboard=True, progress="bar"))
    assert list((result.run_dir / "tensorboard").glob("events.*"))
    assert "val_accuracy" in capsys.readouterr().out


def test_half_precision_channels_last_and_clipping(config: TrainConfig) -> None:
    result = train(
        config.with_overrides(
            precision="bf16-mixed",
            channels_last=True,
            gradient_clip=1.0,
            label_smoothing=0.1,
            optimizer="adamw",
            epochs=1,
        )
    )
    assert next(result.folded.parameters()).dtype == torch.float32
    assert evaluate(result.folded_file).accuracy == result.deployed.accuracy


def test_a_backbone_is_the_same_under_every_attention(config: TrainConfig) -> None:
    bare = build_backbone(config, SPEC).state_dict()
    for changes in ({}, {"attention": "ie", "attention_options": {}}, {"form": "dynamic"}):
        attached = build_model(config.with_overrides(**changes), SPEC)
        assert torch.equal(sf.detach(attached).state_dict()["conv.weight"], bare["conv.weight"])
    assert len(sf.scales(build_model(config.with_overrides(where=("norm*",)), SPEC))) == 2


def test_weight_decay_of_gates_is_set_apart(config: TrainConfig) -> None:
    model = build_model(config, SPEC)
    options = config.with_overrides(weight_decay=0.1, gate_weight_decay=0.0)
    optimizer = TrainingModule(model, options, classes=2, steps_per_epoch=1).configure_optimizers()["optimizer"]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(model.parameters()))


def test_compiled_or_not_the_keys_are_the_same(config: TrainConfig) -> None:
    model = build_model(config, SPEC)
    tasks = [
        TrainingModule(model, config.with_overrides(compile=compiled), classes=2, steps_per_epoch=1)
        for compiled in (False, True)
    ]
    assert tasks[0].state_dict().keys() == tasks[1].state_dict().keys()
    assert all(key.startswith("model.") for key in tasks[1].state_dict())


def test_evaluate_refuses_other_classes(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    result = train(config.with_overrides(epochs=1))
    data = load_data(config)
    other = type(data)(train=data.train, test=data.test, spec=SPEC)
    monkeypatch.setattr("stripefold_lab.training.loading.load_data", lambda config: other)
    with pytest.raises(CheckpointError, match="was trained on 10 classes, digits has 2"):
        evaluate(result.run_dir)


def test_bad_options_stop_before_anything_is_written(config: TrainConfig) -> None:
    for changes in ({"attention": "sx"}, {"model": "resnet21"}, {"data": "digit"}, {"attention_options": {"r": 3}}):
        with pytest.raises(StripefoldError):
            train(config.with_overrides(**changes))
        assert not Path(str(config.run_dir)).exists()
    with pytest.raises(ConfigError, match="accelerator 'abacus' with precision 32 cannot be used here"):
        train(config.with_overrides(accelerator="abacus"))


@pytest.mark.parametrize("freeze", [(), ("psi",), ("theta",), ("psi", "theta")])
def test_what_is_frozen_does_not_move(config: TrainConfig, freeze: tuple[str, ...]) -> None:
    frozen = config.with_overrides(freeze=freeze, epochs=1)
    start = {name: value.clone() for name, value in build_model(frozen, load_data(frozen).spec).named_parameters()}
    result = train(frozen)
    moved = {name for name, value in result.model.named_parameters() if not torch.equal(value, start[name])}
    parts = {"psi": ".psi", "theta": ".attention."}
    for part, mark in parts.items():
        of_it = {name for name in start if mark in name}
        assert of_it
        assert (not moved & of_it) if part in freeze else (of_it <= moved)
    assert {name for name in start if "gates" not in name} <= moved
    assert (f"{' and '.join(freeze)} frozen" in result.summary_file.read_text(encoding="utf-8")) == bool(freeze)


def test_a_drawn_psi_follows_from_the_seed(config: TrainConfig) -> None:
    def psi(seed: int) -> torch.Tensor:
        return dict(build_model(config.with_overrides(psi="random", seed=seed), SPEC).named_parameters())[
            "norm2.gates.0.psi"
        ]

    assert torch.equal(psi(0), psi(0))
    assert not torch.equal(psi(0), psi(1))
    assert psi(0).std() > 0.2


@pytest.mark.parametrize("when", ["before a step", "in the first epoch"])
def test_a_run_that_failed_at_the_start_does_not_block_its_folder(
    config: TrainConfig, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = "on_train_start" if when == "before a step" else "on_train_epoch_end"

    def failing(self: TrainingModule) -> None:
        raise RuntimeError("no such driver")

    monkeypatch.setattr(TrainingModule, hook, failing)
    with pytest.raises(RuntimeError, match="no such driver"):
        train(config.with_overrides(epochs=2))
    monkeypatch.undo()
    monkeypatch.setattr("stripefold_lab.models.create_model", lambda name, **options: TinyNet(10, 1))
    again = train(config.with_overrides(epochs=1))  # other options, the same folder, no --resume
    assert again.epochs_run == 1
    assert load_config(again.run_dir).epochs == 1
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config.with_overrides(epochs=1))
