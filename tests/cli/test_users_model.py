"""``--model FILE.py:FUNCTION``: a network of one's own in every command that takes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import stripefold as sf
from stripefold.folding.weight_files import file_info
from stripefold_lab.cli import main

PARTS = """
import torch
from torch import nn

class Gate(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = nn.Linear(c, c)
    def forward(self, x):
        return torch.sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]

class Block(nn.Module):
    def __init__(self, c, gated):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        self.gate = Gate(c) if gated else None
    def forward(self, x):
        y = self.bn(self.conv(x))
        y = y if self.gate is None else y * self.gate(y)
        return torch.relu(x + y)

def net(channels, gated):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), Block(8, gated), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
"""
NET = """
from __future__ import annotations
from dataclasses import dataclass
from parts import net

@dataclass
class Settings:
    channels: int = 1

def digits():
    return net(Settings().channels, True)

def colour():
    return net(3, False)

def attached():
    import stripefold as sf
    import torch
    return sf.attach(net(3, False), "se", example=torch.randn(2, 3, 12, 12))

def broken():
    raise KeyError("no weights")

def number():
    return 3

value = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    monkeypatch.delitem(__import__("sys").modules, "parts", raising=False)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "parts.py").write_text(PARTS, encoding="utf-8")
    (tmp_path / "code" / "net.py").write_text(NET, encoding="utf-8")
    return tmp_path


def test_sites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "--model", "code/net.py:colour", "--size", "12", "--json"]) == 0
    printed = capsys.readouterr()
    assert [row["name"] for row in json.loads(printed.out)["chosen"]] == ["1.bn"]
    assert printed.err == "stripefold: running code/net.py\n"


def test_observe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "--model", "code/net.py:digits", "--data", "digits", "--images", "16", "--json"]) == 0
    printed = capsys.readouterr()
    assert [layer["name"] for layer in json.loads(printed.out)["layers"]] == ["1"]
    assert "random" not in printed.err  # what the function returns is what is meant


def test_bake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "digits", "--images", "64", "--test-images", "32", "-o", "baked.safetensors"]
    assert main(["bake", "--model", "code/net.py:digits", *words]) == 0
    assert file_info("baked.safetensors").kind == "baked"
    assert "written: baked.safetensors (baked)" in capsys.readouterr().out
    assert main(["bake", "--model", "code/net.py:digits", *words[:-2], "--json"]) == 0
    printed = capsys.readouterr()
    assert [gate["name"] for gate in json.loads(printed.out)["sites"]] == ["1"]
    assert "images: " in printed.err


def test_export(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert main(["export", "--model", "code/net.py:attached", "--size", "12", "-o", "net.onnx"]) == 0
    assert Path("net.onnx").is_file()


@pytest.mark.parametrize("fuse", [False, True])
def test_fold_with_trained_weights(folder: Path, fuse: bool, capsys: pytest.CaptureFixture[str]) -> None:
    from stripefold_lab.cli.users_code import users_model

    trained = users_model("code/net.py:attached")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sf.save_model(trained, "trained.safetensors")
    words = ["--weights", "trained.safetensors", "--size", "12", "-o", "out.safetensors", *(["--fuse"] if fuse else [])]
    assert main(["fold", "--model", "code/net.py:attached", *words]) == 0
    assert f"written: out.safetensors ({'fused' if fuse else 'folded'})" in capsys.readouterr().out
    plain: nn.Module = users_model("code/net.py:colour")
    x = torch.randn(4, 3, 12, 12)
    if fuse:
        plain = sf.fold(plain, fuse=True, example=x)
    sf.load_model_(plain, "out.safetensors")
    sf.verify(trained, plain, x)
    untrained = users_model("code/net.py:attached").eval()
    assert not torch.allclose(untrained(x), trained.eval()(x), rtol=1e-3)


def test_the_plan_of_a_fold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fold", "--model", "code/net.py:attached", "--size", "12", "--dry-run"]) == 0
    assert "1.bn" in capsys.readouterr().out
    assert not list(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("sites --model code/net.py:broken", "code/net.py:broken failed: KeyError: 'no weights'"),
        ("sites --model code/net.py:number", "code/net.py:number returned int; it has to return the network"),
        ("sites --model code/net.py:value", "code/net.py has no function 'value'"),
        ("observe --model code/net.py:digits", "say which images 'code/net.py:digits' is to see"),
        ("observe --model code/net.py:digits --data noise --pretrained", "leave out --pretrained and --classes"),
        ("export --model code/net.py:colour -o x.onnx", "does not say which images it takes, give --size"),
        ("fold --model code/net.py:colour --size 12 -o x.safetensors", "without gates or branch blocks: attach in"),
        ("fold --model code/net.py:attached -o x.safetensors", "does not say which images it takes, give --size"),
        ("fold run -o x.safetensors --size 12", "--weights and --size are for --model"),
        ("bake run --model code/net.py:digits", "give RUN_OR_MODEL or --model FILE.py:FUNCTION, not both"),
    ],
)
def test_refused_in_one_line(folder: Path, words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not Path("x.safetensors").exists()
