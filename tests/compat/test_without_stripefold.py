"""A folded model needs no stripefold: its file loads strictly into the stock class, its pickle opens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import stripefold as sf
from tests.lifecycle import assert_folds, prepared, scatter_, step_, tiny

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "stripefold":
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
"""


def run_without(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BLOCKED + code, *map(str, paths)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "dependence"), [("resnet10t", 64, 1e-2), ("test_vit", 160, 1e-3)])
def test_a_timm_model(tmp_path: Path, name: str, side: int, dependence: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, side, side)
    backbone = prepared(timm.create_model(name, num_classes=7), x)
    model = step_(scatter_(sf.attach(backbone, example=x)), x)
    plain = assert_folds(model, x, keys=list(backbone.state_dict()), dependence=dependence).eval()
    sf.save_model(plain, tmp_path / "folded.safetensors", kind="folded")
    torch.save(plain, tmp_path / "folded.pt")
    torch.save((x, plain(x).detach()), tmp_path / "expected.pt")
    done = run_without(
        f"""
import timm, torch
from safetensors.torch import load_file
model = timm.create_model({name!r}, num_classes=7)
model.load_state_dict(load_file(sys.argv[1]), strict=True)
x, expected = torch.load(sys.argv[3])
assert torch.equal(model.eval()(x), expected)
whole = torch.load(sys.argv[2], weights_only=False)
assert type(whole) is type(model) and torch.equal(whole(x), expected)
assert "stripefold" not in sys.modules
""",
        tmp_path / "folded.safetensors", tmp_path / "folded.pt", tmp_path / "expected.pt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_control_an_attached_model_needs_it(tmp_path: Path) -> None:
    site = sf.attach(tiny()).blocks[0].bn2
    torch.save(site, tmp_path / "attached.pt")
    torch.save(sf.fold(site, check=False), tmp_path / "folded.pt")
    code = "import torch; torch.load(sys.argv[1], weights_only=False)(torch.zeros(2, 8, 3, 3).double())"
    assert "stripefold is not installed here" in run_without(code, tmp_path / "attached.pt").stderr
    assert run_without(code, tmp_path / "folded.pt").returncode == 0
