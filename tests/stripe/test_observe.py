"""Statistics against everything stored, in any split and order; the model afterwards; memory; inputs of any form."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import stripefold as sf
from stripefold.errors import StripefoldError
from stripefold.stripe.report import StripeReport
from tests.lifecycle import images as tiny_images
from tests.lifecycle import scatter_, snapshot, tiny
from tests.stripe.gated import (
    WRITTEN_OUT,
    Gated,
    Overwriting,
    Squeeze,
    Stacked,
    Tokens,
    images,
    in_batches,
    seeded,
    split,
    two,
)

EXACT = 1e-12


def close(got: Tensor, wanted: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def stored(model: nn.Module, x: Tensor, names: tuple[str, ...] = ("gate1", "gate2")) -> list[Tensor]:
    """The vectors (N, C) of every call of these modules' own ``gate``, by hooks, one image at a time."""
    kept: list[list[Tensor]] = [[] for _ in names]
    handles = [
        model.get_submodule(name).gate.register_forward_hook(lambda m, a, out, k=k: k.append(out.flatten(1)))
        for name, k in zip(names, kept, strict=True)
    ]
    evaluated = copy.deepcopy(model.training)
    with torch.no_grad():
        model.eval()
        for image in x:
            model(image[None])
    model.train(evaluated)
    for handle in handles:
        handle.remove()
    return [torch.cat(k) for k in kept]


def assert_statistics(report: StripeReport, values: list[Tensor]) -> None:
    assert len(report.layers) == len(values)
    for layer, v in zip(report.layers, values, strict=True):
        assert layer.images == len(v)
        assert float(v.std(0).min()) > 1e-4  # the control: the images matter
        close(layer.mean, v.mean(0))
        close(layer.within_variance, v.var(0, correction=0))
        close(torch.tensor(layer.stripe_index, dtype=torch.float64), v.mean(0).var(correction=0) / v.var(correction=0))
        close(layer.sample, v[: layer.keep].float(), 1e-7)


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (5, 7), (1, 3, 8)])
def test_equal_to_everything_stored_in_any_split(sizes: tuple[int, ...]) -> None:
    model, x = seeded(Stacked), images()
    report = sf.observe(model, in_batches(x, *sizes), keep=7)
    assert_statistics(report, stored(model, x))
    assert [layer.name for layer in report.layers] == ["gate1", "gate2"]
    assert [len(layer.sample) for layer in report.layers] == [7, 7]
    assert report.images == 12
    assert 0 < report.layers[0].depth < report.layers[1].depth < 1


def test_any_order_of_the_images() -> None:
    model, x = seeded(Stacked), images()
    shuffled = x[torch.randperm(12, generator=torch.Generator().manual_seed(5))]
    for layer, other in zip(
        sf.observe(model, x).layers, sf.observe(model, in_batches(shuffled, 5, 7)).layers, strict=True
    ):
        close(layer.mean, other.mean)
        close(layer.m2, other.m2)


def test_two_shares_merge_to_the_whole() -> None:
    model, x = seeded(Stacked), images()
    merged = sf.observe(model, x[:5], keep=8).merge(sf.observe(model, x[5:], keep=8))
    assert_statistics(merged, stored(model, x))


def test_a_shared_gate_is_told_apart_by_its_calls() -> None:
    model, x = seeded(Stacked, shared=True), images()
    both = stored(model, x, ("gate1",))[0]
    report = sf.observe(model, x)
    assert [layer.name for layer in report.layers] == ["gate1", "gate1#2"]
    assert_statistics(report, [both[0::2], both[1::2]])


def test_gates_that_the_model_writes_into() -> None:
    """What counts is the factor at the product: with the write before it, without the write after it."""
    model, x = seeded(Overwriting), images()
    report = sf.observe(model, in_batches(x, 5, 7))
    with torch.no_grad():
        mapped = model.eval().conv1(x)
        first = 1 + torch.sigmoid(model.gate1.fc(mapped.mean((2, 3))))
        mapped = model.conv2(F.relu(model.norm(mapped * first[:, :, None, None])))
        second = torch.sigmoid(model.gate2.fc(mapped.mean((2, 3))))
    assert_statistics(report, [first, second])


def test_in_inference_mode_of_the_callers() -> None:
    model, x = seeded(Stacked), images()
    with torch.inference_mode():
        report = sf.observe(model, x)
    assert_statistics(report, stored(model, x))


def by_hand(gate: Callable[..., Tensor], model: Gated, x: Tensor) -> Tensor:
    with torch.no_grad():
        mapped = model.conv(x)
        if gate.__name__ == "one_plus":
            return 1 + torch.tanh(model.fc(mapped.mean((2, 3))))
        return model.scale(mapped)


@pytest.mark.parametrize("gate", WRITTEN_OUT, ids=lambda gate: gate.__name__)
def test_products_that_stand_in_the_forward(gate: Callable[..., Tensor]) -> None:
    model, x = seeded(Gated, gate), images()
    report = sf.observe(model, in_batches(x, 5, 1, 6))
    assert_statistics(report, [by_hand(gate, model, x)])
    with torch.no_grad():
        close(report.layers[0].descriptor_mean, model.conv(x).mean((0, 2, 3)))


class AroundAnother(Gated):
    """A product of its own, and before it a module inside with a product of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Identity(), Squeeze())

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.conv(x))
        return self.out(F.relu(x * self.scale(x)[:, :, None, None]).mean((2, 3)))


def test_a_product_inside_a_module_inside_is_not_taken_for_its_own() -> None:
    model, x = seeded(AroundAnother), images()
    with torch.no_grad():
        mapped = model.conv(x)
        first = torch.sigmoid(3 * model.block[1].fc(mapped.mean((2, 3))))
        second = model.scale(mapped * first[:, :, None, None])
    report = sf.observe(model, in_batches(x, 5, 7))
    assert [layer.name for layer in report.layers] == ["block.1", ""]
    assert_statistics(report, [first, second])


def test_two_products_in_one_forward() -> None:
    model, x = seeded(Gated, two), images()
    with torch.no_grad():
        mapped = model.conv(x)
        first = model.scale(mapped)
        second = torch.sigmoid(model.other((mapped * first[:, :, None, None]).amax((2, 3))))
    assert_statistics(sf.observe(model, x), [first, second])


def test_branches() -> None:
    model, x = seeded(Gated, split), images()
    with torch.no_grad():
        weights = model.select(model.conv(x).mean((2, 3))).view(-1, 2, 6).softmax(1)
    report = sf.observe(model, in_batches(x, 4, 8))
    assert_statistics(report, [weights.flatten(1)])
    assert report.layers[0].split == 2


def test_tokens() -> None:
    model, x = seeded(Tokens, "channel"), torch.randn(9, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        tokens = model.norm(model.embed(x))
        scale = torch.sigmoid(model.fc(tokens.mean(1)))
    assert_statistics(sf.observe(model, in_batches(x, 4, 5)), [scale])


OWN = [name for name in sf.attention_names(acts="channels", how="multiply") if name != "scale"]


@pytest.mark.parametrize("attention", OWN)
def test_own_dynamic_attention(attention: str) -> None:
    """Whatever the attention is, dividing what it returns by what it takes gives v."""
    model, x = scatter_(sf.attach(tiny(), attention, form="dynamic")).eval(), tiny_images(6)
    kept: list[Tensor] = []

    def divide(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        kept.append((out / args[0]).flatten(2).mean(2))

    site = model.get_submodule("blocks.1.bn2")
    handle = site.gates[0].register_forward_hook(divide)
    with torch.no_grad():
        model(x)
    handle.remove()
    report = sf.observe(model, in_batches(x, 2, 4))
    assert len(report.layers) == 2
    close(report.layers[1].mean, kept[0].mean(0), 1e-9)
    close(report.layers[1].within_std, kept[0].std(0, correction=0), 1e-9)
    assert report.uncalled == ()


def test_the_descriptor_of_a_hooked_gate() -> None:
    model, x = seeded(Stacked), images()
    kept: list[Tensor] = []
    handle = model.gate2.fc.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    close(sf.observe(model, in_batches(x, 5, 7)).layers[1].descriptor_mean, kept[0].mean(0))


def test_classes() -> None:
    model, x = seeded(Stacked), images()
    y = torch.tensor([3, 0, 1] * 4)
    report = sf.observe(model, [(x[:5], y[:5]), (x[5:], y[5:])], by_class=True)
    for layer, v in zip(report.layers, stored(model, x), strict=True):
        assert layer.class_counts.tolist() == [4, 4, 0, 4]
        means = torch.stack([v[y == c].mean(0) if c != 2 else torch.zeros(6).double() for c in range(4)])
        close(layer.class_means, means)
        explained = sum(4 * (v[y == c].mean(0) - v.mean(0)).square().sum() for c in (0, 1, 3))
        assert layer.class_share == pytest.approx(float(explained / (v - v.mean(0)).square().sum()), rel=1e-10)
    assert sf.observe(model, [(x, y)]).layers[0].class_means is None


def test_images_of_several_sizes() -> None:
    model = seeded(Stacked)
    small, large = images(3, 6), images(4, 9)
    report = sf.observe(model, [small, large])
    values = [torch.cat(pair) for pair in zip(stored(model, small), stored(model, large), strict=True)]
    assert_statistics(report, values)


def test_timm_in_single_precision() -> None:
    """An ECA network against hooks of its own; the moments are float64 whatever the model computes in."""
    model = timm.create_model("ecaresnet26t").eval()
    x = torch.randn(6, 3, 64, 64)
    kept: list[Tensor] = []
    handle = model.layer3[0].se.gate.register_forward_hook(lambda m, a, out: kept.append(out.double().flatten(1)))
    with torch.no_grad():
        model(x)
    handle.remove()
    layer = sf.observe(model, x).layer("layer3.0.se")
    assert (layer.dtype, layer.mean.dtype) == ("float32", torch.float64)
    close(layer.mean, kept[0].mean(0))


# The model afterwards.


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(value)
        for module in model.modules()
        for key, value in vars(module).items()
        if key.endswith("_hooks") and isinstance(value, dict)
    )


def assert_untouched(model: nn.Module, call: Callable[[], Any]) -> None:
    before, hooks = snapshot(model), hooks_of(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    call()
    assert snapshot(model) == before
    assert hooks_of(model) == hooks
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert torch.is_grad_enabled()


def mixed(model: nn.Module) -> nn.Module:
    """Some parts training, some not, and a hook of the user's own."""
    model.train()
    model.gate1.eval() if hasattr(model, "gate1") else model.fc.eval()
    model.out.register_forward_hook(lambda module, args, output: None)
    return model


@pytest.mark.parametrize("build", [Stacked, Gated])
def test_the_model_and_the_random_state_are_what_they_were(build: type[nn.Module]) -> None:
    model = mixed(seeded(build))
    loader = DataLoader(TensorDataset(images(), torch.arange(12) % 3), batch_size=5, shuffle=True)
    assert_untouched(model, lambda: sf.observe(model, loader, by_class=True))


ARMED: list[bool] = []
"""A global: what the hook of a copy has in its closure is the copy's own."""


@pytest.mark.parametrize("build", [Stacked, Gated])
@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["data", "head"])
def test_nothing_stays_after_an_interruption(build: type[nn.Module], raised: type[BaseException], place: str) -> None:
    model = mixed(seeded(build))
    x = images()
    last = model.out if build is Stacked else model.head

    def data() -> Iterator[Tensor]:
        yield x
        if place == "data":
            raise raised("stop")
        ARMED.append(True)
        yield x

    def bomb(module: nn.Module, args: Any) -> None:
        if ARMED:
            raise raised("stop")

    (model.fc if build is Gated else last).register_forward_pre_hook(bomb)
    expected = sf.errors.ObserveError if place == "head" and raised is RuntimeError else raised

    def call() -> None:
        with pytest.raises(expected, match="stop"):
            sf.observe(model, data())

    assert_untouched(model, call)
    ARMED.clear()
    assert len(sf.observe(model, x).layers) == (2 if build is Stacked else 1)  # no mode is left that would count


def test_dropout_and_statistics_are_those_of_evaluation() -> None:
    model, x = seeded(Stacked).train(), images()
    trained, evaluated = sf.observe(model, x), sf.observe(copy.deepcopy(model).eval(), x)
    assert torch.equal(trained.layers[1].mean, evaluated.layers[1].mean)
    assert int(model.norm.num_batches_tracked) == 0


def test_training_goes_on_afterwards() -> None:
    model, x = seeded(Stacked).train(), images()
    sf.observe(model, x)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# Memory.


def alive() -> int:
    gc.collect()
    return sum(tensor.nbytes for tensor in gc.get_objects() if type(tensor) is Tensor)


def test_memory_does_not_grow_with_the_images() -> None:
    model = seeded(Stacked)

    def peak(count: int, keep: int = 100) -> int:
        most = 0

        def data() -> Iterator[Tensor]:
            nonlocal most
            for number in range(count // 50):
                if number % 60 == 15:
                    most = max(most, alive())
                yield images(50, 6, seed=number)

        report = sf.observe(model, data(), keep=keep)
        assert report.images == count
        return most

    small = peak(1_000)
    assert peak(10_000) <= small * 1.02 + 4096
    assert peak(4_000, keep=4_000) > small * 1.2  # the control: what is kept is seen


# Inputs.


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Stacked()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.net(left + right)


def test_forms_of_data() -> None:
    model, x = seeded(Stacked), images()
    y = torch.arange(12) % 3
    expected = sf.observe(model, x).layers[1].mean
    forms: list[Any] = [
        [x], [(x, y)], [[x, y]], [{"x": x}], {"image": x, "label": y}, [{"image": x, "labels": y}],
        DataLoader(TensorDataset(x, y), batch_size=12), (b for b in [x]), [x.float().double()],
    ]  # fmt: skip
    for form in forms[:-1]:
        close(sf.observe(model, form).layers[1].mean, expected)
    close(sf.observe(model, x.float()).layers[1].mean, expected, 1e-6)  # cast to the model's dtype


def test_several_arguments_by_an_example() -> None:
    model, x = seeded(TwoInputs), images()
    expected = sf.observe(model.net, x + x.flip(0)).layers[1].mean
    report = sf.observe(model, [(x, x.flip(0), torch.arange(12))], example=(x[:2], x[:2]), by_class=True)
    close(report.layers[1].mean, expected)
    close(sf.observe(model, [{"left": x, "right": x.flip(0)}]).layers[1].mean, expected)


class Detector(nn.Module):
    """Takes a list of images of several sizes, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Stacked()

    def forward(self, images: list[Tensor]) -> Tensor:
        side = min(min(image.shape[1:]) for image in images)
        return self.net(torch.stack([image[:, :side, :side] for image in images]))


def test_lists_of_images() -> None:
    model, x = seeded(Detector), images()
    batch = [image[:, : 8 - number % 2] for number, image in enumerate(x)]
    report = sf.observe(model, [(batch[:1], [{}]), (batch[1:], [{}] * 11)])
    expected = sf.observe(model.net, [x[:1], x[1:, :, :7, :7]])
    close(report.layers[1].mean, expected.layers[1].mean)
    assert report.images == 12
    assert sf.observe(model, [(batch, [{}])], max_images=5).images == 5


def test_max_images_cuts_a_batch() -> None:
    model, x = seeded(Stacked), images()
    report = sf.observe(model, in_batches(x, 5, 7), max_images=8)
    assert_statistics(report, stored(model, x[:8]))
    assert report.images == 8


def test_one_image_alone() -> None:
    report = sf.observe(seeded(Stacked), images(1))
    assert [layer.index_flag for layer in report.layers] == ["one image"] * 2


def test_a_model_of_a_fixed_batch_size() -> None:
    class Fixed(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(4, 3, 8, 8))

    assert sf.observe(seeded(Fixed), images(4)).layers[0].images == 4


def test_progress_is_told() -> None:
    seen: list[int] = []
    sf.observe(seeded(Stacked), in_batches(images(), 5, 7), progress=seen.append)
    assert seen == [5, 12]


def test_wrappers_are_looked_through() -> None:
    model, x = seeded(Stacked), images()
    expected = sf.observe(model, x).layers[1].mean
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        close(sf.observe(wrapped, x).layers[1].mean, expected)


def test_on_a_device_that_is_named() -> None:
    model, x = mixed(seeded(Stacked)), images()
    assert_untouched(model, lambda: sf.observe(model, x, device="cpu"))


def test_a_model_without_attention() -> None:
    report = sf.observe(timm.create_model("resnet18"), torch.randn(2, 3, 64, 64))
    assert report.layers == ()
    assert "no channel attention" in str(report)


class Sometimes(nn.Module):
    """The gates run for bright batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Stacked()

    def forward(self, x: Tensor) -> Tensor:
        if float(x.mean()) < 1:
            return self.net.conv1(x).mean((2, 3))
        return self.net(x)


def test_a_gate_that_no_batch_reaches_is_listed() -> None:
    model, x = seeded(Sometimes), images()
    report = sf.observe(model, x - 5, example=x[:2] + 5)
    assert report.layers == ()
    assert [line.partition(":")[0] for line in report.unrecorded] == ["net.gate1", "net.gate2"]
    assert "no batch came through it" in str(report)


def test_a_gate_that_some_batches_reach_counts_those() -> None:
    model, x = seeded(Sometimes), images()
    report = sf.observe(model, [x - 5, x + 5, x - 5, x + 6], example=[x[:2] - 5, x[:2] + 5])
    assert [layer.images for layer in report.layers] == [24, 24]
    unseen = sf.observe(model, [x - 5, x + 5])  # the first batch is the example
    assert unseen.layers == ()
    assert "net.gate1.fc" in unseen.uncalled
    assert "give example=[...], an input for each way" in " ".join(str(unseen).split())
    assert_statistics(report, stored(model.net, torch.cat([x + 5, x + 6])))


class Normalising(Overwriting):
    """Writes into its images before it uses them, so that a batch which runs again would not be the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).mul_(2))


def test_a_model_that_writes_into_its_images() -> None:
    model, x = seeded(Normalising).eval(), images()
    report = sf.observe(model, [x])
    assert torch.equal(x, images())
    wanted = sf.observe(seeded(Overwriting).eval(), [(images() - 0.5) * 2])
    assert [layer.name for layer in report.layers] == [layer.name for layer in wanted.layers] != []
    for layer, other in zip(report.layers, wanted.layers, strict=True):
        close(layer.mean, other.mean)
        close(layer.m2, other.m2)


class ScriptedBeside(nn.Module):
    """A gate written out in a forward that also calls a scripted part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()))
        self.squeeze = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        gate = torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        return self.head(y * gate)


def test_a_scripted_part_beside_a_gate_takes_no_hook() -> None:
    model = ScriptedBeside().eval()
    images = torch.randn(6, 3, 8, 8)
    report = sf.observe(model, [images])
    assert [layer.channels for layer in report.layers] == [4]
    with pytest.raises(StripefoldError, match="not finite|NaN"):
        sf.observe(model, [images / 0])
