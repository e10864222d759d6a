"""The CIFAR-10 experiment from end to end on a handful of drawn images: trained, observed, baked, drawn."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import stripefold as sf
from benchmarks import bake_cifar, bake_speed, branch_runs, cifar_results, int8_cifar, stripes_cifar
from benchmarks.cifar_data import augment, load_cifar
from benchmarks.stripes_cifar import Plan
from benchmarks.stripes_record import StripeRecord
from stripefold.errors import DataError
from stripefold_lab import create_model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise of different brightness: 60 images to train on, 20 to test."""
    root = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 10)):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(100 * label, 100 * label + 150, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index:03d}.png")
    return root


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    words = ["--data", str(images), "--out", str(out), "--models", "resnet8", "--seeds", "0", "--epochs", "2"]
    stripes_cifar.main([*words, "--device", "cpu", "--pack"])
    return out


def test_a_folder_and_its_tar_give_the_same_images(images: Path, tmp_path: Path) -> None:
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(images, arcname=".")
    one, other = load_cifar(images), load_cifar(archive)
    assert one.classes == other.classes == ("dark", "light")
    assert [len(part) for part in (one.train, one.validation, one.test)] == [48, 12, 20]
    assert all(torch.equal(getattr(one, p).images, getattr(other, p).images) for p in ("train", "validation", "test"))
    brightness = torch.stack([one.test.images[one.test.labels == label].float().mean() for label in (0, 1)])
    assert brightness[1] > brightness[0] + 50


def test_what_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_cifar(tmp_path / "nothing.tar")
    with pytest.raises(DataError, match="holds no images under train/CLASS"):
        load_cifar(tmp_path)


def test_crops_are_pieces_of_the_padded_image() -> None:
    image = torch.arange(1, 3 * 32 * 32 + 1).view(1, 3, 32, 32).repeat(200, 1, 1, 1)
    cut = augment(image, torch.Generator().manual_seed(0))
    centre = cut[:, :, 8:24, 8:24]  # never reaches the padding
    step = centre[:, :, :, 1:] - centre[:, :, :, :-1]
    assert set(step.unique().tolist()) == {-1, 1}
    assert 60 < (step[:, 0, 0, 0] == -1).sum() < 140
    assert len(centre[:, 0, 0, 0].unique()) > 50
    assert torch.equal(cut, augment(image, torch.Generator().manual_seed(0)))


@pytest.mark.slow
def test_a_run_leaves_weights_moments_and_figures(runs: Path) -> None:
    metrics = json.loads((runs / "resnet8-se-seed0" / "metrics.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in metrics["epochs"]] == [0, 1, 2]
    last = metrics["epochs"][-1]["stripes"][-1]
    kept = load_file(runs / "resnet8-se-seed0" / "stripes.safetensors")
    mean, m2 = kept["002/layer3.0.bn2/mean"], kept["002/layer3.0.bn2/m2"]
    within = m2.mean() / 20
    assert last["stripe_index"] == pytest.approx(float(mean.var(correction=0) / (mean.var(correction=0) + within)))
    Plan("resnet8", "se", 0).build().load_state_dict(load_file(runs / "resnet8-se-seed0" / "weights.safetensors"))
    with tarfile.open(runs / "resnet8-seed0.tar") as archive:
        assert {"resnet8-se-seed0/metrics.json", "resnet8-bare-seed0/weights.safetensors"} <= set(archive.getnames())


@pytest.mark.slow
def test_a_short_budget_ends_the_schedule_early(images: Path, tmp_path: Path) -> None:
    words = ["--data", str(images), "--out", str(tmp_path), "--models", "resnet8", "--seeds", "0", "--epochs", "500"]
    stripes_cifar.main([*words, "--attentions", "bare", "--device", "cpu", "--budget-seconds", "6"])
    metrics = json.loads((tmp_path / "resnet8-bare-seed0" / "metrics.json").read_text(encoding="utf-8"))
    assert 1 <= len(metrics["epochs"]) - 1 < 500
    assert metrics["recipe"]["planned_epochs"] == len(metrics["epochs"]) - 1


@pytest.mark.slow
def test_baked_and_drawn(images: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    torch.set_num_threads(1)
    results = list(bake_cifar.measure(Plan("resnet8", "se", 0), runs, load_cifar(images)))
    found = results[-1]
    assert found["all"]["baked and folded"] == found["all"]["constants"]
    assert all(curve[-1] == found["all"]["constants"] for curve in found["curves"].values())
    assert {len(curve) for curve in found["curves"].values()} == {4}
    assert [count for count, _ in found["repaired"]["BatchNorm re-estimated"]] == [0, 1, 2, 3]
    assert found["repaired"]["BatchNorm re-estimated"][-1][1] == found["all"]["constants, BatchNorm re-estimated"]
    trained = "constants trained for one epoch"
    assert found["repaired"][trained][-1][1] == found["all"][trained]
    (tmp_path / "resnet8-se-seed0.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr(cifar_results, "FOLDER", tmp_path / "results")
    cifar_results.main(["--runs", str(runs), "--baked", str(tmp_path)])
    page = (tmp_path / "results" / "README.md").read_text(encoding="utf-8")
    assert "| layer3.0.bn2 | 64 |" in page
    assert "| gates baked, cheapest first | change | BatchNorm re-estimated (1 networks) |" in page
    for name in ("stripes_over_epochs", "bake_sites", "bake_curves"):
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 5000
    assert "Baking: 2 epochs, seeds 0" in page
    observed = (tmp_path / "results" / "stripes.json").read_bytes()
    cifar_results.main(["--baked", str(tmp_path)])  # other networks baked: what was observed stays
    assert (tmp_path / "results" / "stripes.json").read_bytes() == observed
    assert (tmp_path / "results" / "README.md").read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_int8(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    words = ["--data", str(images), "--model", "resnet8", "--images", "48", "--epochs", "2"]
    int8_cifar.main([*words, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "int8.json").read_text(encoding="utf-8"))
    assert found["judged"] == 20
    trained = found["accuracy"]["trained"]["float32"]
    assert all(found["accuracy"][form]["float32"] == trained for form in (int8_cifar.KEPT, int8_cifar.FUSED))
    assert all(row["norms in the file"] == 0 for form, row in found["accuracy"].items() if form != "trained")
    before, after = found["ranges"]["as trained"], found["ranges"]["BatchNorm and gates"]
    assert before["layer1.0.conv2"]["channel_error"] == pytest.approx(after["layer1.0.conv2"]["channel_error"], rel=0.1)
    assert before["layer1.0.conv2"]["tensor_error"] != after["layer1.0.conv2"]["tensor_error"]
    assert "| folded and fused |" in (tmp_path / "INT8.md").read_text(encoding="utf-8")


def test_rounded_weights_have_255_values_per_scale() -> None:
    layer = torch.nn.Conv2d(3, 4, 3).requires_grad_(False)
    with torch.no_grad():
        layer.weight[0] *= 100
    one, many = (int8_cifar.rounded(layer, per_channel=each).weight for each in (False, True))
    assert len((one / layer.weight.abs().max() * 127).round().unique()) < len(layer.weight.unique())
    assert float((one - layer.weight)[1:].abs().max()) > 10 * float((many - layer.weight)[1:].abs().max()) > 0
    assert torch.equal(one[0], many[0])


@pytest.mark.slow
def test_branch_runs(tmp_path: Path) -> None:
    words = ["--model", "resnet8", "--cases", "repvgg", branch_runs.GATED, "--images", "32", "--epochs", "1"]
    branch_runs.main([*words, "--out", str(tmp_path)])
    first, second = json.loads((tmp_path / "resnet8.json").read_text(encoding="utf-8"))["rows"]
    assert (first["blocks"], second["blocks"], second["gates"]) == (7, 7, 27)
    for row in (first, second):
        assert row["stock_keys"]
        assert row["accuracy"] == row["accuracy_folded"]
        assert row["error64"] <= branch_runs.FLOAT64 < row["control64"]
    assert branch_runs.GATED in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_speed_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bake_speed.main(["--quick", "--output", str(tmp_path), "--date", "2024-01-01"])
    assert "3 of 3 gates baked" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("attention", ["se", "dia"])
def test_the_record_of_stripes_is_what_the_gates_give(attention: str) -> None:
    """Along a chain, too: each site goes on from the one before."""
    torch.manual_seed(0)
    model = sf.attach(create_model("resnet20").double(), attention, form="dynamic").eval()
    x = torch.randn(6, 3, 16, 16).double()
    rows = StripeRecord(model).add(0, x, torch.arange(6) % 2)
    for row, layer in zip(rows, sf.observe(model, x).layers, strict=True):
        assert row["mean"] == pytest.approx(float(layer.mean.mean()), rel=1e-10)
        assert row["within_std_max"] == pytest.approx(float(layer.within_std.max()), rel=1e-6)
