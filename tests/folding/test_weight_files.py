"""Weights on disk: whole or not at all, saying what they are, loading into the stock class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import stripefold as sf
from stripefold.errors import CheckpointError
from stripefold.folding.weight_files import file_info, load_tensors, save_tensors
from tests.lifecycle import attached, error, images, tiny


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    model = attached()
    for kind, saved in {"attached": model, "plain": tiny(), "folded": sf.fold(model)}.items():
        given = "folded" if kind == "folded" else None
        assert sf.save_model(saved, tmp_path / kind, kind=given, extra={"epoch": 3}) == tmp_path / kind
        about = file_info(tmp_path / kind)
        assert about.kind == kind
        assert about.extra == {"epoch": 3}
        assert about.versions == {"stripefold": sf.__version__, "torch": torch.__version__}
    with safe_open(tmp_path / "folded", framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # what other libraries look for


def test_a_file_of_other_origin_is_plain(tmp_path: Path) -> None:
    save_file(tiny().state_dict(), tmp_path / "other")
    model = attached()
    assert sf.load_model_(model, tmp_path / "other").kind == "plain"
    assert error(sf.detach(model).eval()(images()), tiny().eval()(images())) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    model = attached(dtype=dtype, init="identity").eval()
    sf.save_model(model, tmp_path / "training")
    other = sf.attach(tiny(dtype, seed=5), init="identity").eval()
    assert error(other(images(dtype=dtype)), model(images(dtype=dtype))) > 1e-3
    sf.load_model_(other, tmp_path / "training")
    assert error(other(images(dtype=dtype)), model(images(dtype=dtype))) == 0


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("view", torch.arange(12.0).reshape(3, 4).T[:2])


def test_tied_and_strided_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    sf.save_model(model, tmp_path / "tied")
    tensors = load_file(tmp_path / "tied")
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[key], tensor) for key, tensor in model.state_dict().items())
    other = Tied()
    sf.load_model_(other, tmp_path / "tied")
    assert torch.equal(other.head.weight, model.embedding.weight)
    assert other.head.weight is other.embedding.weight
    assert (tmp_path / "tied").stat().st_size < 2000  # a view brings no more than itself


def test_channels_last(tmp_path: Path) -> None:
    model = attached().to(memory_format=torch.channels_last)
    plain = sf.fold(model)
    assert plain.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain.blocks[0].conv1.weight.is_contiguous()
    sf.save_model(plain, tmp_path / "folded", kind="folded")
    other = tiny(seed=5)
    sf.load_model_(other, tmp_path / "folded")
    assert error(other.eval()(images()), plain.eval()(images())) < 1e-12
    tiny().load_state_dict(load_file(tmp_path / "folded"), strict=True)


def test_sharing_views_of_one_storage(tmp_path: Path) -> None:
    whole = torch.arange(8.0)
    save_tensors({"a": whole, "b": whole[:4], "c": whole[4:], "d": whole}, tmp_path / "views", kind="plain")
    found = load_tensors(tmp_path / "views")
    assert {key: tensor.tolist() for key, tensor in found.items()} == {
        "a": whole.tolist(), "b": whole[:4].tolist(), "c": whole[4:].tolist(), "d": whole.tolist()
    }  # fmt: skip


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sf.save_model(tiny(), tmp_path / "weights")
    before = (tmp_path / "weights").read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stripefold.folding.weight_files.save_file", full)
    with pytest.raises(
        CheckpointError, match=r"cannot write .*weights: .*No space left on device.*before is untouched"
    ):
        sf.save_model(attached(), tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_the_mode_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    sf.save_model(tiny(), tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_mode & 0o600 == 0o600
    (tmp_path / "weights").chmod(0o640)
    sf.save_model(tiny(), tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


def test_not_strict(tmp_path: Path) -> None:
    state = tiny(seed=5).state_dict()
    save_tensors(
        {**{k: v for k, v in state.items() if "head" not in k}, "more": torch.ones(2)}, tmp_path / "part", kind="plain"
    )
    model = attached()
    head = model.head.weight.clone()
    sf.load_model_(model, tmp_path / "part", strict=False)
    assert torch.equal(model.stem.weight, state["stem.weight"])
    assert torch.equal(model.blocks[0].bn2.base.weight, state["blocks.0.bn2.weight"])
    assert torch.equal(model.head.weight, head)
    save_tensors({"stem.bias": torch.ones(8), "head.weight": torch.ones(2, 2)}, tmp_path / "wrong", kind="plain")
    bias = model.stem.bias.clone()
    with pytest.raises(CheckpointError, match="of another shape .*head.weight"):
        sf.load_model_(model, tmp_path / "wrong", strict=False)
    assert torch.equal(model.stem.bias, bias)


class WithState(nn.Linear):
    """Keeps something beside its tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}


def test_what_a_file_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="extra= holds what JSON cannot hold"):
        sf.save_model(tiny(), path, extra={"callback": print})
    with pytest.raises(CheckpointError, match="kind='foldet' is none of plain, attached"):
        sf.save_model(tiny(), path, kind="foldet")
    with pytest.raises(CheckpointError, match="'_extra_state' is no tensor"):
        sf.save_model(WithState(2, 2), path)
    with pytest.raises(CheckpointError, match="'weight' is on the meta device and has no numbers"):
        sf.save_model(nn.Linear(2, 2, device="meta"), path)
    assert not list(tmp_path.iterdir())


def test_a_folded_file_never_loads_under_gates(tmp_path: Path) -> None:
    model = attached()
    sf.save_model(sf.fold(model), tmp_path / "folded.safetensors", kind="folded")
    with pytest.raises(CheckpointError, match="would scale twice"):
        sf.load_model_(model, tmp_path / "folded.safetensors", strict=False)
