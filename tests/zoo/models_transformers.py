"""transformers: small configurations of many families, for text, images, sound and several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.zoo.subject import BATCH, Subject, images

transformers.logging.set_verbosity_error()

_VOCABULARY, _LENGTH = 97, 9
_BERT = {
    "vocab_size": _VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40,
}  # fmt: skip
_LLAMA = _BERT | {"num_key_value_heads": 2, "use_cache": False, "head_dim": 8}
_VIT = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip
_SEQUENCES = {
    "vocab_size": _VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "use_cache": False,
}  # fmt: skip
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_SPEECH = {
    "vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
}  # fmt: skip
_MIXTURE = {"num_local_experts": 2, "num_experts_per_tok": 2, "experts_implementation": "eager"}
_SMALL_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "layer_type": "basic"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model class, its configuration class (both by name) and options, and what it is fed."""

    model: str
    config: str
    options: Mapping[str, Any]
    inputs: Callable[[int], dict[str, Tensor]]


def _ids(seed: int, name: str = "input_ids") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(3, _VOCABULARY, (BATCH, _LENGTH), generator=generator)}


def _pairs(seed: int) -> dict[str, Tensor]:
    return _ids(seed) | _ids(seed + 1, "decoder_input_ids")


def _pixels(side: int = 32) -> Callable[[int], dict[str, Tensor]]:
    return lambda seed: {"pixel_values": images(seed, 3, side, side)}


def _captions(seed: int) -> dict[str, Tensor]:
    return _ids(seed) | _pixels()(seed)


def _spectrum(seed: int) -> dict[str, Tensor]:
    return {"input_features": images(seed, 16, 40)} | _ids(seed, "decoder_input_ids")


def _wave(seed: int) -> dict[str, Tensor]:
    return {"input_values": images(seed, 1, 1600)[:, 0]}


def _detr_backbone() -> dict[str, Any]:
    resnet = transformers.ResNetConfig(**_SMALL_RESNET, out_features=["stage4"])
    return {"backbone_config": resnet, "backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False}


def _families() -> dict[str, Family]:
    def add(name: str, model: str, options: Mapping[str, Any], inputs: Any, config: str = "") -> None:
        found[name] = Family(
            model=model, config=config or f"{model.partition('For')[0]}Config", options=options, inputs=inputs
        )

    found: dict[str, Family] = {}
    _add_text(add)
    _add_vision(add)
    _add_mixed(add)
    return found


def _add_text(add: Callable[..., None]) -> None:
    for name in ("Bert", "Roberta", "Electra", "DebertaV2"):
        add(name.lower(), f"{name}ForMaskedLM", _BERT, _ids)
    add("albert", "AlbertForMaskedLM", _BERT | {"embedding_size": 16}, _ids)
    tiny = {"vocab_size": _VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    add("distilbert", "DistilBertForSequenceClassification", tiny, _ids)
    gpt = {"vocab_size": _VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "use_cache": False}
    add("gpt2", "GPT2LMHeadModel", gpt, _ids, "GPT2Config")
    add("gptneox", "GPTNeoXForCausalLM", _BERT | {"use_cache": False}, _ids)
    for name in ("Llama", "Mistral", "Gemma", "Gemma2", "Qwen2", "Qwen3", "Phi3", "Olmo2", "Granite", "Cohere"):
        add(name.lower(), f"{name}ForCausalLM", _LLAMA | {"pad_token_id": 0}, _ids)
    add("llama_tied", "LlamaForCausalLM", _LLAMA | {"tie_word_embeddings": True}, _ids)
    add("gemma3", "Gemma3ForCausalLM", _LLAMA, _ids, "Gemma3TextConfig")
    add("mixtral", "MixtralForCausalLM", _LLAMA | _MIXTURE, _ids)
    opt = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
    }
    add("opt", "OPTForCausalLM", opt | {"word_embed_proj_dim": 32, "use_cache": False}, _ids)
    add("bloom", "BloomForCausalLM", {"vocab_size": _VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}, _ids)
    falcon = {"vocab_size": _VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    add("falcon", "FalconForCausalLM", falcon, _ids)
    mamba = {"vocab_size": _VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}
    add("mamba", "MambaForCausalLM", mamba, _ids)
    t5 = {"vocab_size": _VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    add("t5", "T5ForConditionalGeneration", t5 | {"use_cache": False}, _pairs)
    add("bart", "BartForConditionalGeneration", _SEQUENCES | {"max_position_embeddings": 40}, _pairs)


def _add_vision(add: Callable[..., None]) -> None:
    for name in ("ViT", "DeiT", "Dinov2", "Beit"):
        add(name.lower(), f"{name}ForImageClassification", _VIT | {"mlp_ratio": 2}, _pixels())
    convnext = {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_stages": 4}
    add("convnext", "ConvNextForImageClassification", convnext, _pixels(64))
    add("convnextv2", "ConvNextV2ForImageClassification", convnext, _pixels(64))
    add("swin", "SwinForImageClassification", _SWIN, _pixels())
    add("swinv2", "Swinv2ForImageClassification", _SWIN, _pixels())
    add("resnet", "ResNetForImageClassification", _SMALL_RESNET, _pixels(64))
    add("regnet", "RegNetForImageClassification", _SMALL_RESNET | {"layer_type": "y", "groups_width": 8}, _pixels(64))
    add("mobilenet_v2", "MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}, _pixels(64))
    segformer = {
        "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4],
        "decoder_hidden_size": 16, "num_labels": 5,
    }  # fmt: skip
    add("segformer", "SegformerForSemanticSegmentation", segformer, _pixels(64), "SegformerConfig")
    mobilevit = {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 16, 24, 24, 32, 48]}
    add("mobilevit", "MobileViTForImageClassification", mobilevit, _pixels(64))
    detr = {key: value for key, value in _SEQUENCES.items() if key not in ("vocab_size", "use_cache")}
    add("detr", "DetrForObjectDetection", detr | {"num_queries": 7, "lazy": _detr_backbone}, _pixels(64))


def _add_mixed(add: Callable[..., None]) -> None:
    text = _BERT | {"bos_token_id": 1, "eos_token_id": 2}
    clip = {"text_config": text, "vision_config": _VIT, "projection_dim": 24}
    add("clip", "CLIPModel", clip, _captions, "CLIPConfig")
    add("siglip", "SiglipModel", {"text_config": text, "vision_config": _VIT}, _captions, "SiglipConfig")
    whisper = {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 0}
    begin = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    add("whisper", "WhisperForConditionalGeneration", _SEQUENCES | whisper | begin, _spectrum)
    add("wav2vec2", "Wav2Vec2ForCTC", _SPEECH, _wave)
    add("hubert", "HubertForCTC", _SPEECH, _wave)


def names() -> list[str]:
    """What is tested."""
    return list(_families())


def subjects(name: str) -> list[Subject]:
    """One subject per family."""
    family = _families()[name]

    def build() -> nn.Module:
        options = dict(family.options)
        options |= options.pop("lazy", dict)()
        config = getattr(transformers, family.config)(**options)
        return getattr(transformers, family.model)(config)

    return [Subject(name=name, build=build, inputs=family.inputs)]
