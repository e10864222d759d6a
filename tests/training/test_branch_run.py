"""Branch blocks through a whole run: trained, folded to stock keys, verified, loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stripefold as sf
from stripefold.branches.block import BranchBlock
from stripefold.errors import BranchError, ConfigError
from stripefold.folding.weight_files import file_info
from stripefold_lab.cli.app import run
from stripefold_lab.training import TrainConfig, evaluate, load_config, train
from stripefold_lab.training.build import build_backbone, build_model
from stripefold_lab.training.data import load_data
from tests.training.conftest import TinyNet


@pytest.mark.parametrize("form", ["none", "static", "dynamic", "both"])
def test_a_run_with_blocks_leaves_a_plain_file(config: TrainConfig, form: str) -> None:
    result = train(config.with_overrides(form=form, branch="acnet", branch_where=["stem", "conv"], epochs=1))
    assert sum(isinstance(module, BranchBlock) for module in result.model.modules()) == 2
    assert not any(isinstance(module, BranchBlock) for module in result.folded.modules())
    assert result.verification.passed
    assert result.attached.accuracy == result.deployed.accuracy
    assert "acnet blocks" in result.summary_file.read_text()

    static = form in ("none", "static")
    assert file_info(result.folded_file).kind == ("folded" if static else "attached")
    if static:
        plain = TinyNet(10, 1)
        plain.load_state_dict(load_file(result.folded_file), strict=True)
        assert torch.allclose(plain.eval()(result.example), result.model(result.example), atol=1e-5)
    assert evaluate(result.folded_file).accuracy == result.deployed.accuracy
    run_again = evaluate(result.run_dir)
    assert (run_again.kind, run_again.accuracy) == ("attached", result.attached.accuracy)


def test_the_backbone_is_the_same_with_and_without_blocks(config: TrainConfig) -> None:
    spec = load_data(config).spec
    plain = build_backbone(config, spec)
    blocks = build_model(config.with_overrides(branch="mobileone", branch_options={"copies": 2}, form="none"), spec)
    assert torch.equal(blocks.get_submodule("conv.branches.main.conv").weight, plain.conv.weight)
    assert torch.equal(blocks.head.weight, plain.head.weight)
    again = build_model(config.with_overrides(branch="mobileone", branch_options={"copies": 2}, form="none"), spec)
    assert all(
        torch.equal(a, b) for a, b in zip(blocks.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_identity_starts_from_the_function_of_the_backbone(config: TrainConfig) -> None:
    config = config.with_overrides(branch="repvgg", init="identity", form="none", learning_rate=1e-12, weight_decay=0)
    spec = load_data(config).spec
    images = torch.randn(40, 1, 8, 8)
    backbone, model = build_backbone(config, spec).eval(), build_model(config, spec, images=images).eval()
    assert torch.allclose(model(images), backbone(images), atol=1e-5)

    result = train(config.with_overrides(epochs=1))  # nothing moves but running statistics
    for name in ("stem", "conv"):
        found, stock = (each.get_submodule(name).weight.detach().flatten(1) for each in (result.folded, backbone))
        assert torch.nn.functional.cosine_similarity(found, stock).min() > 0.999
        # Measured on training images: a BatchNorm that starts at variance 1 would be off by far more.
        assert ((found.norm(dim=1) / stock.norm(dim=1)).log2().abs() < 1).all()


def test_blocks_resume_and_refuse_another_kind(config: TrainConfig) -> None:
    config = config.with_overrides(branch="doconv", epochs=1)
    train(config)
    with pytest.raises(ConfigError, match="cannot resume .*: branch was 'doconv' and is now 'dbb'"):
        train(config.with_overrides(branch="dbb", resume=True))


def test_unknown_blocks_are_named(config: TrainConfig) -> None:
    with pytest.raises(BranchError, match=r"no branch block 'acnett'; known are acnet, .* Did you mean 'acnet'"):
        train(config.with_overrides(branch="acnett"))
    with pytest.raises(ConfigError, match="branch_where is 3; give a list of str"):
        config.with_overrides(branch_where=3)
    assert TrainConfig(**config.with_overrides(branch="dbb").to_dict()).branch == "dbb"
    assert load_config("digits").branch is None


def test_a_bias_that_finds_no_batchnorm_is_in_the_file(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoNorm(TinyNet):
        def __init__(self) -> None:
            super().__init__(10, 1)
            self.conv = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.norm2 = torch.nn.GroupNorm(2, 8)

    monkeypatch.setattr("stripefold_lab.models.create_model", lambda *args, **options: NoNorm())
    with pytest.warns(UserWarning, match=r"1 folded layers have a bias .*: conv\.bias"):
        result = train(config.with_overrides(branch="repvgg", form="none", epochs=1))
    assert "conv.bias" in load_file(result.folded_file)
    assert evaluate(result.folded_file).accuracy == result.deployed.accuracy


def test_the_commands_know_blocks(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["branches"])
    table = capsys.readouterr().out
    assert all(name in table for name in sf.branch_names())
    folder = tmp_path / "by_command"
    changes = [f"--set={word}" for word in ("limit_train=32", "limit_test=16", "batch_size=16", "progress=none")]
    options = ["--model", "tiny", "--form", "none", "--branch", "repvgg", "--epochs", "1", "--run-dir", str(folder)]
    assert run(["train", *options, *changes, "--set=accelerator=cpu", "--set=tensorboard=false"]) == 0
    assert run(["fold", str(folder), "--output", str(tmp_path / "plain.safetensors")]) == 0
    capsys.readouterr()
    TinyNet(10, 1).load_state_dict(load_file(tmp_path / "plain.safetensors"), strict=True)
