"""``--import FILE.py``: an attention of one's own in every command that names one, or reads a run that has one."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from stripefold.attention import attention_names, registry
from stripefold.errors import ConfigError
from stripefold_lab import names, users_files
from stripefold_lab.cli import main
from stripefold_lab.cli.app import COMMANDS
from stripefold_lab.sweep import launch
from stripefold_lab.sweep.trial import TrialJob, run_trial

OWN = """
import torch
from torch import nn
import stripefold as sf
from stripefold.attention import ChannelAttention
from stripefold.attention.pooling import mean_pool

@sf.register_attention("own_gate")
class OwnGate(ChannelAttention):
    squeezes, excites, source = "mean", "sigmoid(d + b)", "this test"

    def __init__(self, channels, *, axis=1):
        super().__init__(channels, axis=axis)
        self.bias = nn.Parameter(torch.zeros(channels))

    def squeeze(self, x):
        return mean_pool(x, self.axis)

    def excite(self, descriptor):
        return torch.sigmoid(descriptor + self.bias.to(descriptor.dtype))
"""
OPTIONS = ("model=resnet8", "epochs=1", "limit_train=64", "limit_test=32", "tensorboard=false")
SHORT = [word for option in OPTIONS for word in ("--set", option)]
RUN = ["train", "-c", "digits", *SHORT, "--set", "progress=none"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    fresh(monkeypatch)
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    return tmp_path


def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: nothing of the user's was run."""
    built_in = {name: cls for name, cls in registry._ATTENTIONS.items() if name in names.ATTENTIONS}
    monkeypatch.setattr(registry, "_ATTENTIONS", built_in)
    monkeypatch.setattr(users_files, "_imported", {})


def test_the_names_that_help_tells_are_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(monkeypatch)
    assert attention_names() == names.ATTENTIONS


@pytest.mark.parametrize("command", ["train", "bench"])
def test_help_names_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ", ".join(names.ATTENTIONS) in shown
    assert "--import FILE.py" in shown


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"demo", "recipes"}))
def test_every_command_takes_it(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--import", "no_such.py"]) != 0
    told = capsys.readouterr().err
    assert "no_such.py does not exist" in told or "Missing " in told, told
    assert "No such option" not in told


def test_it_is_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attention", "--json"]) == 0
    assert "own_gate" not in capsys.readouterr().out
    assert main(["attention", "--import", "own.py", "--json"]) == 0
    printed = capsys.readouterr()
    assert "own_gate" in [row["name"] for row in json.loads(printed.out)]
    assert printed.err == "stripefold: running own.py\n"
    assert main(["attention", "--import", "own.py", "--import", str(folder / "own.py")]) == 0  # once in a process
    assert "running" not in capsys.readouterr().err


def test_a_run_trains_resumes_and_is_read_with_it_and_says_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "--attention", "own_gate", "--run-dir", "run"]) == 2
    told = capsys.readouterr().err
    assert "no attention 'own_gate'; known are cbam, " in told
    assert "--import FILE.py" in told
    assert not Path("run").exists()
    assert main([*RUN, "--attention", "own_gate", "--run-dir", "run", "--import", "own.py"]) == 0
    resume = ["train", "--resume", "--run-dir", "run", "--epochs", "2", "--set", "progress=none"]
    read = [["eval", "run"], ["fold", "run", "-o", "plain.safetensors"], ["verify", "run", "plain.safetensors"]]
    for words in (resume, *read):
        fresh(monkeypatch)
        capsys.readouterr()
        assert main(words) != 0, words
        assert "no attention 'own_gate'" in capsys.readouterr().err, words
        assert main([*words, "--import", "own.py"]) == 0, capsys.readouterr().err


def test_bench(folder: Path) -> None:
    words = ["bench", "resnet8", "--attention", "own_gate", "--rounds", "1", "--batch", "1", "--json"]
    assert main(words) == 2
    assert main([*words, "--import", "own.py"]) == 0


def test_a_sweep_hands_the_file_to_its_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    Path("sweep.yaml").write_text("base: digits\ngrid: {attention: [own_gate]}\nseeds: 1\n", encoding="utf-8")
    words = ["sweep", "sweep.yaml", "--out", "out", *SHORT]
    assert main(words) == 2
    assert "no attention 'own_gate'" in capsys.readouterr().err
    assert not Path("out").exists()
    jobs: list[TrialJob] = []
    monkeypatch.setattr(launch, "ray_session", lambda *_: nullcontext(SimpleNamespace(nodes=list, tune=None)))
    monkeypatch.setattr(launch, "_resources", lambda *_: {"CPU": 1.0, "GPU": 0.0})
    monkeypatch.setattr(launch, "_callback", lambda *_: None)
    monkeypatch.setattr(launch, "_tuner", lambda _, job, *__: SimpleNamespace(fit=lambda: jobs.append(job)))
    main([*words, "--import", "own.py"])
    (job,) = jobs
    assert job.imports == (str(folder / "own.py"),)
    name = next(name for name, config in job.configs.items() if config["form"] == "static")
    fresh(monkeypatch)
    monkeypatch.chdir(folder / "out")  # a process of its own starts anywhere
    assert "no attention 'own_gate'" in run_trial({"trial": name}, replace(job, imports=()))["error"]
    assert "gone.py does not exist" in run_trial({"trial": name}, replace(job, imports=("gone.py",)))["error"]
    assert run_trial({"trial": name}, job)["error"] == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [("x = ", "cannot be run: SyntaxError"), ("raise KeyError(1)", "cannot be run: KeyError"),
     (OWN.replace("own_gate", "se"), "cannot be run: AttachError: cannot register OwnGate: the name 'se' belongs to")],
)  # fmt: skip
def test_files_that_cannot_be_run_are_refused(folder: Path, text: str, said: str) -> None:
    Path("bad.py").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"bad.py {said}"):
        users_files.import_files(["bad.py"])
    with pytest.raises(ConfigError, match=f"bad.py {said}"):  # and not taken for done
        users_files.import_files(["bad.py"])
