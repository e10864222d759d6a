"""transformers' layers: one of each formula here, every class in the zoo."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.bit.configuration_bit import BitConfig
from transformers.models.bit.modeling_bit import BitGroupNormActivation
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm
from transformers.models.deberta.modeling_deberta import DebertaLayerNorm
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mobilebert.modeling_mobilebert import NoNorm
from transformers.models.squeezebert.modeling_squeezebert import SqueezeBertLayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from stripefold.layers.probe import probe
from stripefold.layers.substitute import forward_with
from tests.layers.layers import (
    EXACT,
    input_errors,
    noise,
    output_errors,
    randomised,
    relative,
    rule_of,
    signed_scale,
)

NORMS = [
    (LlamaRMSNorm(6), (2, 3, 6)),
    (T5LayerNorm(6), (2, 3, 6)),
    (DebertaLayerNorm(6), (2, 3, 6)),
    (SqueezeBertLayerNorm(6), (2, 6, 3)),
    (ConvNextLayerNorm(6, data_format="channels_first"), (2, 6, 3, 3)),
    (ConvNextLayerNorm(6, data_format="channels_last"), (2, 3, 3, 6)),
    (DetrFrozenBatchNorm2d(6), (2, 6, 3, 3)),
    (NoNorm(6), (2, 3, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), NORMS, ids=lambda case: type(case).__name__)
def test_norms(layer: nn.Module, shape: tuple[int, ...]) -> None:
    error, control = output_errors(layer, (noise(*shape),), train=True)
    assert error <= EXACT
    assert control > 0.1


@pytest.mark.parametrize("layer", [DetrFrozenBatchNorm2d(6)])
def test_frozen_batchnorm_input_side(layer: nn.Module) -> None:
    error, control = input_errors(layer, (noise(2, 6, 3, 3),), train=True)
    assert error <= EXACT
    assert control > 0.1


def test_conv1d_has_its_weight_the_other_way_round() -> None:
    for errors in (output_errors, input_errors):
        error, control = errors(Conv1D(6, 4), (noise(2, 3, 4),), train=True)
        assert error <= EXACT
        assert control > 0.1


def test_gemma_multiplies_by_one_plus_its_weight() -> None:
    layer = randomised(GemmaRMSNorm(6))
    v, rule = signed_scale(6), rule_of(layer)
    scaled = rule.scaled(layer, v)
    assert torch.allclose(1 + scaled["weight"], v * (1 + layer.weight), rtol=1e-12, atol=1e-12)
    x = noise(2, 3, 6)
    assert relative(forward_with(layer, scaled, (x,), {}), v * layer(x)) < 1e-6  # it computes in float32
    assert relative(v * forward_with(layer, {"weight": v * layer.weight}, (x,), {}), v * layer(x)) > 0.1


def test_a_gated_norm_with_its_second_input() -> None:
    room = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next", reason="newer than 4.48")
    layer = room.Qwen3NextRMSNormGated(6)
    probe(layer, rule_of(layer))


def test_an_activated_norm() -> None:
    layer = BitGroupNormActivation(BitConfig(), num_channels=64)
    assert not rule_of(layer).commutes
    probe(layer, rule_of(layer))
