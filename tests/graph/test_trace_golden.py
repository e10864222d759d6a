"""The residual tails of 20 families against lists that were checked by reading the code."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stripefold.graph.trace import trace
from tests.graph.affine import is_affine

GOLDEN: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "golden" / "residual.json").read_text())


def expand(pattern: str) -> list[str]:
    """``a.{0-1}.{b,c}`` -> a.0.b, a.0.c, a.1.b, a.1.c."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    return ["".join(choice) for choice in itertools.product(*map(_choices, range(len(parts)), parts))]


def _choices(position: int, part: str) -> list[str]:
    if position % 2 == 0:
        return [part]
    bounds = re.fullmatch(r"(\d+)-(\d+)", part)
    return [str(i) for i in range(int(bounds[1]), int(bounds[2]) + 1)] if bounds else part.split(",")


def tails(model: nn.Module, example: Any) -> list[str]:
    return [tail.name for tail in trace(model, example, is_layer=is_affine).residual_tails()]


def test_expand():
    assert expand("a.{0-1}.{b,c.d}.e") == ["a.0.b.e", "a.0.c.d.e", "a.1.b.e", "a.1.c.d.e"]
    assert expand("a.b") == ["a.b"]


@pytest.mark.parametrize("name", GOLDEN["timm"])
def test_timm(name: str):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name)
    expected = [path for pattern in GOLDEN["timm"][name] for path in expand(pattern)]
    assert tails(model, torch.empty(2, *model.default_cfg["input_size"], device="meta")) == expected


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("name", GOLDEN["transformers"])
def test_transformers(name: str, with_mask: bool):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 50,
    }
    if name == "bert":
        model = transformers.BertModel(transformers.BertConfig(**sizes))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    example = {"input_ids": torch.arange(14).reshape(2, 7)}
    if with_mask:
        example["attention_mask"] = torch.ones(2, 7, dtype=torch.long)
    assert tails(model, example) == [path for pattern in GOLDEN["transformers"][name] for path in expand(pattern)]
