"""Segmentation and detection on drawn shapes: the claims can fail, and the page shows the kept results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.tasks import CLAIMS, PAGE, RESULTS, missed, render, write_page

KEPT = [json.loads((RESULTS / "tasks" / f"{recipe}.json").read_text(encoding="utf-8")) for recipe in CLAIMS]


@pytest.mark.parametrize("found", KEPT, ids=lambda found: found["recipe"])
def test_every_claim_holds_and_can_fail(found: dict) -> None:
    least = CLAIMS[found["recipe"]]
    assert missed(found, least) == found["missed"] == []
    worse = {
        "score": least - 0.01, "score_folded": found["score"] - 0.01, "score_detached": found["score"],
        "least_move_of_a_gate": 0.0, "float64_error": 1e-9, "agreeing": 0.99, "cpu_seconds": 601.0,
    }  # fmt: skip
    for name, value in worse.items():
        assert missed({**found, name: value}, least), name


def test_the_page_shows_the_kept_results(tmp_path: Path) -> None:
    assert render(KEPT) in PAGE.read_text(encoding="utf-8")
    page = tmp_path / "tasks.md"
    page.write_text("<!-- results: by a script -->\nold\n<!-- end of results -->\n")
    write_page(page)
    assert page.read_text() == f"<!-- results: by a script -->\n{render(KEPT)}<!-- end of results -->\n"
