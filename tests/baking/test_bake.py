"""The whole of ``bake``: what it returns, what it leaves alone, what a budget decides, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import SqueezeExcite
from torch import Tensor, nn

import stripefold as sf
from stripefold.asr.site import Site
from stripefold.baking.override_gates import override_gates
from stripefold.errors import BakeError, ObserveError
from stripefold.stripe.discover import discover
from tests.lifecycle import EXACT, TinyNet, assert_refused, attached, error, images, prepared, snapshot

GATES = ["blocks.0.bn2.gates.0.attention", "blocks.1.bn2.gates.0.attention"]


def gated(seed: int = 0) -> nn.Module:
    """A TinyNet with dynamic SE on both branches, every number random, in float64."""
    torch.manual_seed(seed)
    return attached("se", form="dynamic", attention_options={"reduction": 2}).eval()


def data(batches: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(images(8, seed=10 + k), (torch.arange(8) * 7 + k) % 4) for k in range(batches)]


def means(model: nn.Module) -> dict[str, Tensor]:
    return {layer.name: layer.mean for layer in sf.observe(model, data()).layers}


def held(model: nn.Module, constants: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the model gives with these gates constant, by hooks."""
    with override_gates(model, discover(model, x).gates, constants), torch.no_grad():
        return model(x)


def closeness(model: nn.Module) -> Callable[[nn.Module], float]:
    """A metric: minus the largest change of the outputs in percent, 0 for the model itself."""
    with torch.no_grad():
        expected = model(images(8, seed=50))

    def percent(other: nn.Module) -> float:
        with torch.no_grad():
            return -100 * error(other(images(8, seed=50)), expected)

    return percent


def test_the_result_is_plain_and_computes_with_the_means() -> None:
    model, x = gated(), images(6, seed=40)
    before = snapshot(model)
    plain, report = sf.bake(model, data(), recalibrate=False)
    assert snapshot(model) == before
    assert type(plain) is TinyNet
    assert list(plain.state_dict()) == list(TinyNet().state_dict())
    with torch.no_grad():
        found = plain(x)
        assert error(found, held(model, means(model), x)) < EXACT
        assert error(found, model(x)) > 1e-4
        assert error(found, sf.detach(model)(x)) > 1e-2
    assert [site.name for site in report.folded] == GATES
    assert [site.place for site in report.sites] == ["blocks.0.bn2.base", "blocks.1.bn2.base"]
    assert report.images == 24


def test_nothing_is_shared_with_the_model() -> None:
    model = gated()
    plain, _ = sf.bake(model, data())
    mine = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not mine & {tensor.data_ptr() for tensor in plain.state_dict().values()}


def test_in_place_gives_the_same() -> None:
    model, x = gated().train(), images(6, seed=40)
    plain, expected = sf.bake(model, data())
    report = sf.bake_(model, data())
    assert report == expected
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain.eval()(x))


def test_accuracy_is_that_of_the_labels() -> None:
    model = gated()
    _, report = sf.bake(model, data(), recalibrate=False)
    with torch.no_grad():
        hits = torch.cat([model(x).argmax(1) == y for x, y in data()])
    assert report.before == pytest.approx(100 * hits.double().mean().item())
    assert report.after == report.constant
    assert all(site.alone is None for site in report.sites)
    assert report.metric == "top-1 accuracy in percent"


def test_each_gate_alone_and_the_budget() -> None:
    model = gated()
    metric = closeness(model)
    expected = {}
    for name, v in means(model).items():
        with override_gates(model, discover(model, images()).gates, {name: v}):
            expected[name] = metric(model)
    _, report = sf.bake(model, data(), metric=metric, recalibrate=False)
    assert report.before == 0
    assert {site.name: site.alone for site in report.sites} == pytest.approx(expected)
    assert len(report.baked) == 2
    cheap, dear = sorted(expected, key=lambda name: -expected[name])
    assert expected[cheap] > expected[dear] + 1e-3
    allowed = -(expected[cheap] + expected[dear]) / 2  # enough for the cheap one
    baked, report = sf.bake(model, data(), metric=metric, max_drop=allowed, recalibrate=False)
    assert [site.name for site in report.baked] == [cheap]
    assert [site.name for site in report.kept] == [dear]
    assert "over the budget" in report.kept[0].why
    assert report.after == pytest.approx(expected[cheap])
    assert sum(isinstance(module, Site) for module in baked.modules()) == 1


def test_a_budget_that_nothing_meets_leaves_everything() -> None:
    model, x = gated(), images()
    baked, report = sf.bake(model, data(), metric=closeness(model), max_drop=0, speed=True)
    assert not report.baked
    assert report.constant is None
    assert report.after == 0
    with torch.no_grad():
        assert torch.equal(baked(x), model(x))


def test_validation_decides() -> None:
    model = gated()
    validation = [(images(16, seed=70), model(images(16, seed=70)).argmax(1))]  # the model is always right
    _, report = sf.bake(model, [x for x, _ in data()], validation=validation, max_drop=100)
    assert report.before == 100
    assert all(site.alone is not None and site.cumulative is not None for site in report.sites)


def test_batchnorm_is_re_estimated_behind_the_gates() -> None:
    model = gated()
    shifted = [x + 3 for x, _ in data()]
    plain, report = sf.bake(model, shifted, recalibrate=True)
    kept, _ = sf.bake(model, shifted, recalibrate=False)
    assert report.norms == ("blocks.1.bn1", "blocks.1.bn2.base")
    changed = [key for key, value in plain.state_dict().items() if not torch.equal(value, kept.state_dict()[key])]
    assert changed == [f"blocks.1.{norm}.running_{kind}" for norm in ("bn1", "bn2") for kind in ("mean", "var")]


def test_auto_keeps_new_statistics_only_where_they_help() -> None:
    model = gated()
    old = model.blocks[1].bn1.running_mean.clone()

    def moved(other: nn.Module) -> float:
        return float((other.blocks[1].bn1.running_mean - old).abs().max())

    shifted = [x + 3 for x, _ in data()]
    _, better = sf.bake(model, shifted, metric=moved, recalibrate="auto")
    assert better.norms
    assert better.recalibrated == better.after
    assert better.recalibrated > 0.1
    _, worse = sf.bake(model, shifted, metric=lambda other: -moved(other), recalibrate="auto")
    assert (worse.norms, worse.recalibrated, worse.after) == ((), None, 0)
    assert any("BatchNorm re-estimated gives" in note for note in worse.notes)
    _, unknown = sf.bake(model, shifted)
    assert unknown.norms == ()
    assert any("without a metric" in note for note in unknown.notes)
    assert torch.equal(model.blocks[1].bn1.running_mean, old)


def test_the_constants_are_trained() -> None:
    model = gated()
    teacher = closeness(model)

    def near(output: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            expected = model_outputs[int(labels[0])]
        return (output - expected).square().mean()

    batches = [(x, torch.full((8,), k)) for k, (x, _) in enumerate(data())]
    with torch.no_grad():
        model_outputs = [model(x) for x, _ in batches]
    before = snapshot(model)
    tune = sf.FineTune(steps=60, lr=0.02, loss=near)
    _, report = sf.bake(model, batches, metric=teacher, recalibrate=False, finetune=tune)
    assert snapshot(model) == before
    assert report.finetuned is not None
    assert report.finetuned > report.constant
    assert report.after == pytest.approx(report.finetuned, abs=1e-6)


def test_constants_that_training_made_worse_are_dropped() -> None:
    model = gated()
    tune = sf.FineTune(steps=5, lr=0.5, loss=lambda output, labels: -output.square().sum())
    plain, report = sf.bake(model, data(), metric=closeness(model), recalibrate=False, finetune=tune)
    assert report.finetuned is None
    assert any("they were dropped" in note for note in report.notes)
    assert error(plain(images()), held(model, means(model), images())) < EXACT


def test_to_asr_starts_where_the_descriptor_says_and_folds() -> None:
    model, x = gated(), images(6, seed=40)
    warm, report = sf.bake(model, data(), to="asr", recalibrate=False)
    assert report.constants == "descriptor"
    assert {site.outcome for site in report.sites} == {"asr"}
    plain, _ = sf.bake(model, data(), constants="descriptor", recalibrate=False)
    with torch.no_grad():
        assert error(warm(x), plain(x)) < EXACT
        assert error(warm(x), held(model, means(model), x)) > 1e-8  # excite is curved
    assert len(sf.scales(warm)) == 2
    warm.train()(x).square().mean().backward()
    assert all(p.grad is not None for name, p in warm.named_parameters() if ".gates." in name)
    folded = sf.fold(warm.eval(), example=x)
    assert list(folded.state_dict()) == list(TinyNet().state_dict())


def test_where_chooses() -> None:
    model = gated()
    for where in ("blocks.0.*", ["blocks.0.*"], lambda name, module: name.startswith("blocks.0")):
        _, report = sf.bake(model, data(), where=where)
        assert [site.name for site in report.baked] == GATES[:1]
        assert report.kept[0].why == "left out by where"


def test_speed_is_measured() -> None:
    _, report = sf.bake(gated(), data(), speed=True)
    assert report.speed is not None
    assert report.speed.before > 0
    assert report.speed.after > 0
    assert report.speed.batch == 8
    assert "speed:" in str(report)


def test_progress_is_told() -> None:
    seen: list[tuple[str, int, int]] = []
    sf.bake(gated(), data(), max_drop=100, finetune=sf.FineTune(steps=3), recalibrate=True,
            progress=lambda *told: seen.append(told))  # fmt: skip
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == [
        "observing the gates", "observing", "each gate alone", "gates together", "BatchNorm statistics",
        "training the constants",
    ]  # fmt: skip
    assert ("gates together", 2, 2) in seen
    assert ("training the constants", 3, 3) in seen


def test_the_report_is_json() -> None:
    _, report = sf.bake(gated(), data(), max_drop=100)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["sites"][0]["name"] == GATES[0]


def test_a_device_and_back() -> None:
    model = gated()
    before = snapshot(model)
    plain, _ = sf.bake(model, data(), device="cpu")
    assert snapshot(model) == before
    assert next(plain.parameters()).device.type == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gates"), [("mobilenetv3_small_100", 9), ("ecaresnet26t", 8)])
def test_timm(name: str, gates: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    model = prepared(timm.create_model(name).double(), x).eval()
    plain, report = sf.bake(model, [(x, torch.arange(4))], max_drop=100)
    assert len(report.baked) == len(report.sites) == gates
    assert report.after == report.constant if report.recalibrated is None else report.recalibrated
    assert not discover(plain, x).gates


# What is refused.


def test_no_attention() -> None:
    model = prepared(TinyNet().double(), images(8))
    for call in (sf.bake, sf.bake_):
        assert_refused(model, lambda call=call: call(model, data()), BakeError, "no channel attention.*nothing to bake")


def test_not_a_module_and_wrapped() -> None:
    with pytest.raises(BakeError, match="bake needs an nn.Module, got str"):
        sf.bake("model", data())
    with pytest.raises(BakeError, match="wrapped in DataParallel: give the bare model"):
        sf.bake(nn.DataParallel(gated()), data())
    with pytest.raises(BakeError, match=r"wrapped in torch.compile, at '0'"):
        sf.bake(nn.Sequential(torch.compile(gated())), data())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"constants": "median"}, r"constants='median': choose one of 'mean', 'descriptor'"),
        ({"to": "onnx"}, r"to='onnx': choose one of 'plain', 'asr'"),
        ({"recalibrate": "yes"}, r"recalibrate='yes': choose one of True, False, 'auto'"),
        ({"max_drop": float("nan")}, "max_drop=nan: give a finite number"),
        ({"max_drop": "1"}, "max_drop='1': give a finite number"),
        ({"metric": 1.0}, "metric is float: give a function"),
        ({"metric": lambda m: 1.0, "validation": []}, "metric= and validation= are both given"),
        ({"finetune": 3}, "finetune is int: give FineTune"),
        ({"finetune": sf.FineTune(), "to": "asr"}, "to='asr' leaves none"),
        ({"where": "layer9.*"}, r"where: 'layer9.\*' selects no gate; the gates are blocks.0.bn2"),
        ({"where": []}, "where: an empty list selects no gate"),
        ({"where": lambda name, module: False}, "the predicate given as where selects no gate"),
    ],
)
def test_options(options: dict[str, Any], match: str) -> None:
    model = gated()
    assert_refused(model, lambda: sf.bake_(model, data(), **options), BakeError, match)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "data holds no batch"),
        (iter([images()]), "data is a list_iterator, which can be read only once"),
        ([images(0)], "data holds no batch"),
        (3, "data: the data is an int"),
        (["a"], "data: batch 0 is a str"),
    ],
)
def test_data_that_is_none(given: Any, match: str) -> None:
    model = gated()
    assert_refused(model, lambda: sf.bake_(model, given), BakeError, match)


def test_labels_where_they_are_needed() -> None:
    model = gated()
    unlabelled = [x for x, _ in data()]
    assert_refused(
        model, lambda: sf.bake_(model, unlabelled, max_drop=1), BakeError, "batch 0 of data has no class numb"
    )
    wrong = [(x, torch.full((8,), 9)) for x in unlabelled]
    assert_refused(model, lambda: sf.bake_(model, wrong), BakeError, "to 9 for logits")
    tune = sf.FineTune(steps=1)
    assert_refused(model, lambda: sf.bake_(model, unlabelled, finetune=tune), BakeError, "no class numbers to train on")


def test_values_that_are_not_finite() -> None:
    model = gated()
    bad = [(x.index_fill(0, torch.tensor([2]), float("nan")), y) for x, y in data()]
    assert_refused(model, lambda: sf.bake_(model, bad), ObserveError, "finite")
    labelled = {"validation": bad}
    assert_refused(
        model, lambda: sf.bake_(model, data(), **labelled), BakeError, "logits for batch 0 of validation are not"
    )
    for value in (float("nan"), None):
        options = {"metric": lambda m, value=value: value}
        assert_refused(
            model, lambda options=options: sf.bake_(model, data(), **options), BakeError, "must be a finite numb"
        )


def test_a_model_without_logits_needs_a_metric() -> None:
    class Maps(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(self.stem(x))

    model = sf.attach(prepared(Maps().double(), images(8)), "se", form="dynamic").eval()
    assert_refused(model, lambda: sf.bake_(model, data()), BakeError, r"not logits \(N, classes\): give metric=")
    _, report = sf.bake(model, data(), metric=lambda m: 1.0)
    assert report.after == 1.0


def test_images_of_the_wrong_size() -> None:
    model = gated()
    wrong = [(torch.randn(4, 5, 6, 6), torch.arange(4))]
    assert_refused(model, lambda: sf.bake_(model, wrong), sf.errors.TraceError, "cannot trace TinyNet")


def test_an_interrupt_at_any_stage_leaves_the_model_as_it_was() -> None:
    stages = ["observing", "each gate alone", "gates together", "training the constants"]
    for stage in stages:
        model = gated()

        def stop(what: str, done: int, total: int, stage: str = stage) -> None:
            if what == stage and done:
                raise KeyboardInterrupt("by hand")

        options = {"max_drop": 100, "finetune": sf.FineTune(steps=2), "recalibrate": True, "progress": stop}
        assert_refused(model, lambda model=model, o=options: sf.bake_(model, data(), **o), KeyboardInterrupt, "by hand")


def test_a_metric_that_fails_on_the_baked_model_leaves_the_model_as_it_was() -> None:
    model = gated()

    def metric(other: nn.Module) -> float:
        if not any(isinstance(module, Site) for module in other.modules()):
            raise ZeroDivisionError("of the user's own")
        return 1.0

    assert_refused(model, lambda: sf.bake_(model, data(), metric=metric), ZeroDivisionError, "of the user's own")


def test_a_gate_that_no_module_returns_is_left_with_the_reason() -> None:
    class Inline(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            y = self.blocks(self.stem(x))
            return self.head((y * torch.sigmoid(y.mean((2, 3)))[:, :, None, None]).mean((2, 3)))

    model = prepared(Inline().double(), images(8)).eval()
    assert_refused(
        model, lambda: sf.bake_(model, data()), BakeError, "none of the 1 gates can be baked.*no module returns"
    )


def test_a_site_that_is_the_model_cannot_be_replaced_in_place() -> None:
    model = sf.attach(nn.Conv2d(3, 8, 3).double(), "se", form="dynamic", where="affine").eval()
    with pytest.raises(BakeError, match="cannot be replaced in place: use bake"):
        sf.bake_(model, images(4))
    plain, _ = sf.bake(model, images(4))
    assert type(plain) is nn.Conv2d


def test_a_model_that_cannot_be_copied() -> None:
    class Stuck(TinyNet):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("holds a lock")

    model = sf.attach_(prepared(Stuck().double(), images(8)), "se", form="dynamic").eval()
    assert_refused(model, lambda: sf.bake_(model, data()), BakeError, r"Stuck cannot be copied \(holds a lock\)")


class Normalising(nn.Module):
    """Writes into its images before it uses them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(0.5).div_(0.5))


def test_images_that_the_model_writes_into_are_the_same_in_every_pass() -> None:
    batches = data()
    plain, report = sf.bake(Normalising(gated()).eval(), batches, max_drop=100.0)
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(batches, data(), strict=True))
    outside = [((x - 0.5) / 0.5, labels) for x, labels in data()]
    wanted, other = sf.bake(gated(), outside, max_drop=100.0)
    assert (report.before, report.constant) == (other.before, other.constant)
    assert error(plain(images()), wanted((images() - 0.5) / 0.5)) <= EXACT


class ScriptedStem(nn.Module):
    """A scripted part, which takes no hooks, in front of a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()))
        self.conv, self.norm, self.gate = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), SqueezeExcite(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gate(self.norm(self.conv(self.stem(x)))).mean((2, 3)))


def test_a_scripted_part_takes_no_hook() -> None:
    torch.manual_seed(0)
    model = ScriptedStem().eval()
    inputs = torch.randn(8, 3, 6, 6)
    _, report = sf.bake(model, [inputs], metric=lambda other: float(other(inputs).mean()))
    assert len(report.baked) == 1
