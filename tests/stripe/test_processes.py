"""Two processes (gloo), each with its own images, against one process with all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import stripefold as sf
from stripefold.stripe.report import StripeReport
from tests.crew import run_workers
from tests.stripe.gated import Stacked, images, seeded
from tests.stripe.processes_worker import WORLD

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both processes have left what they saw, for every kind of shares."""
    folder = tmp_path_factory.mktemp("processes")
    run_workers("tests.stripe.processes_worker", str(folder), world=WORLD)
    return folder


def said(folder: Path, kind: str) -> list[str]:
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8"))[kind] for rank in range(WORLD)]


@pytest.mark.parametrize("kind", ["shares", "one empty"])
def test_merged_to_what_one_process_sees(kind: str, folder: Path) -> None:
    assert said(folder, kind) == ["done", "done"]
    reports = [StripeReport.load(folder / f"{kind}-{rank}.safetensors") for rank in range(WORLD)]
    truth = sf.observe(seeded(Stacked), images()[: 12 if kind == "shares" else 5], keep=8)
    assert str(reports[0]) == str(reports[1])
    for report in reports:
        assert report.images == truth.images
        for layer, other in zip(report.layers, truth.layers, strict=True):
            torch.testing.assert_close(layer.mean, other.mean, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(layer.m2, other.m2, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(layer.sample, other.sample, rtol=1e-7, atol=1e-7)
            assert layer.stripe_index == pytest.approx(other.stripe_index, rel=1e-12)


def test_all_hear_of_one_that_failed(folder: Path) -> None:
    first, second = said(folder, "one fails")
    assert second.startswith("Stacked failed on batch 1")
    assert first.startswith("process 1 failed, so all of them stop: ObserveError: Stacked failed on batch 1")


def test_without_a_group_nobody_waits(folder: Path) -> None:
    assert said(folder, "one alone") == ["5 images", "did not look"]


def test_no_images_anywhere(folder: Path) -> None:
    assert all("the data gave no images" in text for text in said(folder, "all empty"))
