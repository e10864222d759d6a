"""Types as the user has them: bytes, narrow parts, complex numbers, lazy modules, scripted parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf


class Bytes(nn.Module):
    """Makes floats of bytes itself."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "float":
            x = x.float() / 255
        elif self.how == "to":
            x = x.to(torch.float32).div(255)
        elif self.how == "like":
            x = x.to(self.conv.weight.dtype) / 255
        else:
            x = x / torch.tensor(255.0)
        return self.norm(self.conv(x - 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["float", "to", "like", "divided"])
def test_byte_images(how: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
    model = Bytes(how).eval().to(dtype)
    if dtype == torch.float64 and how in ("float", "to", "divided"):
        with pytest.raises(RuntimeError, match="should be the same|expected"):
            model(x)  # the model does not run for its user either
        return
    assert sf.verify(model, model, x).passed
    assert sf.verify(model, sf.fold(model, fuse=True, example=x), x).passed
    attached = sf.attach(model, "se", where="norm", example=x).eval()
    assert sf.verify(attached, sf.fold(attached, example=x), x).passed


class Narrow(nn.Module):
    """bfloat16 beside float32."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1)) if first else None
        self.conv, self.norm = nn.Conv2d(3, 8, 3).bfloat16(), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x.to(self.conv.weight.dtype)).float())
        return y if self.gain is None else y * self.gain


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_parts(first: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 8, 8, dtype=dtype), Narrow(first).eval()
    attached = sf.attach(model, "se", where="norm").eval()
    with torch.no_grad():
        attached.norm.gates[0].psi.normal_()
    plain = sf.fold(attached, example=x)
    assert sf.verify(attached, plain, x).passed
    with pytest.raises(sf.errors.VerifyError, match="NOT equivalent"):
        sf.verify(attached, sf.detach(attached), x)


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.phase = nn.Parameter(torch.randn(8, 1, 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.fft2(self.norm(self.conv(x))) * self.phase
        return torch.fft.ifft2(y).real


def test_complex_numbers() -> None:
    torch.manual_seed(0)
    model, x = Waves().eval(), torch.randn(2, 3, 8, 8)
    assert sf.verify(model, model, x).passed
    assert sf.verify(model, sf.fold(model, fuse=True, example=x), x).passed


@pytest.mark.parametrize(
    "part", [nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(4)], ids=lambda m: type(m).__name__
)
def test_lazy_modules_are_named_and_stay_lazy(part: nn.Module) -> None:
    model, x = nn.Sequential(part), torch.randn(2, 3, 8, 8)
    calls = [
        lambda: sf.sites(model, example=x),
        lambda: sf.attach(model, "se", where="affine", example=x),
        lambda: sf.fold(model, example=x),
        lambda: sf.fold(model, fuse=True, example=x),
        lambda: sf.verify(model, model, x),
        lambda: sf.branch(model, "acnet"),
        lambda: sf.bake(model, [x]),
        lambda: sf.observe(model, [x]),
    ]
    for call in calls:
        with pytest.raises(sf.errors.StripefoldError, match="is lazy and has no weights yet: run the model once"):
            call()
    assert type(model[0]).__name__.startswith("Lazy")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_parts_in_torchscript(how: str) -> None:
    torch.manual_seed(0)
    part = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    made = torch.jit.script(part) if how == "script" else torch.jit.trace(part, torch.randn(2, 8, 6, 6))
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), made).eval(), torch.randn(2, 3, 8, 8)
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert [note.folded for note in report.notes] == [True]
    assert sf.verify(model, plain, x).passed
    attached = sf.attach(model, "se", where="norm", example=x).eval()
    assert sf.verify(attached, sf.fold(attached, example=x), x).passed


CACHE: dict[int, Tensor] = {}
KEPT: list[Tensor] = []


class Cached(nn.Module):
    """Keeps what it computed at module level, on its class, and a hook keeps the rest."""

    grids: dict[int, Tensor] = {}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.conv.register_forward_hook(keep)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if len(x) not in CACHE:
            CACHE[len(x)] = y.mean()
        self.grids.setdefault(x.shape[-1], y.new_ones(()))
        return y + CACHE[len(x)] + self.grids[x.shape[-1]]


def keep(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    KEPT.append(output)


def test_places_that_models_share_hold_no_other_type_afterwards() -> None:
    model, x = Cached().eval(), torch.randn(2, 3, 5, 5)
    sf.verify(model, model, x)
    sf.fold(model, fuse=True, example=x)
    sf.sites(model, where="affine", example=x)
    found = [*CACHE.values(), *Cached.grids.values(), *KEPT]
    assert found  # what an ordinary run leaves there
    assert {(tensor.dtype, tensor.device.type) for tensor in found} == {(torch.float32, "cpu")}
    model(x)
