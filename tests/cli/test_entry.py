"""Errors are one line and a non-zero status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stripefold.errors import FoldError
from stripefold_lab.cli import main
from stripefold_lab.cli.entry import explain


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (FoldError("cannot fold\n  the gate"), 2, "cannot fold the gate"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), 2, "pip install 'stripefold[vision]'"),
        (ModuleNotFoundError("No module named 'typer'", name="typer.main"), 2, "pip install 'stripefold[cli]'"),
        (ModuleNotFoundError("No module named 'odd'", name="odd"), 2, "No module named 'odd'"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (ValueError("strange"), 1, "unexpected ValueError: strange (--debug shows where)"),
    ],
)
def test_explain(error: BaseException, status: int, line: str) -> None:
    found, text = explain(error)
    assert found == status
    assert line in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no-such-command"], "no-such-command"),
        (["sites"], "give MODEL or --model FILE.py:FUNCTION"),
        (["sites", "resnet8", "--model", "net.py:create"], "--model FILE.py:FUNCTION, not both"),
        (["sites", "--model", "resnet8"], "--model 'resnet8': give FILE.py:FUNCTION, such as net.py:create"),
        (["sites", "--model", "no/net.py:create"], "no/net.py does not exist"),
        (["eval", "a" * 300], "unknown model 'aaa"),
        (["observe", "a" * 300, "--data", "digits"], "unknown model 'aaa"),
        (["eval", "timm/resnet51", "--pretrained"], "timm knows no classifier 'resnet51'; close: "),
        (["observe", "resnet8", "--data", "digit"], "data is 'digit'; choose one of digits"),
        (["train", "--data", "digit"], "data is 'digit'; choose one of digits"),
        (["train", "--config", "shapes-detection", "--data", "voc:no"], "no folder no; data=voc:PATH needs the folder"),
        (["train", "--model", "resnet21"], "unknown model 'resnet21'; close:"),
        (["sites", "resnet21"], "unknown model 'resnet21'"),
        (["sites", "resnet8", "--where", "nothing.*"], "matches no module"),
        (["sites", "resnet8", "--classes", "many"], "--classes"),
        (["bench", "resnet8", "--mode", "sleep"], "choose inference or training"),
        (["bench", "resnet8", "--attention", "sse", "--rounds", "1"], "no attention 'sse'"),
        (["train", "--set", "epochs"], "give KEY=VALUE"),
        (["train", "--set", "epochs=[1"], "no YAML"),
        (["train", "--set", "epoch=3"], "did you mean 'epochs'"),
        (["train", "--config", "digit"], "did you mean 'digits'"),
        (["train", "--resume", "--run-dir", "no/such/run"], "no/such/run holds no run to resume"),
        (["bench", "resnet8", "--device", "gpu"], "--device 'gpu' cannot be used here"),
        (["eval", "no/such/run"], "no such file or folder; give a run's folder"),
        (["train", "--form", "sometimes"], "choose one of static"),
    ],
)
def test_wrong_use_is_one_line_and_status_two(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.startswith("stripefold: ")
    assert printed.count("\n") == 1


def test_wrong_words_name_the_help_of_their_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "--images", "many"]) == 2
    assert "(stripefold observe --help)" in capsys.readouterr().err


def test_debug_shows_the_traceback() -> None:
    from stripefold.errors import ConfigError

    with pytest.raises(ConfigError, match="unknown model"):
        main(["sites", "resnet21", "--debug"])


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("stopped by Ctrl-C; the last checkpoint is kept")

    monkeypatch.setattr("stripefold_lab.models.create_model", interrupted)
    assert main(["sites", "resnet8"]) == 130
    assert capsys.readouterr().err == "stripefold: stopped by Ctrl-C; the last checkpoint is kept\n"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in ("demo", "train", "eval", "sites", "fold", "verify", "bench", "attention"):
        assert name in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("stripefold 0.")


def test_a_missing_parser_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('No module named typer', name='typer')\n")
    code = "import sys; from stripefold_lab.cli import main; sys.exit(main(['--help']))"
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(source)!r}]; {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "stripefold: typer is not installed, this command needs it: pip install 'stripefold[cli]'\n"


def test_a_closed_pipe_is_no_error() -> None:
    source = Path(__file__).parents[2] / "src"
    code = f"import sys; sys.path.insert(0, {str(source)!r}); from stripefold_lab.cli import main; sys.exit(main())"
    reader = subprocess.Popen(["head", "-c", "1"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    done = subprocess.run(
        [sys.executable, "-c", code, "attention"], stdout=reader.stdin, stderr=subprocess.PIPE, text=True, check=False
    )
    reader.communicate()
    assert "Traceback" not in done.stderr
