"""Names, options, the table, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stripefold.attention import (
    ChannelAttention,
    attention_class,
    attention_names,
    attention_options,
    build_attention,
    describe,
    register_attention,
    registry,
)
from stripefold.attention.pooling import mean_pool
from stripefold.errors import AttachError


class Halve(ChannelAttention):
    def squeeze(self, x: Tensor) -> Tensor:
        return mean_pool(x, self.axis)

    def excite(self, descriptor: Tensor) -> Tensor:
        return descriptor / 2


class Unfinished(ChannelAttention):
    def squeeze(self, x: Tensor) -> Tensor:
        return mean_pool(x, self.axis)


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    monkeypatch.setattr(registry, "_ATTENTIONS", dict(registry._ATTENTIONS))
    monkeypatch.setattr(Halve, "name", "")


def test_the_zoo() -> None:
    assert attention_names() == (
        *("cbam", "dia", "eca", "ese", "fca", "gc", "gct", "ge", "ie"),
        *("position", "scale", "se", "shift", "spa", "spatial", "srm"),
    )
    assert attention_names(acts="positions") == ("position", "spatial")
    assert attention_names(how="add") == ("gc", "shift")
    assert set(attention_names(acts="channels", how="multiply")) == {*attention_names()} - {
        "gc",
        "shift",
        "position",
        "spatial",
    }
    for name in attention_names():
        cls = attention_class(name)
        assert cls.name == name
        assert isinstance(build_attention(name, 4), cls)
        assert cls.chained == (name == "dia")
        assert cls.dynamic == (name not in ("scale", "shift", "position"))


def test_the_table_is_complete() -> None:
    rows = {row.name: row for row in describe()}
    assert tuple(rows) == attention_names()
    for row in rows.values():
        assert row.squeeze
        assert row.excite
        assert row.source
    assert rows["cbam"].options == ("reduction", "bias", "gate", "spatial")
    assert rows["scale"].options == ()
    assert rows["scale"].gates == "channels"
    assert rows["gc"].gates == "channels, added"
    assert rows["spatial"].gates == "positions"


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize("decorate", [True, False])
def test_a_users_attention_joins(decorate: bool) -> None:
    registered = register_attention("halve")(Halve) if decorate else register_attention("halve", Halve)
    assert registered is Halve
    assert Halve.name == "halve"
    assert register_attention("halve", Halve) is Halve
    attention = build_attention("halve", 3, axis=-1)
    assert torch.equal(attention(torch.ones(2, 5, 3)), torch.full((2, 5, 3), 0.5))
    assert torch.equal(attention.excite_static(torch.ones(3)), torch.full((3,), 0.5))
    assert attention.dead_units(torch.ones(3)) == 0
    attention.reactivate_dead_units_(torch.ones(3))
    attention.check_start(torch.zeros(3))
    assert "halve" in attention_names()


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize(
    ("name", "cls", "message"),
    [
        ("se", Halve, "cannot register Halve: the name 'se' belongs to SqueezeExcitation"),
        ("not a name", Halve, "must be an identifier such as 'se', got 'not a name'"),
        (7, Halve, "must be an identifier such as 'se', got 7"),
        ("mine", torch.nn.Linear, "it is no subclass of ChannelAttention"),
        ("mine", "Halve", "cannot register 'Halve' as 'mine'"),
        ("mine", Unfinished, "cannot register Unfinished as 'mine': it does not define excite"),
    ],
)
def test_bad_registrations_are_refused(name: Any, cls: Any, message: str) -> None:
    before = attention_names()
    with pytest.raises(AttachError, match=message):
        register_attention(name, cls)
    assert attention_names() == before


@pytest.mark.parametrize(("typo", "meant"), [("SE", "se"), ("cbma", "cbam"), ("scales", "scale"), ("esse", "ese")])
def test_an_unknown_name_is_answered(typo: str, meant: str) -> None:
    with pytest.raises(
        AttachError, match=f"no attention '{typo}'; known are cbam, dia.*did you mean '{meant}'"
    ) as error:
        build_attention(typo, 8)
    assert "register_attention" in str(error.value)


@pytest.mark.parametrize("name", ["transformer-xyz", None, 3, ["se"]])
def test_an_unknown_name_without_a_likeness(name: Any) -> None:
    with pytest.raises(AttachError, match="no attention .*known are cbam, dia") as error:
        attention_class(name)
    assert "did you mean" not in str(error.value)


def test_an_unknown_option_is_answered() -> None:
    assert attention_options("se") == ("reduction", "bias", "gate")
    with pytest.raises(
        AttachError, match="'se' has no option 'reducton'.*reduction, bias, gate; did you mean 'reduction'"
    ):
        build_attention("se", 8, reducton=4)
    with pytest.raises(AttachError, match="'scale' has no option 'reduction'; its options are: none"):
        build_attention("scale", 8, reduction=4)


@pytest.mark.parametrize("channels", [0, -3, 2.0, True, "8", None])
@pytest.mark.parametrize("name", ["se", "scale", "eca"])
def test_bad_widths_are_refused(name: str, channels: Any) -> None:
    with pytest.raises(AttachError, match=f"'{name}': channels must be an integer of at least 1, got"):
        build_attention(name, channels)


@pytest.mark.parametrize("axis", [0, 2, -2, True, "1", None])
def test_bad_axes_are_refused(axis: Any) -> None:
    with pytest.raises(AttachError, match="'se': axis must be 1 .* or -1"):
        build_attention("se", 8, axis=axis)


@pytest.mark.parametrize("reduction", [0, -4, float("nan"), float("inf"), True, "16", None])
@pytest.mark.parametrize("name", ["se", "spa", "cbam", "fca", "ge", "dia"])
def test_bad_reductions_are_refused(name: str, reduction: Any) -> None:
    with pytest.raises(AttachError, match=f"'{name}': reduction must be a positive finite number, got"):
        build_attention(name, 8, reduction=reduction)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("se", {"gate": "sigmoyd"}, "'se': no gate 'sigmoyd'; known are sigmoid, .*; did you mean 'sigmoid'"),
        ("ese", {"gate": "qq"}, "'ese': no gate 'qq'; known are sigmoid, hard_sigmoid, tanh"),
        ("ie", {"gate": None}, "'ie': no gate None"),
        ("ie", {"gate": ["tanh"]}, "'ie': no gate"),
        ("eca", {"kernel_size": 4}, "kernel_size must be a positive odd integer or None, got 4"),
        ("eca", {"kernel_size": -1}, "kernel_size must be"),
        ("eca", {"kernel_size": 3.0}, "kernel_size must be"),
        ("eca", {"kernel_size": True}, "kernel_size must be"),
        ("fca", {"frequencies": 0}, "frequencies must be an integer from 1 to 16, got 0"),
        ("fca", {"frequencies": 17}, "frequencies must be"),
        ("fca", {"frequencies": 2.5}, "frequencies must be"),
        ("fca", {"frequencies": True}, "frequencies must be"),
        ("fca", {"grid": 8}, "grid must be a positive multiple of 7, got 8"),
        ("fca", {"grid": 0}, "grid must be"),
        ("fca", {"grid": 7.0}, "grid must be"),
        ("ge", {"variant": "theta++"}, r"variant must be one of theta-, theta, theta\+, got 'theta\+\+'"),
        ("srm", {"epsilon": 0.0}, "'srm': epsilon must be a positive finite number, got 0.0"),
        ("gct", {"epsilon": -1.0}, "'gct': epsilon must be"),
        ("gct", {"epsilon": "1e-5"}, "'gct': epsilon must be"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        build_attention(name, 8, **options)


def test_how_a_module_prints() -> None:
    assert repr(build_attention("scale", 4)) == "Scale(4)"
    assert repr(build_attention("scale", 4, axis=-1)) == "Scale(4, axis=-1)"
    assert repr(build_attention("se", 8)).startswith("SqueezeExcitation(\n  8")
