"""The folder of a report: complete, small enough, replaced whole, and nothing in a name can break the page."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import stripefold as sf
from stripefold.errors import ObserveError
from stripefold.html_report.page import render_page
from stripefold.html_report.words import seen_in_pictures, sentence, short_names, tiles
from stripefold.html_report.write import DRAWING
from stripefold.own_files import LIST
from stripefold.stripe.report import StripeReport
from stripefold.stripe.trajectory import Trajectory
from tests.html_report.reports import make_layer, make_report, make_trajectory


def payload(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="meta">(.*?)</script>', page, re.DOTALL)[1])


def test_everything_is_there(tmp_path: Path) -> None:
    report, trajectory = make_report(), make_trajectory()
    told: list[str] = []
    page = sf.write_report(report, tmp_path / "a" / "b", trajectory=trajectory, title="My gates", progress=told.append)
    folder = tmp_path / "a" / "b"
    assert page == folder / "index.html"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        *told,
        "index.html",
        LIST,
    }
    assert "pictures/gate-2-stage.1.se.png" in told
    for name in told:
        if name.endswith(".png"):
            with Image.open(folder / name) as picture:
                assert picture.width > 800
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 20  # something is drawn
    assert "<title>My gates</title>" in page.read_text(encoding="utf-8")


def test_tables_can_be_read_back(tmp_path: Path) -> None:
    report = make_report()
    sf.write_report(report, tmp_path)
    whole = StripeReport.load(tmp_path / "stripes.safetensors")
    brief = StripeReport.load(tmp_path / "stripes.json")
    for layer, kept, short in zip(report.layers, whole.layers, brief.layers, strict=True):
        assert torch.equal(kept.sample, layer.sample)
        assert short.stripe_index == layer.stripe_index
        assert len(short.sample) == 0
    rows = list(csv.DictReader((tmp_path / "stripes.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["gate"] for row in rows] == [layer.name for layer in report.layers]
    assert float(rows[1]["stripe_index"]) == report.layers[1].stripe_index
    assert len((tmp_path / "channels.csv").read_text(encoding="utf-8").splitlines()) == 1 + 8 + 16 + 32


def test_the_page_of_a_large_network_stays_below_6_megabytes() -> None:
    widths = [256] * 20 + [512] * 20 + [1024] * 15  # 30 thousand channels
    generator = torch.Generator().manual_seed(0)  # of noise, which nothing compresses
    layers = tuple(make_layer(f"block.{n}", torch.rand(60, w, generator=generator)) for n, w in enumerate(widths))
    trajectory = Trajectory()
    for epoch in range(40):
        moved = tuple(make_layer(one.name, torch.rand(1, one.channels, generator=generator)) for one in layers)
        trajectory.add(epoch, replace(make_report(), layers=moved))
    page = render_page(replace(make_report(), layers=layers, images=60), trajectory=trajectory)
    assert 4_500_000 < len(page.encode()) < 6_000_000
    drawn = payload(page)
    assert all(layer["sample"]["rows"] >= 40 for layer in drawn["layers"])
    assert drawn["trajectory"]["drawn_epochs"][-1] == 39


def test_the_same_report_gives_the_same_page() -> None:
    assert render_page(make_report()) == render_page(make_report()) != render_page(make_report(seed=1))


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>/../../x\u2028"
    layer = replace(make_report().layers[0], name=evil, kind="<b>&")
    page = sf.write_report(replace(make_report(), layers=(layer,), model=evil), tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<b>&" not in text
    assert payload(text)["layers"][0]["gate"] == evil
    assert len(list((tmp_path / "pictures").glob("gate-*.png"))) == 1


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = render_page(make_report())
    own = re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.DOTALL)
    assert not re.findall(r"https?://|src=|@import|url\(", own)
    assert "default-src 'none'" in own


def test_a_model_without_attention_has_a_page_that_says_so(tmp_path: Path) -> None:
    report = make_report(())
    page = sf.write_report(report, tmp_path).read_text(encoding="utf-8")
    assert "TinyNet has no channel attention that depends on the image" in page
    assert "one factor per position" in page
    assert 'id="plotly"' not in page
    assert not list((tmp_path / "pictures").iterdir())
    assert len(page) < 20_000


def test_an_earlier_report_is_replaced_and_other_files_stay(tmp_path: Path) -> None:
    sf.write_report(make_report((8, 8)), tmp_path)
    (tmp_path / "pictures" / "mine.png").write_bytes(b"x")
    sf.write_report(make_report((8,)), tmp_path)
    left = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert left == {"overview.png", "gate-1-stage.0.se.png", "mine.png"}


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ObserveError, match=r"cannot write the report into .*file: .*; choose another folder"):
        sf.write_report(make_report(), tmp_path / "file")


@pytest.mark.parametrize("library", DRAWING)
def test_what_draws_is_missed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"drawn by {library}, which is not installed: pip install 'strip"):
        sf.write_report(make_report(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_gates_with_flags_are_told() -> None:
    constant = make_layer("one.se", torch.full((5, 4), 0.5))
    single = make_layer("two.se", torch.rand(1, 4), depth=1.0)
    report = replace(make_report(), layers=(constant, single))
    page = render_page(report)
    assert "* constant</dt>" in page
    assert "* one image</dt>" in page


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (make_report(()), "TinyNet has no channel attention that depends on the image .24 images seen.: there are no"),
        (
            make_report((8,), images=1),
            "Over 1 image, 1 channel gate of TinyNet: a single image, over which nothing can",
        ),
        (make_report((8, 8)), r"Over 24 images, 2 channel gates of TinyNet: in the median gate, \d+ % of the variance"),
        (make_report((8,)), "1 channel gate of TinyNet: in the gate, .* from image to image a channel's scale varies"),
        (make_report((8,), images=0), "1 static gate of TinyNet: a static gate gives every image the same scales"),
        (replace(make_report(()), layers=(make_layer("se", torch.zeros(4, 3)),)), "for every image.$"),
    ],
)
def test_the_sentence(report: StripeReport, expected: str) -> None:
    assert re.search(expected, sentence(report))


def test_the_figures_name_the_gates_that_stand_out() -> None:
    report = make_report((8, 8, 8), noise=0.2)
    shown = {label: (value, note) for value, label, note in tiles(report, make_trajectory())}
    worst = min(report.layers, key=lambda layer: layer.stripe_index)
    assert shown["least striped"] == (f"{worst.stripe_index:.3f}", worst.name)
    assert shown["epochs recorded"] == ("4", "0 to 6")
    assert tiles(make_report(()), None) == []


def test_epochs_are_marked_by_whole_numbers() -> None:
    from stripefold.html_report.pictures import draw_trajectory

    for axes in draw_trajectory(make_trajectory(epochs=(0, 1, 2, 3))).axes:
        assert all(float(mark).is_integer() for mark in axes.get_xticks())


def test_names_lose_the_end_that_all_of_them_share() -> None:
    assert short_names(["a.0.se", "a.1.se"]) == ["a.0", "a.1"]
    assert short_names(["a.0.se", "b.0.se"]) == ["a", "b"]
    assert short_names(["se", "a.se"]) == ["se", "a.se"]  # one part is left of each
    assert short_names(["a.se", "a.eca"]) == ["a.se", "a.eca"]
    assert short_names(["a.b.se"]) == ["a.b.se"]
    assert short_names(["", "a"]) == ["", "a"]
    assert short_names([]) == []


def test_pictures_of_some_of_the_images_say_so() -> None:
    report = make_report(images=24)
    assert seen_in_pictures(report) == ""
    more = replace(report, images=2000)
    assert seen_in_pictures(more) == "The pictures show 24 of 2,000 images."
    assert "The pictures show 24 of 2,000 images." in render_page(more)
    assert "The pictures show" not in render_page(report)
    assert seen_in_pictures(replace(report, layers=())) == ""
