"""fold, fuse and verify judge what the user runs: parts in training mode under eval(), torch's fused fast paths."""

from __future__ import annotations

import types
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import FoldError, VerifyError
from stripefold.modules.modes import kept_in_training
from tests.lifecycle import error, snapshot

EXACT = 1e-10


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(model: nn.Module) -> nn.Module:
    """Float64, with statistics and affine parts that are not those of a new model."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_(generator=generator)
            module.running_var.uniform_(0.4, 2, generator=generator)
    return model.double()


def stack(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 1))


class KeptByTheModel(nn.Module):
    """Its own train() keeps one norm adapting."""

    def __init__(self) -> None:
        super().__init__()
        self.body = stack(nn.BatchNorm2d(8))

    def train(self, mode: bool = True) -> KeptByTheModel:
        super().train(mode)
        self.body[1].train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Adapting(nn.Sequential):
    """A part whose eval() leaves its norms as they are."""

    def train(self, mode: bool = True) -> Adapting:
        self.training = mode
        return self


def kept_by_a_part() -> nn.Module:
    return nn.Sequential(Adapting(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.ReLU(), nn.Conv2d(8, 4, 1))


def kept_by_the_user() -> nn.Module:
    model = stack(nn.BatchNorm2d(8)).eval()
    model[1].train()
    return model


def kept_by_a_method_on_the_norm() -> nn.Module:
    model = stack(nn.BatchNorm2d(8))
    model[1].train = types.MethodType(lambda self, mode=True: self, model[1])
    return model


KEPT: dict[str, Callable[[], nn.Module]] = {
    "its own train()": KeptByTheModel,
    "the train() of a part": kept_by_a_part,
    "the user": kept_by_the_user,
    "a method of the norm": kept_by_a_method_on_the_norm,
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("mode", ["as it is", "eval"])
@pytest.mark.parametrize("case", KEPT)
def test_a_norm_that_stays_in_training_mode_is_no_constant(case: str, mode: str, check: bool) -> None:
    model, x = trained(KEPT[case]()), noise(5, 3, 9, 9)
    if mode == "eval" and case != "the user":
        model.eval()
    before = snapshot(model)
    plain, report = sf.fold(model, fuse=True, example=x, check=check, report=True)
    assert snapshot(model) == before
    if case != "the user":
        model.eval()
        plain.eval()
    assert error(plain(x), model(x)) < EXACT
    [row] = [note for note in report.left if "BatchNorm" in note.kind]
    assert "stays in training mode when the model is used for inference" in row.why
    assert error(model(x[:2]), model(x)[:2]) > 1e-3  # the control: it looks at the whole batch


def test_a_model_in_training_mode_is_fused_as_after_eval() -> None:
    model, x = trained(stack(nn.BatchNorm2d(8))).train(), noise(5, 3, 9, 9)
    plain = sf.fold(model, fuse=True, example=x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert error(plain.eval()(x), model.eval()(x)) < EXACT


def test_a_frozen_norm_in_training_mode_is_a_constant() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    norm = FrozenBatchNorm2d(8)
    norm.running_mean.normal_()
    model, x = stack(norm).double().eval(), noise(2, 3, 9, 9)
    model[1].train()
    plain = sf.fold(model, fuse=True, example=x)
    assert type(plain[1]) is nn.Identity
    assert error(plain(x), model(x)) < EXACT


def test_a_layer_scale_does_not_go_through_a_norm_of_the_batch() -> None:
    """Behind it the batch's own statistics would undo the scale, in front of it they keep it."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
            self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) * self.gamma

    model, x = trained(Scaled()).eval(), noise(4, 3, 7, 7)
    model.norm.train()
    plain = sf.fold(model, fuse=True, example=x, check=False)
    assert bool((plain.gamma == 1).all())  # into the norm's own weight and bias
    assert error(plain(x), model(x)) < EXACT


def test_dropout_that_stays_on_stands_between() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.4), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1))
    model, x = trained(model).eval(), noise(3, 3, 9, 9)
    model[1].train()
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    outputs = []
    for each in (plain, model):
        torch.manual_seed(0)
        outputs.append(each(x))
    assert error(*outputs) < EXACT
    assert [note.name for note in report.left] == ["2"]
    assert len(sf.fold(model.eval(), fuse=True, example=x, report=True)[1].folded) == 1  # the control


@pytest.mark.parametrize("kind", ["repvgg", "dbb"])
def test_a_block_with_such_a_norm_inside_is_refused(kind: str) -> None:
    model, x = sf.branch(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).double(), kind).eval(), noise(3, 3, 9, 9)
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).train()
    with pytest.raises(FoldError, match=r"cannot fold the block on '0': '0.branches.main.bn' stays in training mode"):
        sf.fold(model, example=x, check=False)
    assert sf.fold(model.eval(), example=x) is not None


def test_gates_on_such_a_norm_fold() -> None:
    x = noise(5, 3, 9, 9)
    model = sf.attach(trained(KeptByTheModel()), where="body.1", psi=0.7, example=x).eval()
    plain = sf.fold(model, example=x)
    assert error(plain(x), model(x)) < EXACT
    assert error(plain(x), sf.detach(model)(x)) > 1e-3


def test_verify_runs_each_model_as_it_is_used() -> None:
    model, x = trained(KeptByTheModel()).eval(), noise(5, 3, 9, 9)
    frozen = trained(KeptByTheModel()).eval()
    frozen.body[1].training = False
    assert sf.verify(model, model, x).passed
    with pytest.raises(VerifyError, match="NOT equivalent"):
        sf.verify(model, frozen, x)
    means = model.body[1].running_mean.clone()
    sf.verify(model, model, x)
    assert torch.equal(model.body[1].running_mean, means)


def test_which_modules_are_kept() -> None:
    model = KeptByTheModel()
    assert kept_in_training(model) == {model.body[1]}
    assert model.body[0].training  # nothing was switched
    assert kept_in_training(stack(nn.BatchNorm2d(8))) == frozenset()


class Whole(nn.Module):
    """An attention and a layer norm, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        return self.norm(self.attention(x, x, x, key_padding_mask=key_padding_mask, need_weights=False)[0])


def encoder(layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, layers) if layers > 1 else layer


def close_to(model: nn.Module, glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name, _ in model.named_modules())


def hidden(*lengths: int) -> Tensor:
    return torch.arange(max(lengths) + 1)[None] >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("layers", [2, 3])
def test_a_fast_path_that_gives_other_values_is_named(layers: int) -> None:
    torch.manual_seed(0)
    mask = hidden(4, 6, 3)
    example: Any = {"src": noise(3, mask.shape[1], 16), "src_key_padding_mask": mask}
    model = sf.attach(encoder(layers).double().eval(), where="layers.*.linear2", psi=0.6, example=example["src"])
    with pytest.warns(UserWarning, match="the folded model is right, but as deployed, output differs"):
        _, report = sf.fold(model, example=example, report=True)
    assert "torch's fused fast path" in report.verification
    assert "equivalent in float64" in report.verification
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("build", [lambda: encoder(1), lambda: encoder(2), Whole])
def test_a_fast_path_that_gives_the_same_is_not(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    x = noise(3, 5, 16)
    plain = build().double().eval()
    where = (
        "norm*"
        if isinstance(plain, Whole)
        else ["linear2", "layers.*.linear2"][isinstance(plain, nn.TransformerEncoder)]
    )
    model = sf.attach(plain, where=where, psi=0.6, example=x)
    folded, report = sf.fold(model, example=x, report=True)
    assert "fast path" not in report.verification
    with torch.no_grad():
        assert error(folded(x), model(x)) < EXACT


def test_two_models_on_the_same_fast_path_are_not_told_apart() -> None:
    torch.manual_seed(0)
    mask = hidden(4, 6, 3)
    example = {"src": noise(3, mask.shape[1], 16), "src_key_padding_mask": mask}
    plain = encoder(2).double().eval()
    assert sf.verify(plain, plain, example).fast_path is None
