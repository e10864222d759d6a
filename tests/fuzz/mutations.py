"""What may have happened to a file: bytes changed, values of another type, entries lost, doubled, nested, made huge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DIGITS = "9" * 6000
TOKENS = (
    b"null", b"NaN", b"-Infinity", b"1e999", b"0x" + b"f" * 5000, DIGITS.encode(), b"[" * 5000, b"{\"a\":" * 3000,
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J", b"\r\n", b"&a [*a]", b"*b", b"<<: *x", b"!!python/name:os.x ",
    b"<x>" * 2000, b"&lol;", b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"'", b'"', b": ", b"- ", b"\t", b"---\n", b"%", b"-1",
)  # fmt: skip


def _deep(levels: int, *, as_list: bool) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if as_list else {"a": value}
    return value


def odd_value(random: Random, old: Any) -> Any:
    """A value that hardly belongs where ``old`` is."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: random.choice([True, False]),
        lambda: random.choice([-1, 0, 1, 7, 2**31, 2**63, 10**30, int(DIGITS[:4000])]),
        lambda: random.choice([0.5, -1e-300, 1e308, float("nan"), float("inf"), -float("inf")]),
        lambda: random.choice(["", "x", "1", "none", "nan", "x\ny", "\x1b[2J", "\x00", "é" * 3, "a" * 5000, "../../x"]),
        lambda: random.choice([[], {}, [[]], [None], {"": None}, [1, "a", None], {"a": {"b": []}}]),
        lambda: _deep(random.choice([3, 40, 300]), as_list=random.random() < 0.5),
        lambda: [old] * random.choice([1, 2, 3]),
        lambda: {"a": old},
        lambda: str(old)[:2000],
    ]
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        kinds += [lambda: -old, lambda: old + 1, lambda: float(old), lambda: str(old)]
    return random.choice(kinds)()


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside of a value."""
    found, rest = [], [value]
    while rest:
        each = rest.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else []
        for key in keys:
            found.append((each, key))
            rest.append(each[key])
    return found


def mutate_values(random: Random, value: Any) -> Any:
    """A value of dicts, lists and scalars, one to three places of it changed; changes it in place too."""
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        spots = places(value)
        if not spots:
            return odd_value(random, value)
        # Long lists of numbers would take nearly all changes: half of the time a mapping's entry is chosen.
        named = [spot for spot in spots if isinstance(spot[0], dict)]
        box, key = random.choice(named if named and random.random() < 0.5 else spots)
        act = random.choice(["odd", "odd", "odd", "drop", "add", "rename", "double"])
        if act == "drop":
            del box[key]
        elif act == "add" and isinstance(box, dict):
            box[random.choice(["", "new_option", "x y", "résumé", "__class__"])] = odd_value(random, box[key])
        elif act == "rename" and isinstance(box, dict):
            box[f"{key}s"] = box.pop(key)
        elif act == "double" and isinstance(box, list):
            box.insert(random.randrange(len(box) + 1), box[key])
        else:
            box[key] = odd_value(random, box[key])
    return value


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Bytes flipped, cut, doubled, moved or put in."""
    found = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 4])):
        start = random.randrange(len(found) + 1)
        length = random.choice([1, 1, 4, 30, 1000])
        act = random.choice(["flip", "flip", "cut", "end", "double", "token", "token", "swap"])
        if act == "flip" and found:
            found[start % len(found)] = random.randrange(256)
        elif act == "cut":
            del found[start : start + length]
        elif act == "end":
            del found[start:]
        elif act == "double":
            found[start:start] = found[start : start + length]
        elif act == "token":
            found[start:start] = random.choice(TOKENS)
        elif act == "swap":
            other = random.randrange(len(found) + 1)
            found[start : start + length] = found[other : other + length]
    return bytes(found)


def rewrite_json(random: Random, path: Path) -> None:
    """A JSON file with other values."""
    path.write_text(json.dumps(mutate_values(random, json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def rewrite_yaml(random: Random, path: Path) -> None:
    """A YAML file with other values."""
    import yaml

    value = mutate_values(random, yaml.safe_load(path.read_text(encoding="utf-8")))
    try:
        text = yaml.safe_dump(value, sort_keys=False)
    except (RecursionError, ValueError):  # what cannot be written as YAML can as JSON, which is YAML
        text = json.dumps(value)
    path.write_text(text, encoding="utf-8")


def rewrite_metadata(random: Random, path: Path) -> None:
    """A safetensors file with another header: its own entries, or the JSON that is text in its metadata."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    texts = [key for key, value in header.get("__metadata__", {}).items() if value.startswith("{")]
    if texts and random.random() < 0.8:
        about = header["__metadata__"]
        about[texts[0]] = json.dumps(mutate_values(random, json.loads(about[texts[0]])))
    else:
        header = mutate_values(random, header)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


def rewrite_checkpoint(random: Random, path: Path) -> None:
    """A checkpoint with other values."""
    import torch

    torch.save(mutate_values(random, torch.load(path, weights_only=True)), path)


def rewrite_bytes(random: Random, path: Path) -> None:
    """Any file with other bytes."""
    path.write_bytes(mutate_bytes(random, path.read_bytes()))
