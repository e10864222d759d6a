"""Which layers become sites: every way of ``where``; the dry run, the scales."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stripefold as sf
from tests.lifecycle import SITES, attached, images, snapshot, tiny

NORMS = ["blocks.0.bn1", "blocks.0.bn2", "blocks.1.bn1", "blocks.1.bn2"]
AFFINE = [
    "stem", "blocks.0.conv1", "blocks.0.bn1", "blocks.0.conv2", "blocks.0.bn2",
    "blocks.1.conv1", "blocks.1.bn1", "blocks.1.conv2", "blocks.1.bn2", "head",
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("residual", SITES),
        ("norm", NORMS),
        ("affine", AFFINE),
        ("head", ["head"]),
        ("blocks.*.bn2", SITES),
        ("blocks.[0].bn?", NORMS[:2]),
        (["head", "blocks.1.*2", "head"], ["blocks.1.conv2", "blocks.1.bn2", "head"]),
        (("stem",), ["stem"]),
        (lambda name, module: isinstance(module, nn.Linear), ["head"]),
        ({"head": {}, "blocks.*.bn2": {"attention": "ie"}}, [*SITES, "head"]),
    ],
)
@pytest.mark.filterwarnings("ignore:the gate on .* has no effect")
def test_every_way_of_where(where, names: list[str]) -> None:
    model = tiny()
    before = snapshot(model)
    assert sf.sites(model, where).names == names
    assert snapshot(model) == before  # a dry run
    assert list(sf.scales(sf.attach(model, where=where))) == names


def test_the_table() -> None:
    model = tiny()
    table = sf.sites(model, ["blocks.*.bn2", "stem"])
    assert len(table) == 3
    row = table[1]
    assert (row.name, row.layer, row.channels, row.gates) == (SITES[0], "BatchNorm2d", 8, "")
    assert row.why == "matches 'blocks.*.bn2'"
    lines = str(table).splitlines()
    assert lines[0] == "3 sites"
    assert lines[1].split() == ["site", "layer", "channels", "gates", "why"]
    assert lines[3].split()[:4] == [SITES[0], "BatchNorm2d", "8", "-"]
    assert [row.name for row in table] == table.names


def test_the_table_of_an_attached_model() -> None:
    model = sf.attach(attached(repeats=2), "eca", form="dynamic")
    table = sf.sites(model)
    assert [(row.layer, row.channels, row.gates) for row in table] == [("BatchNorm2d", 8, "se + se + dynamic eca")] * 2
    with torch.no_grad():
        for parameter in model.blocks[0].bn2.gates[0].attention.mlp.reduce.parameters():
            parameter.fill_(-1.0)
        model.blocks[0].bn2.gates[0].psi.fill_(1.0)
    assert sf.sites(model)[0].gates == "se (1 dead units) + se + dynamic eca"


def test_the_table_names_what_is_refused_and_what_has_no_effect() -> None:
    model = tiny()
    model.blocks[1].bn2 = nn.BatchNorm2d(8, affine=False).double()
    table = sf.sites(model, ["blocks.*.bn2", "blocks.0.conv1"])
    assert table.names == ["blocks.0.conv1", SITES[0]]
    assert [(row.name, row.refused) for row in table.refused] == [(SITES[1], True)]
    assert "affine part" in table.refused[0].why
    text = str(table)
    assert "1 layers refused" in text
    assert "no effect: 'blocks.0.bn1' right behind 'blocks.0.conv1' cancels its scale" in text


def test_a_glob_leaves_out_what_cannot_be_a_site() -> None:
    """A glob may sweep over layers without affine part; only a layer asked for by its own name must be one."""
    model = tiny()
    model.blocks[1].bn2 = nn.BatchNorm2d(8, affine=False).double()
    assert list(sf.scales(sf.attach(model, where="blocks.*.bn2"))) == [SITES[0]]
    with pytest.raises(sf.errors.AttachError, match=f"cannot attach to '{SITES[1]}': it has no affine part"):
        sf.attach(model, where=SITES)


def test_no_layer_inside_a_site_is_a_site() -> None:
    model = sf.attach(tiny(), "se", where="norm")
    assert sf.sites(model, "norm").names == NORMS
    assert sf.sites(model, "affine").names == AFFINE
    with pytest.raises(sf.errors.AttachError, match="matches no module"):
        sf.sites(model, "*.mlp.reduce")


def test_a_module_is_no_where() -> None:
    model = tiny()
    with pytest.raises(sf.errors.AttachError, match=r"where=a module \(BatchNorm2d\): give .* a glob"):
        sf.sites(model, where=model.get_submodule(SITES[0]))  # callable, yet no predicate


def test_scales_are_copies() -> None:
    model = sf.attach(tiny(), "scale", where="norm")  # gives psi itself
    before = sf.scales(model)
    for parameter in model.parameters():
        parameter.data.add_(0.5)
    assert all(not torch.equal(v, before[name]) for name, v in sf.scales(model).items())


def test_scales() -> None:
    model = attached()
    found = sf.scales(model)
    assert list(found) == SITES
    for name, v in found.items():
        gate = model.get_submodule(name).gates[0]
        assert v.shape == (8,)
        assert not v.requires_grad
        assert torch.equal(v, gate.attention.excite_static(gate.psi).detach())
    assert {v.dtype for v in sf.scales(model.float(), torch.float64).values()} == {torch.float64}
    assert sf.scales(tiny()) == {}


def test_an_example_can_be_tensor_tuple_or_mapping() -> None:
    model = tiny()
    del model.input_size
    for example in (images(), (images(),), {"x": images()}):
        assert sf.sites(model, example=example).names == SITES
        sf.fold(sf.attach(model, example=example), example=example)


def test_a_model_without_a_residual_branch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with pytest.raises(sf.errors.AttachError, match="It has no residual branch: use where='norm'"):
        sf.attach(model, example=torch.randn(1, 3, 6, 6))
    assert list(sf.scales(sf.attach(model, where="norm"))) == ["1"]
