"""JSON and YAML of others: bounded, each key once; and records of plain values, each field of its type."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from stripefold.documents import DEPTH, DocumentError, check_depth, parse_json, read_bytes, read_json, read_text, shown
from stripefold.errors import one_line
from stripefold.records import record
from stripefold_lab.yaml_documents import NODES, YAML_LIMIT, parse_yaml, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 100_000, f"deeper than {DEPTH} levels|no JSON"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), f"it is nested deeper than {DEPTH} levels"),
        ('{"a":' * 500 + "1" + "}" * 500, f"deeper than {DEPTH} levels"),
        ('{"epochs": 3, "seed": 1, "epochs": 4}', "the key 'epochs' stands in it twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' stands in it twice"),
        ("]", "is no (valid YAML|JSON)"),
    ],
)
def test_both_refuse(parse: Any, text: str, match: str) -> None:
    started = time.perf_counter()
    with pytest.raises(DocumentError, match=match):
        parse(text)
    assert time.perf_counter() - started < 5


def test_what_is_as_deep_as_allowed_passes() -> None:
    text = "[" * DEPTH + "1" + "]" * DEPTH
    assert parse_json(text) == parse_yaml(text)
    check_depth(parse_json(text))
    with pytest.raises(DocumentError, match="deeper"):
        check_depth(({"a": [parse_json(text)]},))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOMB, f"more than {NODES} values, with its aliases written out"),
        ("x: &x {k: 1}\ny: [" + "*x, " * (NODES // 2) + "]", "more than"),
        ("a0: &a0 1\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40)), "deeper than 32 levels"),
        ("a: &a [1, *a]", "an alias in it refers to a value that contains the alias"),
        ("&a {b: {c: *a}}", "an alias in it refers to a value that contains the alias"),
        ("a: 1\n? a\n: 2", "the key 'a' stands in it twice .line 1 on"),
        ('true: 1\n"x": 2\ntrue: 3', "the key True stands in it twice"),
        ("x" * (YAML_LIMIT + 1), "it is larger than 1 MiB"),
        ("a: 0x" + "f" * 5000, "a number in line 1 has more than 64 bits"),
        ("\na: " + "9" * 30, "a number in line 2 has more than 64 bits"),
        ("a: " + "9" * 5000, "is no valid YAML: ValueError"),
        ("a: 2001-99-99", "is no valid YAML: ValueError: month must be in"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("[a]: 1", "found unhashable key"),
        ("\x00", "is no valid YAML"),
        ("a: *b", "undefined alias"),
        ("%YAML 3.0\n--- 1", "is no valid YAML"),
        ("1\n---\n2", "expected a single document"),
    ],
)
def test_yaml_that_is_refused(text: str, match: str) -> None:
    started = time.perf_counter()
    with pytest.raises(DocumentError, match=match) as caught:
        parse_yaml(text)
    assert time.perf_counter() - started < 10
    assert "\n" not in str(caught.value)


def test_yaml_people_write_is_read() -> None:
    text = "base: &base {epochs: 3, seed: 0}\nrun: {<<: *base, epochs: 4}\nlist: [*base, *base]\n"
    read = parse_yaml(text)
    assert read["run"] == {"epochs": 4, "seed": 0}
    assert read["list"] == [{"epochs": 3, "seed": 0}] * 2
    assert parse_yaml("") is None
    chain = "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, DEPTH))
    assert len(parse_yaml(f"a0: &a0 1\n{chain}")) == DEPTH
    assert parse_yaml("seed: 18446744073709551615") == {"seed": 2**64 - 1}


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"a: \xff")
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf[1]")
    for path, match in (
        (tmp_path / "pipe", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (tmp_path, "no regular file"),
        (tmp_path / "none", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("a\0b"), "null byte"),
        (tmp_path / "bytes", r"no UTF-8 text \(byte 3\)"),
    ):
        for read in (read_json, read_yaml, read_text):
            with pytest.raises(DocumentError, match=match):
                read(path)
    with pytest.raises(DocumentError, match="larger than 0 MiB"):
        read_bytes(tmp_path / "bytes", limit=3)
    assert read_json(tmp_path / "bom") == read_yaml(tmp_path / "bom") == [1]


def test_a_message_is_one_short_line_that_a_terminal_does_not_obey() -> None:
    assert one_line("a\n b\t\x1b[31mred\udc80") == "a b \\x1b[31mred\\udc80"
    for value in ("x" * 10**6, [[[[[1]]]]] * 1000, torch.ones(100, 100), int("9" * 4000), int("f" * 9000, 16)):
        assert len(shown(value)) < 200
        assert "\n" not in shown(value)


@dataclass(frozen=True)
class Inner:
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Outer:
    kind: Literal["a", "b"]
    count: int
    names: tuple[str, ...]
    pair: tuple[int, float]
    inner: list[Inner]
    sizes: dict[str, int | str]
    weight: torch.Tensor | None
    on: bool
    rest: Any


VALID = {
    "kind": "a", "count": 3, "names": ["x"], "pair": [1, 2], "inner": [{"share": None}, {"share": 1}],
    "sizes": {"p": 1, "q": "r"}, "weight": None, "on": True, "rest": {"any": [None]},
}  # fmt: skip


def test_a_record_is_read() -> None:
    read = record(Outer, json.loads(json.dumps(VALID)))
    assert read.names == ("x",)
    assert read.pair == (1, 2.0)
    assert isinstance(read.pair[1], float)
    assert read.inner == [Inner(None), Inner(1.0)]
    assert record(Outer, read) is read


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "c"}, "kind of it is 'c'; it must be 'a' or 'b'"),
        ({"kind": ["a"]}, "it must be 'a' or 'b'"),
        ({"count": "3"}, "count of it is '3'; it must be a whole number"),
        ({"count": True}, "count of it is True"),
        ({"count": 3.0}, "count of it is 3.0"),
        ({"count": 2**63}, "count of it is 9223372036854775808"),
        ({"count": None}, "count of it is None"),
        ({"names": "x"}, "names of it is 'x'; it must be a list"),
        ({"names": [1]}, "entry 0 of names of it is 1; it must be a text"),
        ({"pair": [1]}, "it must be a list of 2"),
        ({"pair": [1, float("nan")]}, "entry 1 of pair of it is nan; it must be a finite number"),
        ({"pair": [1, 10**400]}, "it must be a finite number"),
        ({"inner": [3]}, "entry 0 of inner of it is 3; it must be a mapping"),
        ({"inner": [{"share": float("inf")}]}, "share of entry 0 of inner of it is inf"),
        ({"inner": [{}]}, "entry 0 of inner of it lacks share"),
        ({"sizes": {"p": None}}, "'p' of sizes of it is None"),
        ({"sizes": {1: 1}}, "sizes of it is {1: 1}; it must be a mapping"),
        ({"weight": [1.0]}, "weight of it is .1.0.; it must be of type Tensor"),
        ({"on": 1}, "on of it is 1; it must be true or false"),
        ({"more": 1}, "it has an unknown entry 'more': a newer version"),
    ],
)
def test_a_record_that_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(DocumentError, match=match):
        record(Outer, {**VALID, **change})


@pytest.mark.parametrize("values", [None, 3, [], "x"])
def test_no_record(values: Any) -> None:
    with pytest.raises(DocumentError, match="it must be a mapping"):
        record(Outer, values)
