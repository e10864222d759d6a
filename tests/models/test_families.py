"""The table of docs/guides/where.md is what the script gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.families import CLASSIFIERS, DENSE, main, pattern, row, sites_of

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "where.md"


def test_paths_with_stars_match_their_layers() -> None:
    assert pattern("layer1.0.bn2") == "layer*.*.bn2"
    assert pattern("stages.0.1.conv_1x1.bn") == "stages.*.*.conv_1x1.bn"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ResNet (basic)", "ViT", "FCN", "Faster R-CNN"])
def test_rows_of_the_page_are_those_of_the_script(family: str) -> None:
    task, name = DENSE.get(family, ("classification", CLASSIFIERS.get(family)))
    assert row(family, name, sites_of(task, name)) in PAGE.read_text(encoding="utf-8")


def test_every_family_is_on_the_page_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(CLASSIFIERS) >= 20
    for family, name in [*CLASSIFIERS.items(), *((family, name) for family, (_, name) in DENSE.items())]:
        assert text.count(f"| {family} | `{name}` |") == 1
    # Written between its marks, twice the same.
    monkeypatch.setattr("benchmarks.families.table", lambda: "new table\n")
    page = tmp_path / "where.md"
    page.write_text(text)
    for _ in range(2):
        main(["--page", str(page)])
        assert "-->\nnew table\n<!-- end of families -->" in page.read_text()
    assert "| ViT |" not in page.read_text()
