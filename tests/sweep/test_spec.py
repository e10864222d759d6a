"""Sweeps from names and files: every refusal, the ablations, what overrides what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stripefold.errors import ConfigError
from stripefold_lab.sweep import Sweep, load_sweep, sweep_names
from stripefold_lab.sweep.trials import list_settings, list_trials
from stripefold_lab.training import TrainConfig, load_config
from stripefold_lab.training.build import build_model
from stripefold_lab.training.data import ImageSpec

ABLATIONS = ("attention", "beside", "control", "delta", "digits", "frozen", "place", "psi0")


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"base": TrainConfig(devices=2, strategy="fsdp")}, "the base has devices 2 and nodes 1, and each run "),
        ({"base": TrainConfig(nodes=2)}, "devices 1 and nodes 2.*: set devices=1, nodes=1 and strategy=auto"),
        ({"grid": {"epoch": [1]}}, "unknown option 'epoch' in grid; did you mean 'epochs'"),
        ({"grid": {"seed": [1]}}, "seed cannot vary .grid.: give it as seeds"),
        ({"grid": {"task": ["detection"]}}, "task cannot vary .grid.: scores of different tasks"),
        ({"grid": {"workers": [0, 1]}}, "workers cannot vary .grid.: it does not change what is learned"),
        ({"grid": {"repeats": []}}, r"grid, repeats is \[\]; give a list of values"),
        ({"grid": {"attention": "se"}}, "grid, attention is 'se'; give a list"),
        ({"grid": ["repeats"]}, r"grid is \['repeats'\]; give a mapping"),
        ({"settings": {"a": 3}}, "settings, 'a' is 3; give a label and a mapping"),
        ({"settings": {"a": {"sedd": 1}}}, "unknown option 'sedd' in settings, a; did you mean 'seed'"),
        ({"settings": {"a": {"repeats": 2}}, "grid": {"repeats": [1]}}, "repeats varies in both settings and grid"),
        ({"grid": {"psi": [1]}, "random": {"psi": {"uniform": [0, 1]}}, "samples": 1}, "psi varies in both grid and"),
        ({"random": {"psi": {"uniform": [0, 1]}}}, "samples is 0 with 1 options under random; give both"),
        ({"samples": 3}, "samples is 3 with 0 options under random; give both"),
        ({"samples": -1}, "samples is -1; give a whole number from 0 on"),
        ({"draw_seed": 0.5}, "draw_seed is 0.5; give a whole number"),
        ({"seeds": ()}, r"seeds is \[\]; give a number of seeds, or a list of different ones"),
        ({"grid": {"seed_": [1]}}, "unknown option 'seed_'"),
        (
            {"grid": {"psi": [0.1] * 100, "epochs": [1] * 100, "repeats": [1] * 10}, "seeds": (0, 1)},
            "the sweep has 200000 runs, .*; it may have 100000",
        ),
        ({"random": {"psi": {"uniform": [0, 1]}}, "samples": 10**9}, r"the sweep has 3e\+09 runs"),
        ({"seeds": (1, 1)}, r"seeds is \[1, 1\]"),
        ({"seeds": (-1,)}, "seed is -1; it must be at least 0"),
        ({"control": "none"}, "control is 'none'; give a mapping of options to values, or null"),
        ({"control": {"run_dir": "x"}}, "run_dir cannot vary .control."),
    ],
)
def test_refuses_naming_place_and_value(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Sweep(**{"base": TrainConfig(), **options})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("grid: [", "is no valid YAML"),
        ("- 1", "holds list; a sweep is a mapping with keys title, base, set"),
        ("grids: {}", "unknown key 'grids' in the sweep .*mine.yaml; did you mean 'grid'"),
        ("zzz: 1", "unknown key 'zzz' .*keys: title, base"),
        ("set: 3", "set is 3 in the sweep .*; give a mapping"),
        ("set: {epocs: 3}", "unknown option 'epocs' in the sweep's set; did you mean 'epochs'"),
        ("set: {run_dir: here}", "run_dir cannot be set for a sweep: each run of a sweep has a folder of its own"),
        ("set: {seed: 1}", "seed cannot be set for a sweep: give seeds"),
        ("base: digit", "did you mean 'digits'"),
        ("seeds: true", "seeds is True; give a number of seeds from 1 on, or a list"),
        ("seeds: 1000000000", "seeds is 1000000000; give a number of seeds"),
        ("seeds: 18446744073709551615", "seeds is 18446744073709551615; give a number of seeds"),
        ("seeds: 1\nseeds: 2", "the key 'seeds' stands in it twice"),
        ("x: &x [&y [1], *y]\nset: {where: &z [*z]}", "an alias in it refers to a value that contains the alias"),
        ("seeds: 0", "seeds is 0; give a number of seeds from 1 on"),
        (
            "grid: {repeats: [1, 2]}\nset: {repeats: 2}",
            "repeats cannot be set for the sweep mine: it is what varies there",
        ),
    ],
)
def test_refuses_bad_files(text: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        load_sweep(write(tmp_path, text))


def test_a_missing_file_gets_the_nearest_sweep() -> None:
    with pytest.raises(ConfigError, match=r"no sweep and no readable file 'dela' .*; did you mean 'delta'"):
        load_sweep("dela")
    with pytest.raises(ConfigError, match="sweeps: attention, beside, control"):
        load_sweep("no/such/file.yaml")


def test_overrides_win_and_what_varies_is_not_theirs(tmp_path: Path) -> None:
    file = write(tmp_path, "base: cifar\nset: {epochs: 3}\ngrid: {repeats: [1, 2]}\n")
    sweep = load_sweep(file, epochs=2, seeds=[4, 7])
    assert (sweep.base.epochs, sweep.base.model, sweep.seeds) == (2, "resnet164", (4, 7))
    assert load_sweep(file, base="digits").base.model == "resnet20"
    assert load_sweep(file, seeds=2).seeds == (0, 1)
    with pytest.raises(ConfigError, match="repeats cannot be set for the sweep mine"):
        load_sweep(file, repeats=3)


def test_a_base_lies_beside_its_sweep(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("model: resnet8\nseed: 5\nrun_dir: elsewhere\n", encoding="utf-8")
    sweep = load_sweep(write(tmp_path, "base: own.yaml"))
    assert (sweep.base.model, sweep.base.seed, sweep.base.run_dir) == ("resnet8", 0, None)


@pytest.mark.parametrize("base", ["a" * 300, "b/" * 3000, "c" * 256 + ".yaml"])
def test_a_base_that_no_file_can_be_named(tmp_path: Path, base: str) -> None:
    with pytest.raises(ConfigError, match=r"no recipe and no readable file .*name too long"):
        load_sweep(write(tmp_path, f"base: {base}"))


def test_a_run_of_several_processes_is_a_base_when_told_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text("devices: 2\nstrategy: fsdp\n", encoding="utf-8")
    sweep = write(tmp_path, "base: many.yaml\ngrid: {repeats: [1, 2]}\n")
    with pytest.raises(ConfigError, match="the base has devices 2"):
        load_sweep(sweep)
    assert load_sweep(sweep, devices=1, strategy="auto").base.devices == 1


def test_runs_use_one_thread_unless_told() -> None:
    assert load_sweep("delta").base.threads == 1
    assert load_sweep("delta", threads=3).base.threads == 3


def test_the_sweeps_of_the_package() -> None:
    assert sweep_names() == ABLATIONS
    for name in ("cifar", "digits"):
        load_config(name)
    assert len(list_settings(load_sweep("attention"), [])) == 1 + 12
    assert [setting.label for setting in list_settings(load_sweep("delta"), [])][:2] == ["backbone", "repeats=1"]


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_setting_of_the_package_builds(name: str, recwarn: pytest.WarningsRecorder) -> None:
    sweep = load_sweep(name, base="digits", model="resnet8")
    settings = list_settings(sweep, [])
    assert settings[0].label == "backbone"
    assert len(list_trials(sweep, settings)) == len(settings) * len(sweep.seeds)
    spec = ImageSpec(classes=tuple("0123456789"), channels=1, size=16)
    counts = {
        setting.label: sum(p.numel() for p in build_model(setting.config, spec).parameters()) for setting in settings
    }
    assert all(count > counts["backbone"] for label, count in counts.items() if label != "backbone")
    # Only a gate right behind a convolution is warned of, and only `place` has such.
    assert bool(recwarn.list) == (name == "place")


def test_importing_the_room_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, stripefold_lab.sweep, stripefold_lab.cli.app\n"
        "print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name_of_the_room() -> None:
    import stripefold_lab.sweep

    with pytest.raises(AttributeError, match="no_such_name"):
        stripefold_lab.sweep.no_such_name  # noqa: B018
