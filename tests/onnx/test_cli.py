"""`stripefold observe` and `stripefold bake` on ONNX files, as a stranger would use them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from stripefold.errors import ConfigError
from stripefold.onnx.images import Images
from stripefold_lab.cli import main
from stripefold_lab.cli.onnx_files import data_of, image_options
from tests.onnx.exact import run
from tests.onnx.nets import classifier, data, kinds, se_net

SIZE = "size=8x10"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(classifier(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for index in range(8):
        place = folder / f"class{index % 4}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60 + 20 * index, (20, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


def test_observe(net: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["observe", str(net), "--data", str(pictures), "--preprocess", f"{SIZE} labels=folders", "--by-class"]
    assert main([*words, "-o", str(out), "--paper", "column"]) == 0
    printed = capsys.readouterr()
    assert {file.suffix for file in (out / "pictures").iterdir()} == {".png", ".pdf", ".svg"}
    assert "stripes of net.onnx: 2 channel gates over 8 images" in printed.out
    assert "share of the variance over the images that the class explains" in printed.out
    assert f"written: {out / 'index.html'}" in printed.out
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "net.onnx" in page
    assert main([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 2


def test_observe_on_noise(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", str(net), "--data", "noise", "--images", "5", "--preprocess", SIZE]) == 0
    assert "2 channel gates over 5 images" in capsys.readouterr().out
    assert main(["observe", str(net), "--data", "noise"]) == 2
    assert "is of any size: say --preprocess size=HEIGHTxWIDTH" in capsys.readouterr().err


def test_bake(net: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, report = tmp_path / "new" / "baked.onnx", tmp_path / "report"
    words = ["bake", str(net), "--data", f"folder:{pictures}", "--preprocess", SIZE, "--preprocess", "mean=0.5 std=0.5"]
    words += ["--constants", "least-squares", "--report", str(report), "--speed", "-o", str(output)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "baked net.onnx: 2 of 2 gates (2 folded); constants: least-squares over 8 images" in printed
    assert "agreement with the original in percent: as given 100.00" in printed
    assert f"written: {output}" in printed
    assert "Mul" not in kinds(onnx.load(output))
    assert len(run(onnx.load(output), data()[0])[0]) == 2
    assert json.loads((report / "bake.json").read_text())["path"] == str(output)
    with (report / "bake.csv").open(newline="") as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == ["folded", "folded"]
    assert main(words) == 2  # the file is there
    assert "exists; choose another --out" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_a_budget_with_labels(net: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bake", str(net), "--data", str(pictures), "--preprocess", f"{SIZE} labels=folders", "--max-drop", "100"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "top-1 accuracy in percent" in printed
    assert "chosen by the same images" in printed


def test_npz_and_a_function(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "some.npz", x=np.concatenate(data()))
    assert main(["observe", str(net), "--data", str(tmp_path / "some.npz")]) == 0
    assert "over 6 images" in capsys.readouterr().out
    script = tmp_path / "mine.py"
    script.write_text(
        "import numpy as np\ndef images():\n    for seed in range(3):\n"
        "        yield np.random.default_rng(seed).random((2, 3, 8, 10), np.float32)\n"
    )
    assert main(["bake", str(net), "--data", f"{script}:images"]) == 0
    printed = capsys.readouterr()
    assert "over 6 images" in printed.out
    assert f"stripefold: running {script}" in printed.err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "say what the network is to see: --data FOLDER, FILE.npz or FILE.py:FUNCTION"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--data", "nowhere.py:images"], "nowhere.py does not exist"),
        (["--data", "broken.py:images"], "broken.py cannot be run: ZeroDivisionError"),
        (["--data", "mine.py:nothing"], "mine.py has no function 'nothing'"),
        (["--data", "some.npz", "--preprocess", "size=3"], "--preprocess is for a folder of images"),
        (["--data", "pictures", "--preprocess", "sizes=3"], "--preprocess 'sizes=3': the keys are size, fit"),
        (["--data", "pictures", "--preprocess", "size=wide"], "--preprocess 'size=wide' cannot be read"),
        (["--data", "pictures", "--preprocess", "scale=1/0"], "--preprocess 'scale=1/0' cannot be read"),
        (["--data", "pictures", "--preprocess", "labels=yes"], "labels=folders is all there is"),
        (["--data", "pictures", "--preprocess", "fit=tight"], "fit='tight': choose one of"),
        (["--data", "pictures"], "images of any size: say which, such as size=48x192"),
        (["--data", "pictures", "--size", "32"], "--size is not for ONNX files"),
        (["--data", "pictures", "--pretrained"], "--pretrained is not for ONNX files"),
        (["--data", "pictures", "--device", "cuda"], "--device is not for ONNX files"),
        (["--data", "pictures", "--mean", "0.5"], "--crop-mode or --interpolation is not for ONNX files"),
    ],
)
@pytest.mark.parametrize("command", ["observe", "bake"])
def test_refused(
    command: str, words: list[str], match: str, net: Path, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "mine.py").write_text("nothing = 3\n")
    np.savez(tmp_path / "some.npz", x=np.concatenate(data()))
    assert main([command, "net.onnx", *words]) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.splitlines()[-1].startswith("stripefold: ")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["-o", "baked.safetensors"], "what is written is an ONNX file, end its name in .onnx"),
        (["-o", "folder.onnx"], "a folder of this name is in the way"),
        (["-o", "net.onnx", "--overwrite"], "is the network itself"),
        (["--to", "asr"], "--to is not for ONNX files"),
        (["--weights", "some.safetensors"], "--weights is not for ONNX files"),
        (["--weights-key", "ema"], "--weights-key is not for ONNX files"),
        (["--data-dir", "there"], "--data-dir is not for ONNX files"),
        (["--recalibrate", "yes"], "--recalibrate is not for ONNX files"),
        (["--finetune-epochs", "1"], "--finetune-epochs is not for ONNX files"),
        (["--constants", "descriptor"], "constants='descriptor': choose one of 'mean', 'energy', 'least-squares'"),
        (["--where", "nothing"], "where: 'nothing' selects no gate"),
    ],
)
def test_bake_refuses(
    words: list[str], match: str, net: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    before = net.read_bytes()
    assert main(["bake", "net.onnx", "--data", "pictures", "--preprocess", SIZE, *words]) == 2
    assert match in capsys.readouterr().err
    assert net.read_bytes() == before


def test_preprocess_is_for_onnx_files(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("observe", "bake"):
        assert main([command, "timm/resnet18", "--preprocess", SIZE]) == 2
        assert "--preprocess is for ONNX files" in capsys.readouterr().err


def test_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = se_net().SerializeToString()
    (tmp_path / "net.onnx").write_bytes(content[:-7])
    for command in ("observe", "bake"):
        assert main([command, str(tmp_path / "net.onnx"), "--data", "noise"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_words_of_preprocessing(pictures: Path) -> None:
    words = ["size=48 fit=pad scale=1/127.5", "mean=1 std=0.5,1,2 order=bgr layout=nhwc labels=folders batch=3"]
    assert image_options(words) == {
        "size": (48, 48), "fit": "pad", "scale": 1 / 127.5, "mean": (1.0,), "std": (0.5, 1.0, 2.0), "order": "bgr",
        "layout": "nhwc", "labels": True, "batch": 3,
    }  # fmt: skip
    assert data_of(Path("net.onnx"), str(pictures), ["size=3x4"]) == Images(pictures, size=(3, 4))
    with pytest.raises(ConfigError, match="--data FOLDER"):
        data_of(Path("net.onnx"), None, None)
