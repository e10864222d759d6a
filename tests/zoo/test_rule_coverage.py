"""Which layers of timm and transformers have a rule, and does every rule hold on every layer it is used for?"""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stripefold.layers import rule as rule_module
from stripefold.layers.probe import probe
from stripefold.layers.refusal import refusal
from stripefold.layers.rule import rule_for, type_key

pytestmark = pytest.mark.zoo
# What a layer that scales channels is called; blocks that own such a tensor beside their layers are another matter.
_LAYER_WORDS = ("Norm", "Linear", "Conv", "Scale", "Affine")
_NO_LAYER = ("Block", "Embed", "Attention", "Attn", "Model", "Transformer", "Residual", "RelPosBias", "Mixer")


def looks_affine(module: nn.Module) -> bool:
    name = type(module).__name__
    return (
        bool(module._parameters)
        and any(w in name for w in _LAYER_WORDS)
        and not any(w in name for w in _NO_LAYER)
        and not name.endswith("Layer")
    )


def survey(model: nn.Module, missing: Counter[str]) -> None:
    """Probe every layer that has a rule; count those that look affine and are refused without a known reason."""
    for layer in model.modules():
        reason = refusal(layer)
        rule = rule_for(layer)
        if rule is not None and reason is None:
            probe(layer, rule)
            if rule.input is not None and rule.input_refuse(layer) is None:
                probe(layer, rule, "input")
        elif looks_affine(layer) and "no rule" in str(reason):
            missing[type_key(type(layer))] += 1


def table(missing: Counter[str]) -> str:
    return "\n".join(f"{count:6d}  {key}" for key, count in missing.most_common()) or "none"


@pytest.mark.timeout(3600)
def test_every_affine_looking_layer_of_timm_has_a_rule_or_a_reason() -> None:
    timm = pytest.importorskip("timm", reason="the sweep is over timm's architectures")
    missing: Counter[str] = Counter()
    for name in timm.list_models():
        with torch.device("meta"):
            model = timm.create_model(name)
        survey(model, missing)
    print(table(missing))
    assert set(missing) <= {"timm.layers.cond_conv2d.CondConv2d"}  # its weight is chosen by the input


CONFIGURATIONS = """
ViTConfig SwinConfig Swinv2Config ConvNextConfig ConvNextV2Config BertConfig GPT2Config LlamaConfig GemmaConfig
Gemma2Config T5Config CLIPTextConfig WhisperConfig DetrConfig Dinov2Config MobileBertConfig SqueezeBertConfig
DebertaConfig FalconConfig MambaConfig Mamba2Config Qwen2Config Qwen3Config CohereConfig Olmo2Config
BitConfig EfficientNetConfig PoolFormerConfig ResNetConfig RegNetConfig SegformerConfig
"""


@pytest.mark.timeout(1800)
def test_every_affine_looking_layer_of_transformers_has_a_rule_or_a_reason() -> None:
    transformers = pytest.importorskip("transformers", reason="the sweep is over transformers' models")
    missing: Counter[str] = Counter()
    for name in CONFIGURATIONS.split():
        configuration = getattr(transformers, name)()
        if name == "DetrConfig":
            configuration.use_pretrained_backbone = False
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(configuration)
        survey(model, missing)
    print(table(missing))
    assert not missing


def listed() -> list[str]:
    return [k for k in sorted(rule_module._rules) if k.startswith("transformers.models.") and ":" not in k]


def build(layer_type: type[nn.Module]) -> nn.Module:
    """An instance by what its constructor asks for."""
    name, arguments = layer_type.__name__, list(inspect.signature(layer_type.__init__).parameters)[1:]
    if name == "BitGroupNormActivation":
        transformers = importlib.import_module("transformers")
        return layer_type(transformers.BitConfig(), num_channels=64)
    if issubclass(layer_type, nn.GroupNorm):
        return layer_type(8) if name == "PoolFormerGroupNorm" else layer_type(num_groups=2, num_channels=8)
    if "Depthwise" in name:
        return layer_type(4, kernel_size=3)
    if issubclass(layer_type, nn.Conv1d | nn.Conv2d):
        return layer_type(4, 6, 3, **({"cache_key": "0"} if "cache_key" in arguments else {}))
    if issubclass(layer_type, nn.Linear):
        return layer_type(4, 6)
    if arguments[0] == "config":
        numbers = {"hidden_size": 8, "codec_dim": 8, "eps": 1e-6, "rms_norm_eps": 1e-6}
        scales = {"layerscale_value": 1.0, "layer_scale_init_value": 1.0, "layer_scale_initial_scale": 1.0}
        return layer_type(SimpleNamespace(**numbers, **scales))
    if "ChameleonLayerNorm" in name:
        return layer_type((8,))
    options = {"eps": 1e-6, "group_size": 4}
    return layer_type(8, **{key: value for key, value in options.items() if key in arguments})


@pytest.mark.parametrize("key", listed())
def test_each_listed_class_of_transformers(key: str) -> None:
    module, _, name = key.rpartition(".")
    pytest.importorskip("transformers", reason="its classes are what is probed")
    layer_type = getattr(importlib.import_module(module), name, None)
    if layer_type is None:
        pytest.skip(f"{key} is not in this version of transformers")
    layer = build(layer_type)
    rule = rule_for(layer)
    assert rule is not None
    assert refusal(layer) is None
    probe(layer, rule)
    if rule.input is not None:
        probe(layer, rule, "input")
