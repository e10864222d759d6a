"""What the command says of itself: help, examples, recipes, configurations, JSON."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml

from stripefold_lab.cli import main
from stripefold_lab.cli.app import COMMANDS, app
from stripefold_lab.cli.examples import examples
from stripefold_lab.training import load_config, recipe_names
from tests.crew import ROOT


def test_bare_and_help_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for words in ([], ["-h"], ["--help"]):
        assert main(words) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        said.append(printed.out.strip())
    assert len(set(said)) == 1
    assert all(f"  {name} " in said[0] for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for word in ("-h", "--help"):
        assert main([name, word]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    lines = [line.strip() for line in examples(name).splitlines() if line.startswith("  ")]
    assert lines
    group = typer.main.get_command(app)
    for line in lines:
        assert line in said[0]
        words = shlex.split(line.partition(">")[0])
        assert words[0] == "stripefold"
        group.commands[words[1]].make_context(words[1], words[2:])


def test_no_command_but_those_that_say_so_takes_another_output() -> None:
    """``-o`` and ``--out`` mean the same everywhere, and ``--output`` is the older name of it."""
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        for option in command.params:
            if "-o" in option.opts:
                assert set(option.opts) == {"-o", "--out", "--output"}, name


def test_help_takes_no_half_second_of_work() -> None:
    """Of CPU time, so that a busy machine does not matter."""
    code = (
        "import sys, time\n"
        "from stripefold_lab.cli import main\n"
        "main(['observe', '--help'])\n"
        "print([m for m in ('torch', 'rich', 'timm') if m in sys.modules], time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT / "src")
    loaded, _, seconds = done.stderr.strip().rpartition(" ")
    assert loaded == "[]"
    assert float(seconds) < 0.5


def test_a_slip_in_a_name_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from stripefold_lab.cli import main\n"
        "status = [main(words.split()) for words in ('sites resnet21', 'observe resnet8 --data digit', "
        "'train --model resnet21', 'train --data digit', 'bench resnet21', 'export resnet21 -o x.onnx')]\n"
        "print(status, [m for m in ('torch', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT / "src")
    assert done.stdout.strip() == "[2, 2, 2, 2, 2, 2] []"
    assert done.stderr.count("\n") == 6


def test_completion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_STRIPEFOLD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "stripefold rob")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.strip() == "robustness"


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in recipe_names())
    assert main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(recipe_names())
    assert found["cifar"]["milestones"] == [81, 122]


@pytest.mark.parametrize("name", ["attention", "branches"])
def test_lists_as_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"se", "repvgg"} & {row["name"] for row in rows}
    assert all(isinstance(row["options"], list) for row in rows)


def test_sites_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "resnet8", "--where", "*.bn1", "--where", "*relu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in found["chosen"]} >= {"layer2.0.bn1"}
    assert found["refused"]


def test_bench_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "resnet8", "--batch", "2", "--size", "16", "--rounds", "2", "--json", "--device", "cpu"]
    assert main(words) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]][:2] == ["plain", "identical copy"]


def test_a_sweep_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "digits", "--dry-run", "--json", "-o", str(tmp_path / "sweep")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {run["state"] for run in found["runs"]} == {"waiting"}
    assert len(found["results"]) > 1


def test_the_configuration_is_printed_and_nothing_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "small", "--epochs", "3", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    Path("mine.yaml").write_text(printed, encoding="utf-8")
    assert load_config("mine.yaml") == load_config("small", epochs=3)
    assert yaml.safe_load(printed)["epochs"] == 3


def test_torchrun_is_told_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    started = int(time.time())
    assert main(["sites", "resnet21"]) == 2
    told = json.loads(path.read_text(encoding="utf-8"))["message"]
    assert told["message"].startswith("unknown model 'resnet21'")
    assert "\n" not in told["extraInfo"]["py_callstack"]
    assert int(told["extraInfo"]["timestamp"]) >= started
    path.unlink()
    assert main(["recipes"]) == 0
    assert not path.exists()
