"""nn.MultiheadAttention, nn.TransformerEncoderLayer: they read weights without calling layers, or take a fast path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from tests.lifecycle import assert_folds, error, scatter_, step_


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


@contextmanager
def counted(name: str) -> Iterator[mock.Mock]:
    with mock.patch.object(torch, name, wraps=getattr(torch, name)) as fast:
        yield fast


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_multihead_attention_reads_the_scaled_projection(tokens: Tensor) -> None:
    torch.manual_seed(0)
    backbone = SelfAttention().double()
    model = scatter_(sf.attach(backbone, example=tokens))
    assert list(sf.scales(model)) == ["attention.out_proj"]
    step_(model, tokens, lr=1.0)
    plain = assert_folds(model, tokens, keys=list(backbone.state_dict()))
    for fast_path in (True, False):
        torch.backends.mha.set_fastpath_enabled(fast_path)
        try:
            with torch.no_grad(), counted("_native_multi_head_attention") as fast:
                found = plain.eval()(tokens)
                assert fast.called == fast_path  # the folded model has its fast path again
                expected = model.eval()(tokens)
                assert fast.call_count == fast_path  # gates are not bypassed
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        assert error(found, expected) < 1e-10


@pytest.mark.parametrize("where", ["residual", "norm", "affine"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layer(tokens: Tensor, norm_first: bool, where: str) -> None:
    torch.manual_seed(0)
    backbone = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first).double()
    model = scatter_(sf.attach(backbone, where=where, example=tokens))
    assert set(sf.scales(model)) <= {"self_attn.out_proj", "linear1", "linear2", "norm1", "norm2"}
    step_(model, tokens)
    plain = assert_folds(model, tokens, keys=list(backbone.state_dict()))
    with torch.no_grad(), counted("_transformer_encoder_layer_fwd") as fast:
        found = plain.eval()(tokens)
        assert fast.called
        expected = model.eval()(tokens)
        assert fast.call_count == 1  # only the folded model took it
    assert error(found, expected) < 1e-10


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_with_padding(tokens: Tensor) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    backbone = nn.TransformerEncoder(layer, 2).double()
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[:, 3:] = True
    example = {"src": tokens, "src_key_padding_mask": padding}
    model = scatter_(sf.attach(backbone, where="affine", example=example)).train()
    model(**example).square().mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "gates" in name)
    with pytest.warns(UserWarning, match="the folded model is right, but as deployed, output differs"):
        plain = sf.fold(model, example=example)  # torch's fused path clears what the padding hides
    with torch.no_grad():
        found, expected = plain.eval()(**example), model.eval()(**example)
        assert error(found[:, :3], expected[:, :3]) < 1e-10
        assert error(sf.detach(model)(**example)[:, :3], expected[:, :3]) > 1e-2


def test_the_fast_path_does_not_pass_dynamic_attention_by(tokens: Tensor) -> None:
    torch.manual_seed(0)
    backbone = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    model = sf.attach(backbone, where="linear2", form="dynamic")
    expected = model(tokens)  # with gradients there is no fast path
    with torch.no_grad():
        assert error(model(tokens), expected) < 1e-12
        assert error(backbone(tokens), expected) > 1e-3
