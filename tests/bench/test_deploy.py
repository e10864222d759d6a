"""The deployed forms: every one computes the same, is timed, drawn and told with what it was measured on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stripefold as sf
from benchmarks import deploy as script
from stripefold.errors import ExportError, VerifyError
from stripefold.export import export_model
from stripefold_lab.bench import Settings, deploy
from stripefold_lab.bench.chart import draw_deploy
from stripefold_lab.bench.reference import FusedLayer, reference_deployed
from stripefold_lab.bench.report import Report, Row, Spread
from stripefold_lab.bench.runtimes import compare_onnx
from stripefold_lab.cli import main
from tests.lifecycle import SITES, attached, error, images, tiny

FLOAT32 = torch.float32
SETTINGS = Settings(rounds=2, warmup=0, memory=False)
PLAIN = [deploy.REFERENCE, deploy.COPY, deploy.FOLDED, deploy.FUSED, deploy.LAST, deploy.RUNTIME]


def measured(batch: int, **medians: float) -> Report:
    """A report with given medians in seconds, relative to the first."""
    base = next(iter(medians.values()))
    rows = [
        Row(name=name, seconds=Spread(median=s, lower=0.9 * s, upper=1.1 * s), ratio=Spread.of([s / base]))
        for name, s in medians.items()
    ]
    return Report(
        title="net", date="2024-01-01", environment={"device": "x", "threads": 2}, settings={"batch": batch},
        rows=tuple(rows),
    )  # fmt: skip


STEPS = {deploy.REFERENCE: 2.0, "backbone": 1.5, deploy.FOLDED: 2.0, deploy.FUSED: 1.0, deploy.LAST: 0.8}


def test_the_reference_form_keeps_every_batchnorm_and_wraps_the_sites() -> None:
    model = attached(dtype=FLOAT32).eval()
    reference = reference_deployed(model)
    assert [name for name, module in reference.named_modules() if isinstance(module, FusedLayer)] == SITES
    assert sum(isinstance(module, nn.BatchNorm2d) for module in reference.modules()) == 4
    x = images(4, FLOAT32)
    with torch.no_grad():
        assert error(reference.eval()(x), model(x)) <= 1e-6
        assert error(reference(x), sf.detach(model).eval()(x)) > 1e-2


def test_every_form_computes_the_same() -> None:
    model, x = attached(dtype=FLOAT32).eval(), images(4, FLOAT32)
    found = deploy.deploy_candidates(model, x, SETTINGS, others={"backbone": tiny(FLOAT32)}, compiled=False)
    assert [candidate.name for candidate in found.candidates] == [*PLAIN[:2], "backbone", *PLAIN[2:]]
    assert found.skipped == {deploy.COMPILED: "not asked for"}
    with torch.no_grad():
        truth = model(x)
    for candidate in found.candidates:
        output: Any = candidate.run()
        output = output[0] if isinstance(output, list) else output
        assert (error(output, truth) <= 1e-5) == (candidate.name != "backbone"), candidate.name


def test_a_form_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "reference_deployed", sf.detach)
    with pytest.raises(VerifyError, match=f"computes something else than the model: on {deploy.REFERENCE}"):
        deploy.deploy_candidates(attached(dtype=FLOAT32).eval(), images(2, FLOAT32), SETTINGS, compiled=False)


def test_what_cannot_run_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ExportError("onnxruntime is not installed")

    def fail(self: nn.Module, *_: Any, **__: Any) -> None:
        def broken(*_: Any) -> None:
            raise RuntimeError("InvalidCxxCompiler: no g++\nmore")

        object.__setattr__(self, "_compiled_call_impl", broken)

    monkeypatch.setattr(deploy, "OnnxModel", refuse)
    monkeypatch.setattr(nn.Module, "compile", fail)
    found = deploy.deploy_candidates(attached(dtype=FLOAT32).eval(), images(2, FLOAT32), SETTINGS)
    assert found.skipped == {
        deploy.COMPILED: "RuntimeError: InvalidCxxCompiler: no g++",
        deploy.RUNTIME: "onnxruntime is not installed",
    }
    half = replace(SETTINGS, dtype="bfloat16")
    found = deploy.deploy_candidates(attached(dtype=FLOAT32).eval(), images(2, FLOAT32), half, compiled=False)
    assert found.skipped[deploy.RUNTIME] == "the file is written in float32, not in bfloat16"


@pytest.mark.slow
def test_compiled() -> None:
    model, x = attached(dtype=FLOAT32).eval(), images(4, FLOAT32)
    found = deploy.deploy_candidates(model, x, SETTINGS)
    if deploy.COMPILED in found.skipped:
        pytest.skip(found.skipped[deploy.COMPILED])
    assert found.candidates[-2].name == deploy.COMPILED


def test_settling_gives_the_statistics_of_the_images() -> None:
    model, x = tiny(FLOAT32), images(8, FLOAT32)
    momenta = [norm.momentum for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    deploy.settle_(model, x)
    assert not model.training
    assert [norm.momentum for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)] == momenta
    block = model.blocks[0]
    with torch.no_grad():
        y = block.bn1(block.conv1(model.stem(x)))
        normalised = (y - block.bn1.bias[:, None, None]) / block.bn1.weight[:, None, None]
    assert float(normalised.mean((0, 2, 3)).abs().max()) < 1e-4
    assert float((normalised.var((0, 2, 3)) - 1).abs().max()) < 0.05


def test_figures_of_a_report() -> None:
    report = measured(32, **STEPS)
    assert deploy.images_per_second(report, deploy.FUSED) == 32.0
    assert deploy.speed_up(report, deploy.LAST) == pytest.approx(2.5)
    assert deploy.step_gains(report) == pytest.approx({deploy.FOLDED: 1.0, deploy.FUSED: 2.0, deploy.LAST: 1.25})
    head, rows = deploy.table([report, measured(1, **{**STEPS, deploy.COMPILED: 0.4})])
    assert head == (
        "form",
        *(each for b in (32, 1) for each in (f"images/s, batch {b}", "speed-up", "quartiles", "step")),
    )
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name[deploy.LAST][:4] == ("40.0", "2.50", "2.50 .. 2.50", "1.25")
    assert by_name[deploy.COMPILED] == ("skipped", "", "", "", "2.5", "5.00", "5.00 .. 5.00", "2.00")
    assert by_name["backbone"][3] == ""


def test_what_was_skipped_is_told_in_words() -> None:
    report = measured(1, **STEPS)
    told = replace(report, settings={"batch": 1, "skipped": {"one": "no such device", "two": "no compiler"}}).markdown()
    assert "batch 1, skipped one (no such device); two (no compiler)." in told


def test_the_picture(tmp_path: Path) -> None:
    draw_deploy([measured(1, **STEPS), measured(32, **STEPS)], tmp_path / "picture.png")
    draw_deploy([measured(1, **STEPS)], tmp_path / "picture.svg")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.png", "picture.svg"]


def test_the_picture_has_a_legend_of_what_is_drawn() -> None:
    from stripefold_lab.bench.chart import _legend

    steps = measured(1, **dict.fromkeys((deploy.REFERENCE, deploy.FOLDED), 0.5))
    said = [handle.get_label() for handle in _legend([steps])]
    assert said == ["step of deployment", f"quartiles; at the end: times {deploy.REFERENCE}"]
    both = [handle.get_label() for handle in _legend([measured(1, **STEPS)])]
    assert both[:2] == ["step of deployment", "for comparison"]
    assert both[2] == f"quartiles; at the end: times {next(iter(STEPS))}"


def test_onnx_files_side_by_side(tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32)
    export_model(model, tmp_path / "net.onnx", check=False)
    report = compare_onnx({"one": tmp_path / "net.onnx", "two": tmp_path / "net.onnx"}, (2, 3, 6, 6), settings=SETTINGS)
    assert [row.name for row in report.rows] == ["one", "two"]
    assert report.row("one").ratio.median == 1.0


COMMAND = ["bench", "resnet8", "--deploy", "--size", "16", "--rounds", "2", "--no-compile", "--batch", "1,2"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "-o", str(tmp_path / "new" / "deploy.json")]) == 0
    printed = capsys.readouterr().out
    reports = json.loads((tmp_path / "new" / "deploy.json").read_text(encoding="utf-8"))["reports"]
    assert [report["settings"]["batch"] for report in reports] == [1, 2]
    names = [row["name"] for row in reports[0]["rows"]]
    assert names == [deploy.REFERENCE, deploy.COPY, "backbone", "+ SE", *PLAIN[2:]]
    assert all(name in printed for name in names)
    assert f"skipped: {deploy.COMPILED}: not asked for" in printed
    assert (tmp_path / "new" / "deploy.png").exists()


def test_the_command_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr("stripefold_lab.bench.chart.draw_deploy", missing)
    monkeypatch.setattr(deploy, "measure_deploy", lambda *_, **__: measured(1, **STEPS))
    assert main([*COMMAND, "-o", str(tmp_path / "deploy.json")]) == 0
    assert "no picture: matplotlib is not installed: pip install 'stripefold[plot]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["bench", "resnet8", "--batch", "1,2"], "several sizes need --deploy"),
        (["bench", "resnet8", "--deploy", "--batch", "1,x"], "give numbers from 1 on"),
        (["bench", "resnet8", "--batch", "0"], "give numbers from 1 on"),
    ],
)
def test_wrong_words(words: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert match in capsys.readouterr().err


@pytest.mark.slow
def test_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--quick", "--no-compile", "--output", str(tmp_path), "--date", "2024-01-01"])
    assert "quartiles" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_script_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measure(title: str, model: nn.Module, shape: Any, *_: Any, **__: Any) -> Report:
        asked.append(title)
        return replace(measured(shape[0], **STEPS), title=title)

    monkeypatch.setattr(script, "measure_deploy", measure)
    monkeypatch.setattr(script, "CPU", script.CPU[:2])
    words = ["--output", str(tmp_path), "--date", "2024-01-01"]
    script.main(words)
    assert len(asked) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "deploy-resnet164-batch1-cpu.json", "deploy-resnet164-batch32-cpu.json", "deploy-resnet164-cpu.png",
    ]  # fmt: skip
    kept = Report.load(tmp_path / "deploy-resnet164-batch32-cpu.json")
    assert kept.row(deploy.LAST).limits == {"ratio": 1 / 1.5}
    assert kept.row(deploy.LAST).missed() == []
    (tmp_path / "deploy-resnet164-batch1-cpu.json").unlink()
    script.main(words)
    assert asked[2:] == ["Deployed: resnet164, batch 1, 32x32"]
    script.main([*words[:-1], "2024-01-02"])
    assert len(asked) == 5
