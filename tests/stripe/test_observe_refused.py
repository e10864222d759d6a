"""Bad input: one clear error that says where, what was found and what to do; the model is what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import stripefold as sf
from stripefold.errors import ObserveError, TraceError
from stripefold.stripe.gate_vectors import vectors
from tests.lifecycle import assert_refused
from tests.stripe.gated import Gated, Stacked, images, seeded, spatial


def refused(data: Any, match: str, *, model: nn.Module | None = None, **options: Any) -> None:
    model = model if model is not None else seeded(Stacked).train()
    assert_refused(model, lambda: sf.observe(model, data, **options), ObserveError, match)


@pytest.mark.parametrize("data", [[], iter(()), torch.zeros(0, 3, 8, 8), [torch.zeros(0, 3, 8, 8)]])
def test_no_images(data: Any) -> None:
    refused(data, "the data gave no images: nothing was observed. Is a generator used up, or max_images 0")


def test_no_images_allowed() -> None:
    refused(images(), "the data gave no images", max_images=0)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (None, "the data is a NoneType, which gives no batches: expected tensors"),
        (3, "the data is an int"),
        ("photos/", "the data is a str of length 7"),
        (nn.ReLU(), "the data is a ReLU"),
        ([None], "batch 0 is a NoneType: expected tensors"),
        (np.zeros((2, 3, 8, 8)), "batch 0 is a ndarray of length 3"),
        ([["cat.jpg", 3]], "batch 0 is a list of length 2, holding a str of length 7"),
        ([()], "batch 0 is a tuple of length 0: expected"),
        ([{"label": torch.zeros(2)}], r"batch 0 is a mapping without a tensor \(keys \['label'\]\)"),
    ],
)
def test_data_of_another_kind(data: Any, found: str) -> None:
    refused(data, found)


def test_a_data_set_without_a_loader() -> None:
    refused(TensorDataset(images()), r"Dataset, which gives single samples: observe\(model, DataLoader\(dataset")


def test_a_batch_shorter_than_the_example() -> None:
    class Sum(Stacked):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x + y)

    x = images(2)
    refused([(x,)], "batch 0 has 1 entries, the example 2: give one like it", model=seeded(Sum), example=(x, x))


def test_no_model() -> None:
    with pytest.raises(ObserveError, match="observe needs an nn.Module, got str"):
        sf.observe("resnet50", images())


@pytest.mark.parametrize(("option", "value"), [("keep", -1), ("max_images", 1.5), ("keep", True)])
def test_options(option: str, value: Any) -> None:
    refused(images(), f"{option}={value!r}: expected a number of images, 0 or more", **{option: value})


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (None, r"by_class needs the labels, and batch 0 \(\(4, 3, 8, 8\) float64\) has none that can be read"),
        (torch.rand(4), "has none that can be read: give .* the labels 4 integers from 0"),
        (torch.zeros(3, dtype=torch.long), "has none that can be read"),
        (["cat", "dog", "cat", "dog"], "has none that can be read"),
        (torch.tensor([0, 1, -1, 2]), "counts classes from 0, and batch 0 .* has the label -1"),
    ],
)
def test_labels(labels: Any, match: str) -> None:
    refused([(images(4), labels)], match, by_class=True)


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], torch.tensor([[0], [1], [1], [0]]), torch.tensor([0, 1, 1, 0]).int()])
def test_labels_of_other_forms_are_read(labels: Any) -> None:
    assert sf.observe(seeded(Stacked), [(images(4), labels)], by_class=True).layers[0].class_counts.tolist() == [2, 2]


def test_images_of_a_wrong_size_at_the_start() -> None:
    model = timm.create_model("legacy_seresnet18")
    x = torch.zeros(2, 4, 64, 64)
    assert_refused(
        model, lambda: sf.observe(model, x), TraceError, r"failed in 'layer0.conv1' on the example \(2, 4, 64, 64\)"
    )


def test_images_of_a_wrong_size_later() -> None:
    refused(
        [images(4), torch.zeros(2, 5, 8, 8)],
        r"Stacked failed on batch 1 \(\(2, 5, 8, 8\) float32\) in 'conv1': RuntimeError: .*expected input.*Every batch",
    )


def test_not_finite_weights_are_named() -> None:
    model = seeded(Stacked)
    with torch.no_grad():
        model.conv2.weight[1, 1] = float("nan")
    refused(
        images(),
        r"batch 0 \(\(12, 3, 8, 8\) float64\): values that are not finite, first in the output of 'conv2'",
        model=model,
    )


def test_overflow_on_the_way_is_named() -> None:
    model = seeded(Stacked, dtype=torch.float32)
    with torch.no_grad():
        model.conv1.weight.mul_(1e38)
    refused([images(4).float() * 1e3], "first in the output of 'conv1'", model=model)


def test_not_finite_images_are_counted() -> None:
    x = images(4)
    x[2, 0, 0, 0] = float("inf")
    x[3, 0, 0, 0] = float("nan")
    refused([images(4), x], r"batch 1 .*: 2 of 4 inputs hold NaN or infinite values. Look at the data")


def test_not_finite_in_a_gate_of_the_forward() -> None:
    model = seeded(Gated, lambda model, x: x * (1 / F.relu(x.mean((2, 3)) - 1e9))[:, :, None, None])
    refused(images(), "not finite, first in the output of 'head'", model=model)


class PositionGate(nn.Module):
    """A gate whose width is the number of tokens, which then are the channels of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 7, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) if x.shape[1] == 5 else x
        return x * self.gate(x.mean(2, keepdim=True))


def test_a_gate_that_changes_its_shape() -> None:
    model = seeded(PositionGate)
    x, other = torch.randn(2, 5, 9, dtype=torch.float64), torch.randn(2, 4, 9, dtype=torch.float64)
    refused(
        [x, other],
        r"the gate '' changed its shape between batches: 7 values per image when the model was traced, now \(2, 4, 1\)",
        model=model,
    )


def test_values_without_a_sample_axis_in_front() -> None:
    scales = torch.arange(6.0)
    assert vectors(scales.view(1, 6), 3, "se", batched=False).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ObserveError, match="changed its shape"):
        vectors(torch.arange(7.0), 3, "se", batched=False)


def test_compiled_parts() -> None:
    model = seeded(Stacked)
    model.conv1 = torch.compile(model.conv1)
    with pytest.raises(ObserveError, match=r"'conv1' is compiled, .* put conv1._orig_mod in its place"):
        sf.observe(model, images())


class FullyShardedDataParallel(nn.Module):
    """Only the name counts."""


def test_sharded_models() -> None:
    with pytest.raises(ObserveError, match="cannot observe a model wrapped in FullyShardedDataParallel"):
        sf.observe(FullyShardedDataParallel(), images())


def test_a_process_group_without_processes() -> None:
    refused(images(), "process_group is given, but torch.distributed is not initialised", process_group=object())


def test_a_spatial_gate_is_listed() -> None:
    report = sf.observe(seeded(Gated, spatial), DataLoader(images(), batch_size=4))
    assert report.layers == ()
    assert "a spatial gate: one number for each position" in " ".join(str(report).split())


class Fickle(Gated):
    """A second product of the same shape, for bright batches only."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if float(x.mean()) > 2:
            x = x * torch.sigmoid(self.other(x.mean((2, 3))))[:, :, None, None]
        return self.out((x * self.scale(x)[:, :, None, None]).mean((2, 3)))


def test_a_product_that_cannot_be_told_from_another_is_left_out() -> None:
    model, x = seeded(Fickle), images()
    with torch.no_grad():
        model.conv.bias.copy_(0)
        model.conv.weight.abs_()
    dark, bright = x - 20, x + 20
    left_out = "{}: its product could not be told from others that ran, and was left out"
    assert [len(sf.observe(model, each).layers) for each in (dark, bright)] == [1, 2]
    report = sf.observe(model, [dark, bright])
    assert (report.layers, report.unrecorded) == ((), (left_out.format(""),))
    report = sf.observe(model, [dark, bright], example=[dark[:2], bright[:2]])
    assert [(layer.name, layer.images) for layer in report.layers] == [("#3", 12)]  # the second of two is the last
    assert report.unrecorded == tuple(left_out.format(name) for name in ("", "#2"))
    report = sf.observe(model, dark, example=[dark[:2], bright[:2]])
    assert [layer.name for layer in report.layers] == [""]


class OneByOne(nn.Module):
    """Runs a network, or a part of one, on one sample at a time; the trace sees two of them."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.net, self.part = Stacked() if part == "source" else Gated(), part

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(sample) for sample in x.split(1)])


@pytest.mark.parametrize("part", ["source", "where"])
def test_gates_that_run_more_often_than_in_the_trace_are_left_out(part: str) -> None:
    model = seeded(OneByOne, part)
    report = sf.observe(model, images().split(3))
    assert report.layers == ()
    assert len(report.unrecorded) == (4 if part == "source" else 2)
    assert all("could not be told from others that ran" in line for line in report.unrecorded)
    assert len(sf.observe(model, images().split(2)).layers) == len(report.unrecorded)


@pytest.mark.parametrize("label", [10**7, 2**40, 2**62])
def test_labels_that_are_no_classes_take_no_memory(label: int) -> None:
    refused(
        [(images(4), torch.tensor([0, 1, label, 1]))], rf"there is the label {label}, with \d+ channels", by_class=True
    )
