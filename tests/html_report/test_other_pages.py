"""The pages of a bake and of a comparison: their words, files and refusals; the browser has its own tests."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stripefold as sf
from stripefold.errors import ConfigError, ObserveError
from stripefold.html_report import templates
from stripefold.html_report.bake_page import render_bake
from stripefold.html_report.pictures import draw_stripes
from stripefold.html_report.templates import breakable
from stripefold.html_report.verify_page import render_verify
from stripefold.html_report.words import most_varied
from stripefold.own_files import LIST
from tests.html_report.reports import bake_report, make_layer, make_report, make_site, make_trajectory, verify_report
from tests.html_report.test_write import payload


def test_a_bake_says_what_it_cost_what_stays_and_why(tmp_path: Path) -> None:
    page = sf.write_report(bake_report(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "bake.json", "bake.csv", LIST}
    text = page.read_text(encoding="utf-8")
    assert "3 of 4 attention gates of TinyNet are constants now (2 folded, 1 multiply)" in text
    assert "accuracy in percent: 90.00 as given, 89.50 baked" in text
    assert "1.25 x" in text
    assert "Stay dynamic (1)" in text
    assert "over the budget: with it the metric would fall by more" in text
    drawn = payload(text)
    assert drawn["costs"] == [0.0, -0.5, 0.5, -4.0]
    assert drawn["order"] == [2, 0, 1, 3]  # the cheapest first
    assert drawn["lowest"] == 89.0


def test_a_bake_without_a_metric_shows_the_estimate() -> None:
    sites = (make_site("a.se", prior=0.25), make_site("", "dynamic", prior=math.inf))
    text = render_bake(bake_report(sites=sites, metric=None, before=None, constant=None, after=None, speed=None))
    assert payload(text)["costs"] == [0.25, None]
    assert payload(text)["order"] == []
    assert "No metric was asked for" in text
    assert 'id="budget"' not in text
    assert "(the model)" in text


def test_a_bake_of_nothing_has_a_page() -> None:
    text = render_bake(bake_report(sites=(), before=None, after=None, constant=None))
    assert "TinyNet has no channel attention" in text
    assert 'id="plotly"' not in text


def test_a_real_bake_and_a_real_comparison(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    images, labels = torch.randn(16, 3, 48, 48), torch.randint(4, (16,))
    baked, made = sf.bake(model, [(images, labels)], validation=[(images, labels)], max_drop=100.0)
    text = sf.write_report(made, tmp_path / "bake", title="Mine").read_text(encoding="utf-8")
    assert "<h1>Mine</h1>" in text
    assert len(payload(text)["gates"]) == len(made.sites) == len(payload(text)["order"])
    report = sf.verify(model, baked, images[:2], raise_on_mismatch=False)
    page = sf.write_report(report, tmp_path / "verify").read_text(encoding="utf-8")
    assert ("Yes: in float32" in page) == report.passed
    assert len(payload(page)["layers"]) == len(report.layers)


def test_a_comparison_says_the_verdict_and_every_layer(tmp_path: Path) -> None:
    text = sf.write_report(verify_report(), tmp_path).read_text(encoding="utf-8")
    assert "Yes: in float32 the outputs differ by 1.0e-07 of their largest value, and 1.0e-06 is allowed." in text
    assert json.loads((tmp_path / "verify.json").read_text(encoding="utf-8"))["layers"][2] == ["fc", 3e-6]
    rows = (tmp_path / "layers.csv").read_text(encoding="utf-8").splitlines()
    assert rows == ["layer,error", "conv,0.0", "bn,2e-07", "fc,3e-06"]
    assert "300 %" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"passed": False, "error": math.inf, "layers": (("conv", math.inf),)}, "No: in float32"),
        ({"passed": False, "error": math.nan, "layers": (("conv", math.nan),)}, "No: in float32"),
        ({"dtype": "float64", "tolerance": 0.0}, "1e-10 in float64"),
        ({"layers": (), "worst_layer": None, "agreement": None}, "How to read it"),
        ({"blind": True, "inputs": 3, "worst_input": 1}, "only the layers say something"),
        ({"fast_path": "the fast path changes 1e-3"}, "The fast path changes 1e-3."),
    ],
    ids=["infinite", "nan", "exact", "no layers", "blind", "fast path"],
)
def test_unusual_comparisons_have_a_page(changes: dict[str, Any], said: str) -> None:
    assert said in render_verify(verify_report(**changes))


def test_what_has_no_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no page of Linear: give what observe, bake or verify returned"):
        sf.write_report(nn.Linear(2, 2), tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="trajectory= is for the report of an observation, not for BakeReport"):
        sf.write_report(bake_report(), tmp_path / "b", trajectory=make_trajectory())
    with pytest.raises(ConfigError, match="paper= is for the report of an observation, not for EquivalenceReport"):
        sf.write_report(verify_report(), tmp_path / "c", paper="column")
    assert not list(tmp_path.iterdir())
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ObserveError, match="was not written by stripefold"):
        sf.write_report(bake_report(), tmp_path)


def test_names_cannot_break_the_other_pages() -> None:
    evil = "</script><script>alert(1)</script>"
    bake = render_bake(bake_report(sites=(make_site(evil, alone=1.0, why=evil),), notes=(evil,), model=evil))
    for text in (bake, render_verify(verify_report(layers=((evil, 1e-7),), worst_output=evil), title=evil)):
        assert "<script>alert" not in text


def test_pages_send_nothing_and_open_nothing() -> None:
    for text in (render_bake(bake_report()), render_verify(verify_report())):
        for word in ("default-src 'none'", "connect-src 'none'", "form-action 'none'"):
            assert word in text
        assert "showSendToCloud: false" in text


def test_the_page_opens_on_the_gate_that_varies_most() -> None:
    assert most_varied(make_report((8, 16, 32))) == 2
    assert most_varied(make_report(())) == 0
    assert most_varied(replace(make_report((6, 6)), images=0)) in (0, 1)
    flat, moving = make_layer("flat", torch.full((9, 4), 0.5)), make_layer("moving", torch.rand(9, 4))
    assert most_varied(replace(make_report(()), layers=(flat, moving, flat))) == 1


def test_names_break_between_their_parts_only() -> None:
    assert str(breakable("layer1.0.squeeze_excite & more.")) == "layer1.<wbr>0.<wbr>squeeze_<wbr>excite &amp; more."


def test_charts_are_drawn_by_the_one_way_that_shows_names_as_they_are() -> None:
    folder = Path(templates.__file__).parent
    for script in folder.glob("*.js.jinja"):
        calls = script.read_text(encoding="utf-8").count("Plotly.react(")
        assert calls == (script.name == "common.js.jinja"), script.name


def test_pictures_take_names_for_no_formulas(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in (r"a$\no_such$b", "a$b$c"):
        figure = draw_stripes(make_layer(name, torch.rand(4, 3)))
        figure.savefig(tmp_path / "picture.svg")
        assert figure.get_suptitle().startswith(name)
