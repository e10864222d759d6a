"""The paper's Table 1: its parameter counts, its percentages beside ours, one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stripefold as sf
from stripefold_lab.bench import Settings
from stripefold_lab.bench.report import Report, Row, Spread
from stripefold_lab.bench.table1 import (
    BACKBONE,
    COPY,
    DATA,
    FOLDED,
    PAPER,
    ImageStatistics,
    build_networks,
    load,
    measure_table1,
    table,
)
from stripefold_lab.cli import main
from stripefold_lab.models import create_model

QUICK = Settings(rounds=1, warmup=0)


@pytest.mark.parametrize("images", DATA, ids=lambda images: images.name)
def test_every_count_that_the_paper_prints(images: ImageStatistics) -> None:
    networks = build_networks(images)
    counted = {row: sum(p.numel() for p in network.parameters()) / 1e6 for row, network in networks.items()}
    for row, printed in PAPER[images.name].items():
        if printed.parameters is not None:
            assert round(counted[row], 2) == printed.parameters, row
    assert counted[FOLDED] == counted[BACKBONE] == counted[COPY]
    assert networks[FOLDED].state_dict().keys() == networks[BACKBONE].state_dict().keys()


def test_rows_are_what_they_say() -> None:
    images = ImageStatistics(name="CIFAR100", size=16, classes=10)
    networks = build_networks(images, "resnet8")
    x = torch.randn(2, 3, 16, 16)
    outputs = {row: network(x) for row, network in networks.items()}
    assert torch.equal(outputs[COPY], outputs[BACKBONE])
    for row in ("+ IE", "+ SE", "+ SRM", "+ DIA", "+ SPA", "+ CBAM"):
        assert not torch.allclose(outputs[row], outputs[BACKBONE], atol=1e-3), row
    assert not torch.allclose(outputs[FOLDED], outputs[BACKBONE], atol=1e-3)
    assert not sf.scales(networks[FOLDED])
    assert type(networks[FOLDED]) is type(create_model("resnet8", num_classes=10))


def report_of(model: str, data: str) -> Report:
    rows = [
        Row(name=name, seconds=Spread.of([seconds]), ratio=Spread(median=seconds, lower=seconds, upper=1.1 * seconds))
        for name, seconds in {BACKBONE: 1.0, "+ SE": 1.25, "+ SPA": 2.0, FOLDED: 1.0}.items()
    ]
    parameters = {row.name: 1_234_567 for row in rows}
    settings = {"data": data, "batch": 8, "model": model, "parameters": parameters}
    return Report(title="t", date="", environment={}, settings=settings, rows=tuple(rows))


def test_changes_stand_beside_the_papers() -> None:
    backbone, se, spa, folded = table(report_of("resnet164", "CIFAR100"))
    assert backbone == ("resnet164", "1.23 M", "1.73 M", "8.0", "", "", "")
    assert se == ("+ SE", "1.23 M", "1.93 M", "6.4", "-20.00 %", "-27.27 .. -20.00 %", "-24.42 %")
    assert spa[-1] == "-44.45 %"
    assert (folded[4], folded[6]) == ("+0.00 %", "")
    assert table(report_of("resnet164", "STL10"))[2][2::4] == ("", "")  # the paper has no SPA there
    assert all(row[2] == row[6] == "" for row in table(report_of("resnet8", "CIFAR100")))


def test_it_measures_every_row_once_for_each_data_set() -> None:
    small = (ImageStatistics(name="CIFAR100", size=8, classes=10), ImageStatistics(name="STL10", size=16, classes=10))
    reports = measure_table1(QUICK, batch=2, data=small, model="resnet8")
    assert [report.settings["data"] for report in reports] == ["CIFAR100", "STL10"]
    for report in reports:
        assert [row.name for row in report.rows] == [
            BACKBONE, COPY, "+ IE", "+ SE", "+ SRM", "+ DIA", "+ SPA", "+ CBAM", FOLDED,
        ]  # fmt: skip
        assert len(table(report)) == 9


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "new" / "table1.json"
    assert main(["bench", "resnet8", "--table1", "--rounds", "1", "--batch", "1", "-o", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "CIFAR100 sizes" in printed
    assert "STL10 sizes" in printed
    assert len(json.loads(file.read_text())["reports"]) == 2
    found = load(file)
    assert [report.settings["data"] for report in found] == ["CIFAR100", "STL10"]
    assert len(table(found[0])) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table1", "--deploy"], "--deploy has no meaning with --table1"),
        (["--table1", "--size", "32"], "--size has no meaning with --table1"),
        (["--table1", "--mode", "training"], "--mode has no meaning with --table1"),
        (["--table1", "--batch", "1,8"], "several sizes need --deploy"),
        ([], "give the name of a model"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], message: str, capsys: Any) -> None:
    assert main(["bench", *words]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
