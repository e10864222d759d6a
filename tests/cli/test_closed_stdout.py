"""Whatever becomes of standard output, what a command does is done and saved."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stripefold_lab.cli import main
from stripefold_lab.stdout import LossyOutput, lossy_stdout

SOURCE = Path(__file__).parents[2] / "src"
TINY = [
    "--set", "model=resnet8", "--set", "limit_train=64", "--set", "limit_test=32", "--set", "tensorboard=false",
    "--set", "accelerator=cpu", "--set", "warmup_epochs=0",
]  # fmt: skip


def command(words: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """A line of the shell, with the words for the command in place of ``stripefold``."""
    own = f"{sys.executable} -m stripefold"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", words.replace("stripefold", own)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dynamic"
    assert main(["train", *TINY, "--form", "dynamic", "--epochs", "1", "--run-dir", str(folder)]) == 0
    return folder


class Broken(io.StringIO):
    """A pipe whose reader has gone, after some lines."""

    def __init__(self, lines: int, error: type[OSError] = BrokenPipeError) -> None:
        super().__init__()
        self.left, self.error = lines, error

    def write(self, text: str) -> int:
        if self.left < 1:
            raise self.error(28, "gone")
        self.left -= text.count("\n")
        return super().write(text)


@pytest.mark.parametrize("lines", [0, 1])
def test_what_cannot_be_printed_is_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    stream = Broken(lines)
    monkeypatch.setattr(sys, "stdout", stream)
    with lossy_stdout() as output:
        for word in "abc":
            print(word)
    assert sys.stdout is stream
    assert isinstance(output, LossyOutput)
    assert isinstance(output.error, BrokenPipeError)
    assert stream.getvalue() == "a\n" * lines
    with pytest.raises(AttributeError):
        output.no_such_thing  # noqa: B018


def test_without_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with lossy_stdout() as output:
        print("x")
    assert output is None


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_bake_writes_its_files_before_it_prints(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(lines))
    words = ["bake", str(run), "--images", "32", "-o", str(tmp_path / "b.safetensors"), "--report", str(tmp_path / "r")]
    assert main(words) == 0
    assert (tmp_path / "b.safetensors").is_file()
    assert (tmp_path / "r" / "bake.json").is_file()


@pytest.mark.parametrize("progress", ["lines", "bar"])
def test_training_goes_on_where_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], progress: str
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(1))
    words = ["train", *TINY, "--epochs", "2", "--set", f"progress={progress}", "--run-dir", str(tmp_path / "run")]
    assert main(words) == 0
    assert "cannot write" not in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 3
    assert (tmp_path / "run" / "folded.safetensors").is_file()


def test_a_full_disk_behind_standard_output_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(0, OSError))
    assert main(["bake", str(run), "--images", "32", "-o", str(tmp_path / "b.safetensors")]) == 1
    assert capsys.readouterr().err == "stripefold: cannot write to standard output: gone; everything else was done\n"
    assert (tmp_path / "b.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_in_a_shell(run: Path, tmp_path: Path) -> None:
    tiny = " ".join(TINY)
    bake, train = f"stripefold bake {run} --images 32 -o", f"stripefold train {tiny} --epochs 2 --run-dir"
    for words, file in (
        (f"{bake} piped.safetensors | head -1", "piped.safetensors"),
        (f"{train} piped | head -1", "piped/summary.md"),
        (f"{train} closed >&-", "closed/summary.md"),
    ):
        done = command(words, tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert (tmp_path / file).is_file()
    if Path("/dev/full").exists():
        done = command(f"{bake} full.safetensors > /dev/full", tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("stripefold: cannot write to standard output: No space left on device")
        assert (tmp_path / "full.safetensors").is_file()
