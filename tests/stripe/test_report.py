"""The report: files that give back what was written, tables, merging, what it says about what is not in it."""

from __future__ import annotations

import csv
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import stripefold as sf
from stripefold.errors import ObserveError
from stripefold.stripe.discover import NotAGate
from stripefold.stripe.layer import LayerStripes
from stripefold.stripe.report import StripeReport
from stripefold.stripe.table import COLUMNS, WIDTH
from tests.stripe.test_layer import layer_of, noise


def made(images: int = 10, seed: int = 0) -> StripeReport:
    values = noise(images, 6, seed=seed)
    far = "a.very.long.path.that.nobody.can.read.in.a.narrow.table.layer4.2.se"
    return StripeReport(
        layers=(
            layer_of(values, labels=[0, 1] * (images // 2), name="layer1.se"),
            replace(layer_of(values**2, name=far), depth=0.9, split=2, kind="SqueezeAndExciteWithALongName"),
            replace(layer_of(torch.full((images, 3), 0.25), name="still"), depth=1.0, descriptor_mean=None),
        ),
        others=(
            NotAGate(name="attn", shape=(2, 6, 8, 8), factor=(2, 1, 8, 8), why="a spatial gate"),
            NotAGate(name="attn2", shape=(2, 6, 8, 8), factor=(2, 1, 8, 8), why="a spatial gate"),
        ),
        uncalled=("aux.fc",),
        unrecorded=("layer9.se: in the trace, but no batch came through it",),
        images=images,
        model="Net",
        versions={"torch": torch.__version__},
    )


def assert_same(first: StripeReport, second: StripeReport) -> None:
    assert replace(first, layers=()) == replace(second, layers=())
    for a, b in zip(first.layers, second.layers, strict=True):
        for field in fields(LayerStripes):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if isinstance(x, torch.Tensor):
                assert x.dtype == y.dtype
                assert torch.equal(x, y), field.name
            else:
                assert x == y, field.name
    assert str(first) == str(second)


@pytest.mark.parametrize("name", ["stripes.json", "stripes.safetensors"])
def test_files_give_back_every_bit(name: str, tmp_path: Path) -> None:
    report = made()
    assert report.save(tmp_path / name) == tmp_path / name
    assert_same(sf.StripeReport.load(tmp_path / name), report)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing half-written is left


def test_json_is_strict_and_holds_the_figures(tmp_path: Path) -> None:
    report = made()
    text = report.save(tmp_path / "stripes.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    content = json.loads(text, parse_constant=refuse)
    assert_same(StripeReport.from_dict(content), report)
    assert content["layers"][0]["summary"]["stripe_index"] == report.layers[0].stripe_index
    assert content["layers"][2]["summary"]["class_share"] is None


def test_no_kept_images_and_no_layers_survive_too(tmp_path: Path) -> None:
    empty = replace(made(), layers=(replace(made().layers[0], sample=torch.zeros(0, 6), keep=0),))
    for report in (empty, replace(empty, layers=())):
        assert_same(StripeReport.from_dict(report.to_dict()), report)
        assert_same(StripeReport.load(report.save(tmp_path / "stripes.safetensors")), report)


def test_csv(tmp_path: Path) -> None:
    report = made()
    with report.to_csv(tmp_path / "stripes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
    assert [float(row["stripe_index"]) for row in rows] == [layer.stripe_index for layer in report.layers]
    assert [row["flag"] for row in rows] == ["", "", "constant"]
    with report.to_csv(tmp_path / "channels.csv", by_channel=True).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 + 6 + 3
    assert float(rows[7]["std"]) == float(report.layers[1].within_std[1])
    empty = replace(report, layers=()).to_csv(tmp_path / "empty.csv").read_text(encoding="utf-8")
    assert empty.strip() == ",".join(COLUMNS)


def test_the_table_is_narrow_and_explains_itself() -> None:
    text = str(made())
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert text.startswith("stripes of Net: 3 channel gates over 10 images\n")
    assert "layer4.2.se" in text
    assert "* constant: one number for all images and channels" in text
    assert "/K behind a kind" in text
    assert "class: share of the variance" in text
    assert "attn and 1 more, product (2, 6, 8, 8), factor (2, 1, 8, 8): a spatial gate" in text
    assert "layer9.se: in the trace" in text
    assert "layers that the example did not run:\n  aux.fc\n  gates on their path are not seen" in text


def test_footers_only_for_what_is_there() -> None:
    report = made()
    text = str(replace(report, layers=(replace(report.layers[0], class_means=None, class_counts=None),)))
    for absent in ("* constant", "/K behind", "class:"):
        assert absent not in text


def test_a_long_list_is_cut() -> None:
    text = str(replace(made(), uncalled=tuple(f"layer{i}" for i in range(20))))
    assert "layer7\n  ... and 12 more" in text
    assert "layer8" not in text


def test_no_attention_says_so() -> None:
    text = str(StripeReport(layers=(), model="ResNet"))
    assert text == "ResNet has no channel attention that depends on the image"


def test_merge_is_the_whole_and_keeps_the_order() -> None:
    both = made(10, seed=0).merge(made(20, seed=1))
    assert [layer.name for layer in both.layers] == [layer.name for layer in made().layers]
    assert [layer.images for layer in both.layers] == [30, 30, 30]
    assert both.images == 30
    values = torch.cat([noise(10, 6, seed=0), noise(20, 6, seed=1)])
    torch.testing.assert_close(both.layers[0].mean, values.mean(0), rtol=1e-12, atol=0)


def test_a_gate_reached_in_one_part_only_is_kept() -> None:
    one = made()
    other = replace(
        one, layers=one.layers[:2], unrecorded=(*one.unrecorded, "still: in the trace, but no batch came through it")
    )
    merged = other.merge(one)
    assert [layer.images for layer in merged.layers] == [20, 20, 10]
    assert merged.unrecorded == one.unrecorded


def test_reports_of_other_models_do_not_merge() -> None:
    other = replace(made(), layers=made().layers[:2])
    with pytest.raises(ObserveError, match="'still' is a gate of only one of them"):
        made().merge(other)


def test_a_layer_by_name() -> None:
    assert made().layer("still").channels == 3
    with pytest.raises(ObserveError, match=r"no gate 'layer7' in this report of Net. Its gates: 'layer1.se'"):
        made().layer("layer7")


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ObserveError, match=r"cannot save a stripe report as 'stripes.pkl': the name must end in"):
        made().save(tmp_path / "stripes.pkl")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("no.json", None, "No such file"),
        ("no.safetensors", None, "no stripe report that can be read"),
        ("torn.json", '{"format": "stripefold', "no stripe report that can be read"),
        ("other.json", '{"a": 1}', "does not say that it is one"),
        ("list.json", "[]", "does not say that it is one"),
        ("half.json", '{"format": "stripefold stripes 1", "layers": []}', "damaged: the report lacks others"),
        ("torn.safetensors", "xxxxxxxxxxxx", "no stripe report that can be read"),
    ],
)
def test_files_that_are_no_reports(name: str, content: str | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ObserveError, match=reason):
        StripeReport.load(tmp_path / name)


def test_a_description_that_is_none() -> None:
    with pytest.raises(ObserveError, match="does not say that it is one"):
        StripeReport.from_dict({})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mean": [0.5]}, "the numbers of the gate 'layer1.se' do not fit together"),
        ({"mean": None}, "mean of the gate 'layer1.se' is None"),
        ({"mean": [float("inf")] * 6}, "mean holds what is no finite number"),
        ({"m2": [-1.0] * 6}, "the gate 'layer1.se' has a variance below 0"),
        ({"sample": [[1.0, 2.0], [1.0]]}, "sample is no list of numbers"),
        ({"channels": 10**12}, "do not fit together"),
        ({"channels": "6"}, "channels of the gate 'layer1.se' is '6'"),
        ({"images": 0}, "do not fit together"),
        ({"dtype": "float99"}, "do not fit together"),
        ({"dtype": "nn"}, "do not fit together"),
        ({"class_counts": None}, "do not fit together"),
        ({"depth": float("nan")}, "depth of the gate 'layer1.se' is nan"),
        ({"later": 1}, "the gate 'layer1.se' has an unknown entry 'later': a newer version may have written it"),
    ],
)
def test_gates_whose_numbers_do_not_fit(change: dict, match: str) -> None:
    content = made().to_dict()
    content["layers"][0] |= change
    with pytest.raises(ObserveError, match=match):
        StripeReport.from_dict(content)
