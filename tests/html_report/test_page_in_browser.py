"""The page in a real browser: what it draws, what a reader can do with it, and how it looks where it is narrow."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stripefold as sf
from stripefold.html_report.page import render_page
from stripefold.stripe.report import StripeReport
from stripefold.stripe.trajectory import Trajectory
from tests.html_report.reports import bake_report, make_layer, make_report, make_trajectory, verify_report

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]
FIRST = 2  # of the report's gates, that whose scales vary most
OTHERS: dict[str, Any] = {"bake": bake_report, "verify": verify_report}
READY = "return document.documentElement.dataset.ready === 'yes'"
LONG = "backbone.body.a_very_long_name_of_a_stage_that_somebody_chose.0.squeeze_and_excitation_block"


def report() -> StripeReport:
    made = make_report((8, 16, 32))
    extra = make_layer(LONG, torch.full((24, 12), 0.5), depth=1.0)
    return StripeReport(layers=(*made.layers, extra), images=24, model="TinyNet", others=made.others)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sf.write_report(report(), tmp_path_factory.mktemp("page"), trajectory=make_trajectory((8, 16, 32)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def show(browser: Any, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_feature = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme_feature})
    browser.get_log("browser"), browser.get_log("performance")
    browser.get("about:blank")
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(READY))


def drawn(browser: Any) -> list[list[float]]:
    """The values of the stripe picture, (images, channels)."""
    return browser.execute_script("return document.getElementById('stripes').data[0].z.map((row) => Array.from(row))")


def check_drawn(browser: Any, number: int) -> None:
    layer = report().layers[number]
    step = float(layer.sample.max() - layer.sample.min()) / 255
    found = torch.tensor(drawn(browser))
    assert found.shape == layer.sample.shape
    torch.testing.assert_close(found, layer.sample, rtol=0, atol=step / 2 + 1e-6)
    assert browser.execute_script("return document.getElementById('gate').value") == str(number)
    facts = browser.execute_script("return document.getElementById('facts').textContent")
    assert f"stripe index {layer.stripe_index:.3f}" in facts


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_loads_without_errors_requests_or_sideways_scrolling(browser: Any, page: Path, width: int, scheme: str) -> None:
    show(browser, page, width=width, scheme=scheme)
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [message["params"]["request"]["url"] for message in sent if message["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in urls  # the log does show requests
    assert not [url for url in urls if not url.startswith(("data:", "blob:", "about:", page.as_uri()))]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    charts = browser.execute_script(
        "return Array.from(document.querySelectorAll('.chart .main-svg:first-child'), (picture) => {"
        "const box = picture.getBoundingClientRect(); return [box.left, box.right, box.height]})"
    )
    assert len(charts) == 5
    assert all(left >= 0 and right <= width + 1 and height > 200 for left, right, height in charts)


def test_the_chooser_changes_the_picture(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    show(browser, page)
    check_drawn(browser, FIRST)
    Select(browser.find_element(By.ID, "gate")).select_by_value("2")
    check_drawn(browser, 2)
    browser.find_element(By.ID, "previous").click()
    check_drawn(browser, 1)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_LEFT)
    check_drawn(browser, 0)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_LEFT)  # there is nothing before the first
    check_drawn(browser, 0)
    assert not browser.find_element(By.ID, "previous").is_enabled()
    browser.execute_script("document.getElementById('depth').emit('plotly_click', {points: [{pointNumber: 2}]})")
    check_drawn(browser, 2)
    browser.find_element(By.LINK_TEXT, "stage.1.se").click()
    check_drawn(browser, 1)
    assert browser.get_log("browser") == []


def test_the_other_charts_follow_and_show_the_report(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    show(browser, page)
    layers = report().layers
    index = browser.execute_script("return document.getElementById('depth').data[0].y")
    assert index == pytest.approx([layer.stripe_index for layer in layers])
    for number, layer in enumerate(layers):
        Select(browser.find_element(By.ID, "gate")).select_by_value(str(number))
        assert sum(browser.execute_script("return document.getElementById('spread').data[0].y")) == layer.channels
    trajectory = make_trajectory((8, 16, 32))
    Select(browser.find_element(By.ID, "gate")).select_by_value("1")
    for quantity in ("first_difference", "stripe_index"):
        Select(browser.find_element(By.ID, "quantity")).select_by_value(quantity)
        # The chosen gate is drawn last, on top.
        line = browser.execute_script("const d = document.getElementById('epochs').data; return d[d.length - 1]")
        assert line["y"] == pytest.approx(trajectory.series("stage.1.se", quantity))
        assert line["x"] == trajectory.epochs
    means = browser.execute_script("return document.getElementById('means').data[0].z.map((row) => Array.from(row))")
    torch.testing.assert_close(torch.tensor(means), trajectory.channel_means("stage.1.se"), rtol=0, atol=4e-3)
    assert browser.get_log("browser") == []


def test_every_gate_is_seen_at_a_glance_and_leads_to_itself(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    show(browser, page)
    thumbs = browser.find_elements(By.CSS_SELECTOR, ".thumb")
    assert [thumb.get_attribute("title") for thumb in thumbs] == [layer.name for layer in report().layers]
    colours = browser.execute_script(
        "return Array.from(document.querySelectorAll('.thumb canvas'), (canvas) => new Set(new Uint32Array("
        "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size)"
    )
    assert all(count > 20 for count in colours[:3])
    assert colours[3] == 1  # one number for all images and channels
    thumbs[1].click()
    check_drawn(browser, 1)
    assert thumbs[1].get_attribute("aria-current") == "true"
    assert thumbs[FIRST].get_attribute("aria-current") is None


@pytest.mark.parametrize("kind", ["stripes", "bake", "verify"])
def test_nothing_leaves_the_page(browser: Any, page: Path, tmp_path: Path, kind: str) -> None:
    shown = page if kind == "stripes" else sf.write_report(OTHERS[kind](), tmp_path)
    show(browser, shown)
    buttons = browser.execute_script(
        "return Array.from(document.querySelectorAll('.modebar-btn'), (button) => button.dataset.title)"
    )
    assert "Download plot as a PNG" in buttons  # there is a mode bar
    offered = {"Download plot as a PNG", "Zoom", "Pan", "Reset axes", "Autoscale"}
    assert set(buttons) <= offered  # neither "Edit in Chart Studio" nor "Share with Plotly Cloud"
    assert browser.execute_script("return window.open('about:blank')") is None
    assert len(browser.window_handles) == 1
    assert browser.get_log("browser") == []
    browser.execute_script(
        "const form = document.createElement('form'); form.action = 'http://127.0.0.1:9/'; form.method = 'post';"
        "document.body.append(form); form.submit()"
    )
    blocked = browser.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), () => done('blocked'))"
    )
    assert blocked == "blocked"
    assert browser.current_url == shown.as_uri()
    told = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert "form-action" in told
    assert "connect-src" in told


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", ["bake", "verify"])
def test_the_other_pages_are_drawn_and_fit(browser: Any, tmp_path: Path, kind: str, width: int) -> None:
    made: Any = OTHERS[kind]()
    show(browser, sf.write_report(made, tmp_path), width=width)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    if kind == "bake":
        bars = browser.execute_script("return document.getElementById('cost').data.map((trace) => trace.y)")
        assert sorted(y for trace in bars for y in trace) == pytest.approx([-4.0, -0.5, 0.0, 0.5])
        line = browser.execute_script("return document.getElementById('budget').data[2].y")
        assert line == pytest.approx([90.0, 90.5, 90.0, 89.5])
    else:
        drawn_errors = browser.execute_script("return document.getElementById('layers').data[1].y")
        assert drawn_errors[1:] == pytest.approx([2e-7, 3e-6])
        assert 0 < drawn_errors[0] < 1e-9  # which is 0


def test_epochs_are_whole_numbers(browser: Any, tmp_path: Path) -> None:
    trajectory = make_trajectory((8, 16, 32), epochs=(0, 1, 2, 3))
    show(browser, sf.write_report(report(), tmp_path, trajectory=trajectory))
    for chart, axis in (("epochs", "x"), ("means", "y")):
        marks = f"document.querySelectorAll('#{chart} .{axis}tick text')"
        assert browser.execute_script(f"return Array.from({marks}, (mark) => mark.textContent)") == ["0", "1", "2", "3"]


def test_nothing_overlaps_where_the_colour_bar_lies_under_the_chart(browser: Any, page: Path) -> None:
    show(browser, page, width=400)
    for chart in ("stripes", "means"):
        title, bar = (
            browser.execute_script(f"return document.querySelector('#{chart} {part}').getBoundingClientRect().toJSON()")
            for part in (".xtitle", ".cbfills")
        )
        assert title["bottom"] < bar["top"]


def test_channels_sort_and_colours_span_all_gates(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    show(browser, page)
    layer = report().layers[FIRST]
    browser.find_element(By.ID, "sorted").click()
    order = layer.mean.argsort()
    torch.testing.assert_close(torch.tensor(drawn(browser)), layer.sample[:, order], rtol=0, atol=4e-3)
    Select(browser.find_element(By.ID, "range")).select_by_value("same")
    span = browser.execute_script("const d = document.getElementById('stripes').data[0]; return [d.zmin, d.zmax]")
    values = torch.cat([layer.sample.flatten() for layer in report().layers])
    assert span == pytest.approx([float(values.min()), float(values.max())])


def test_the_table_sorts_by_every_column(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    show(browser, page)
    heads = browser.find_elements(By.CSS_SELECTOR, "#table thead th")
    column = next(number for number, head in enumerate(heads) if "stripe index" in head.text)
    first = "return document.querySelector('#table tbody tr').dataset.gate"
    by_index = sorted(range(4), key=lambda number: report().layers[number].stripe_index)
    heads[column].find_element(By.TAG_NAME, "button").click()
    assert int(browser.execute_script(first)) == by_index[0]
    assert heads[column].get_attribute("aria-sort") == "ascending"
    heads[column].find_element(By.TAG_NAME, "button").click()
    assert int(browser.execute_script(first)) == by_index[-1]
    heads[0].find_element(By.TAG_NAME, "button").click()
    assert browser.execute_script(first) == "0"


@pytest.mark.parametrize(
    "other",
    [
        make_report((6,), images=1),
        replace(make_report((6, 6), images=1), images=0),  # the scales of static gates
        replace(make_report(()), layers=(make_layer("se", torch.zeros(4, 3)),)),  # nothing varies, the mean is 0
        replace(make_report(()), layers=(make_layer("se", torch.rand(2000, 1)),)),  # one channel
        replace(make_report(()), layers=(replace(make_layer("se", torch.rand(9, 5)), sample=torch.zeros(0, 5)),)),
    ],
    ids=["one image", "static", "zero", "one channel", "nothing kept"],
)
def test_unusual_reports_are_drawn(browser: Any, tmp_path: Path, other: StripeReport) -> None:
    (tmp_path / "index.html").write_text(render_page(other), encoding="utf-8")
    show(browser, tmp_path / "index.html")
    assert browser.get_log("browser") == []
    assert len(drawn(browser)[0]) == other.layers[0].channels
    assert all(math.isfinite(value) for row in drawn(browser) for value in row)


def test_a_page_without_gates_has_nothing_to_draw(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(render_page(make_report(())), encoding="utf-8")
    browser.get_log("browser")
    browser.get((tmp_path / "index.html").as_uri())
    assert "has no channel attention" in browser.execute_script("return document.querySelector('.lead').textContent")
    assert browser.get_log("browser") == []


def test_text_is_readable_on_both_grounds(browser: Any, page: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        colours = browser.execute_script(
            "return ['body', '.lead', '.caption', 'td', 'a', 'footer'].map((name) => "
            "[getComputedStyle(document.querySelector(name)).color, getComputedStyle(document.body).backgroundColor])"
        )
        assert all(contrast(text, ground) >= 4.5 for text, ground in colours), colours
        grounds.append(colours[0][1])
    assert grounds[0] != grounds[1]


def test_on_paper_it_is_light_and_narrow_and_afterwards_as_before(browser: Any, page: Path) -> None:
    show(browser, page, scheme="dark")
    look = (
        "return [Array.from(document.querySelectorAll('.chart .main-svg:first-child'), "
        "(picture) => picture.getBoundingClientRect().width), getComputedStyle(document.body).backgroundColor]"
    )
    before = browser.execute_script(look)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    widths, ground = browser.execute_script(look)
    assert max(widths) <= 720 < max(before[0])
    assert (ground, before[1]) == ("rgb(255, 255, 255)", "rgb(18, 23, 28)")
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(look) == before
    assert browser.get_log("browser") == []


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_everything_a_reader_uses_has_a_name(browser: Any, page: Path) -> None:
    show(browser, page)
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    used = {"button", "combobox", "link", "checkbox"}
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in used]
    assert {node["role"]["value"] for node in nodes} == used
    unnamed = [node for node in nodes if not node.get("name", {}).get("value")]
    assert [node["role"]["value"] for node in unnamed] == []
    labels = "return Array.from(document.querySelectorAll('.chart'), (chart) => chart.getAttribute('aria-label'))"
    assert all(browser.execute_script(labels))
    assert "Stripe image of stage.2.se: 24 images by 32 channels" in browser.execute_script(labels)[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["stripes", "bake", "verify"])
def test_axe_finds_nothing(browser: Any, page: Path, tmp_path: Path, kind: str, scheme: str) -> None:
    axe = Path(pytest.importorskip("axe_core_python").__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    made = page if kind == "stripes" else sf.write_report(OTHERS[kind](), tmp_path)

    def findings() -> set[str]:
        return set(browser.execute_async_script(
            "const done = arguments[0]; axe.run().then((found) => done(found.violations.map((each) => each.id)))"
        ))  # fmt: skip

    for width in (1280, 400):
        show(browser, made, width=width, scheme=scheme)
        browser.execute_script(axe)
        assert findings() == set(), width
    browser.execute_script(
        "document.documentElement.removeAttribute('lang');"
        "document.querySelector('.lead').style.cssText = 'color: #888; background: #999'"
    )
    assert findings() == {"html-has-lang", "color-contrast"}  # axe does look


def test_an_old_browser_is_told_where_the_pictures_are(browser: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    old = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "delete window.DecompressionStream"}
    )
    try:
        browser.get(page.as_uri())
        trouble = "return !document.getElementById('trouble').hidden && document.getElementById('trouble').textContent"
        WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(trouble))
        assert "pictures/ beside this page" in browser.execute_script(trouble)
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", old)


ODD = ("a<b>c</b>&d", "<img src=x onerror=\"document.title='run'\">", "x&lt;y&amp;<br>z")


def hovered(browser: Any, chart: str, trace: int, point: int) -> str:
    """What is shown over a point of a chart, which the drawing library does at most every 50 ms."""
    return browser.execute_async_script(
        "const [chart, curveNumber, pointNumber, done] = arguments;"
        "const labels = () => Array.from(document.querySelectorAll(`#${chart} .hoverlayer text`),"
        " (label) => label.textContent);"
        "setTimeout(() => { Plotly.Fx.hover(chart, [{curveNumber, pointNumber}]);"
        " setTimeout(() => done(labels().join(' ')), 100); }, 100)",
        chart, trace, point,
    )  # fmt: skip


def check_no_markup_of_names(browser: Any) -> None:
    assert browser.get_log("browser") == []
    assert browser.title != "run"
    assert (
        browser.execute_script("return document.querySelectorAll('img[onerror], .hoverlayer tspan[style*=bold]')") == []
    )


@pytest.mark.parametrize("name", ODD)
def test_names_are_shown_as_they_are_on_the_page_of_stripes(browser: Any, tmp_path: Path, name: str) -> None:
    made = make_report((8, 16))
    layers = (made.layers[0], replace(made.layers[1], name=name))
    trajectory = Trajectory()
    for epoch in (0, 1):
        trajectory.add(epoch, replace(made, layers=layers))
    show(browser, sf.write_report(replace(made, layers=layers, model=name), tmp_path, trajectory=trajectory))
    assert name in hovered(browser, "depth", 0, 1)
    traces = browser.execute_script("return document.getElementById('epochs').data.length")
    assert name in [hovered(browser, "epochs", trace, 1).partition("epoch")[0] for trace in range(traces)]
    assert name in browser.execute_script("return document.querySelector('h1').textContent")
    assert browser.execute_script("return document.getElementById('table').textContent").count(name) == 1
    check_no_markup_of_names(browser)


@pytest.mark.parametrize("name", ODD)
def test_names_are_shown_as_they_are_on_the_other_pages(browser: Any, tmp_path: Path, name: str) -> None:
    made = bake_report()
    sites = tuple(replace(site, name=name) if site.name == "a.se" else site for site in made.sites)
    show(browser, sf.write_report(replace(made, sites=sites, metric=name), tmp_path / "bake"))
    assert name in hovered(browser, "cost", 0, 0)
    titles = browser.execute_script(
        "return Array.from(document.querySelectorAll('.ytitle'), (title) => title.textContent)"
    )
    assert name in titles  # the metric, as an axis
    check_no_markup_of_names(browser)
    shown = sf.write_report(verify_report(layers=((name, 1e-7), ("b", 0.0))), tmp_path / "verify")
    show(browser, shown)
    assert name in hovered(browser, "layers", 1, 0)
    assert "1.00e-7" in hovered(browser, "layers", 1, 0)
    assert name in browser.execute_script("return document.querySelector('main').textContent")
    check_no_markup_of_names(browser)
