"""Settle, then bake: constants are trained with all weights, and baking them loses nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.baking.settle_options import WAYS
from stripefold.errors import BakeError
from stripefold.stripe.discover import discover
from tests.baking.nets import SE, C, GateOnly, Net, before_conv, before_sum, functional, own_product


class Twice(nn.Module):
    """Two gates, one of each place where a constant can go."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Net(before_conv, se=SE())
        self.second = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C), SE(), nn.Flatten())
        self.out = nn.Linear(C * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.out(self.second(x))  # type: ignore[no-any-return]


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Twice().eval()


def moving_net() -> nn.Module:
    """One whose gates answer to the image, with the statistics of its data."""
    model = net().train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SE):
                module.fc1.weight.mul_(20)
                module.fc2.weight.mul_(20)
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        for x, _ in data():
            model(x)
    return model.eval()


def data(batches: int = 3, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, 3, 8, 8, generator=generator), torch.randint(4, (size,), generator=generator))
        for _ in range(batches)
    ]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_ends_in_constants_that_bake_without_loss(way: Any) -> None:
    model = net()
    before = weights(model)
    baked, report = sf.bake(model, data(), settle=sf.Settle(steps=7, way=way, lr=0.05))
    assert same(weights(model), before)  # the user's model stays
    assert not discover(baked, data()[0][0]).gates
    assert len(report.folded) == 2
    assert report.after == pytest.approx(report.settled, abs=1e-6)
    assert report.settle == f"{way}, 7 steps"
    assert "settled" in str(report)


def test_the_weights_are_trained_and_the_loss_falls() -> None:
    model = net()

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            return -sum(F.cross_entropy(network(x), y).item() for x, y in data())

    _, still = sf.bake(model, data(), metric=loss, recalibrate=False)
    _, report = sf.bake(model, data(), metric=loss, settle=sf.Settle(steps=30, lr=0.05))
    assert report.constant == pytest.approx(still.after)
    assert report.settled is not None
    assert report.before is not None
    assert report.settled > report.before + 0.5  # beyond what the gates ever gave


@pytest.mark.parametrize("body", ["whole", "gate", "beside"])
def test_gates_however_they_are_written(body: str) -> None:
    torch.manual_seed(1)
    model = {
        "whole": lambda: Net(before_conv, se=SE()),
        "gate": lambda: Net(own_product, gate=GateOnly()),
        "beside": lambda: Net(before_sum, se=SE()),
    }[body]()
    baked, report = sf.bake(model.eval(), data(), settle=sf.Settle(steps=4, way="ramp"))
    assert len(report.baked) == 1
    assert not discover(baked, data()[0][0]).gates


def test_a_gate_with_a_function_behind_the_last_module() -> None:
    torch.manual_seed(1)
    model = Net(functional, fc=nn.Linear(C, C)).eval()
    with pytest.raises(BakeError, match="none of the 1 gates can be baked"):  # it pools by a function: refused, as ever
        sf.bake(model, data(), settle=sf.Settle(steps=4))


def test_in_place_gives_the_model_the_trained_weights() -> None:
    model, other = net(), net()
    baked, _ = sf.bake(model, data(), settle=sf.Settle(steps=5))
    sf.bake_(other, data(), settle=sf.Settle(steps=5))
    assert same(weights(other), weights(baked))


def test_a_copy_that_is_refused_leaves_the_model_as_it_was() -> None:
    model = net()
    before = weights(model)
    with pytest.raises(BakeError, match="breaks the budget"):
        sf.bake_(model, data(), max_drop=-1000, settle=sf.Settle(steps=3, lr=0.05))
    assert same(weights(model), before)


def test_frozen_weights_stay() -> None:
    model = net()
    model.get_submodule("out").requires_grad_(False)
    baked, _ = sf.bake(model, data(), settle=sf.Settle(steps=5, lr=0.1))
    moved = model.get_parameter("first.out.weight")
    assert not torch.equal(baked.get_parameter("first.out.weight"), moved)
    assert torch.equal(baked.get_parameter("out.bias"), model.get_parameter("out.bias"))


def test_without_labels_it_learns_from_itself() -> None:
    model = moving_net()
    images = [x for x, _ in data()]

    def agreement(network: nn.Module) -> float:
        with torch.no_grad():
            return -sum(float((network(x) - model(x)).square().mean()) for x in images)

    options = sf.Settle(steps=60, lr=0.02, distill=1.0, divergence=F.mse_loss)
    _, report = sf.bake(model, images, metric=agreement, settle=options)
    assert report.constant is not None
    assert report.settled is not None
    assert report.settled > report.constant
    with pytest.raises(BakeError, match="has no class numbers to train on"):
        sf.bake(model, images, settle=sf.Settle(steps=2))


def test_targets_of_any_form_reach_a_loss_of_the_users() -> None:
    model = net()
    seen: list[Any] = []

    def loss(output: Tensor, targets: Any) -> Tensor:
        seen.append(targets)
        return (output - targets["map"][0]).square().mean()

    batches = [(x, {"map": [torch.zeros(8, 4)], "name": "a"}) for x, _ in data()]
    sf.bake(model, batches, settle=sf.Settle(steps=2, loss=loss))
    assert seen[0]["name"] == "a"


class Dictionary(nn.Module):
    """A model whose output is no matrix of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(before_conv, se=SE())

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.net(x)
        return {"maps": [y, y * 2], "n": len(x)}


def test_distillation_of_any_output() -> None:
    torch.manual_seed(0)
    model = Dictionary().eval()
    images = [x for x, _ in data()]
    _, report = sf.bake(model, images, settle=sf.Settle(steps=3, distill=1.0))
    assert len(report.baked) == 1


def test_a_divergence_of_the_users() -> None:
    called: list[int] = []

    def apart(output: Tensor, given: Tensor) -> Tensor:
        called.append(1)
        return (output - given).abs().mean()

    sf.bake(net(), [x for x, _ in data()], settle=sf.Settle(steps=3, distill=1.0, divergence=apart))
    assert len(called) == 3


def test_an_optimizer_and_a_schedule_of_the_users() -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append(torch.optim.AdamW(groups, lr=1e-3))
        return made[0]

    rates: list[float] = []

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        def factor(step: int) -> float:
            rates.append(step)
            return 1 / (step + 1)

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    options = sf.Settle(steps=3, optimizer=optimizer, schedule=schedule, constants_rate=10)
    sf.bake(net(), data(), settle=options)
    weights_group, constants_group = made[0].param_groups
    assert constants_group["initial_lr"] == pytest.approx(10 * weights_group["initial_lr"])
    assert constants_group["weight_decay"] == 0
    assert max(rates) == 3


class TakesTargets(nn.Module):
    """Gives its own losses while it trains, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(before_conv, se=SE())

    def forward(self, x: Tensor, targets: Tensor) -> Any:
        y = self.net(x)
        return {"loss": F.cross_entropy(y, targets)} if self.training else y


def test_a_model_that_takes_its_targets_among_its_inputs() -> None:
    torch.manual_seed(0)
    options = sf.Settle(steps=3, loss=lambda output, targets: output["loss"])
    _, report = sf.bake(TakesTargets().eval(), data(), example=data()[0], settle=options)
    assert len(report.baked) == 1


@pytest.mark.parametrize("form", ["fx", "exported"])
def test_graphs_settle_too(form: str) -> None:
    torch.manual_seed(0)
    eager, x = Net(before_conv, se=SE()).eval(), data()[0][0]
    batch = ({0: torch.export.Dim("batch", min=2)},)
    graph: nn.Module = torch.fx.symbolic_trace(eager)
    if form == "exported":  # its norms stay as they were exported
        graph = torch.export.export(eager, (x,), dynamic_shapes=batch).module()
    before = weights(graph)
    baked, report = sf.bake(graph, data(), settle=sf.Settle(steps=3))
    assert same(weights(graph), before)
    assert len(report.baked) == 1
    assert report.after == pytest.approx(report.settled)
    assert not discover(baked, x).gates


class NoTraining(Net):
    def train(self, mode: bool = True) -> NoTraining:
        if mode:
            raise NotImplementedError("calling train() is not supported")
        super().train(mode)
        return self


def test_a_model_that_cannot_train() -> None:
    with pytest.raises(BakeError, match=r"training mode \(calling train\(\) is not supported\): settle the model"):
        sf.bake(NoTraining(before_conv, se=SE()).eval(), data(), settle=sf.Settle(steps=3))


# Interrupted and gone on with.


class Killed(Exception):
    pass


class Shuffled(torch.utils.data.Dataset[Any]):
    """Augmented by torch's random numbers."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, 8, 8, generator=generator) + 0.1 * torch.randn(()), index % 4


class WithDropout(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.3, self.training)


def settled(checkpoint: Path | None, kill_at: int | None = None, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = WithDropout().eval()
    torch.manual_seed(99 if kill_at is None else 5)  # what was drawn before does not matter

    def progress(what: str, done: int, total: int) -> None:
        if what == "settling" and done == kill_at:
            raise Killed

    settle = sf.Settle(steps=12, every=2, lr=0.05, checkpoint=checkpoint, **options)
    baked, _ = sf.bake(model, data(), settle=settle, progress=progress)
    return weights(baked)


def shuffled(**options: Any) -> Any:
    return torch.utils.data.DataLoader(Shuffled(), batch_size=8, shuffle=True, **options)


@pytest.mark.parametrize("way", ["first", "staged", "asr"])
@pytest.mark.parametrize("kill_at", [3, 5, 11])
def test_killed_and_gone_on_with_bit_by_bit(tmp_path: Path, way: Any, kill_at: int) -> None:
    path = tmp_path / "settle.pt"
    whole = settled(None, data=shuffled(), way=way)
    with pytest.raises(Killed):
        settled(path, kill_at, data=shuffled(), way=way)
    assert path.exists()
    assert same(settled(path, data=shuffled(), way=way), whole)


def test_a_loader_with_a_generator_of_its_own_goes_on_too(tmp_path: Path) -> None:
    def loader() -> Any:
        return shuffled(generator=torch.Generator().manual_seed(3))

    path = tmp_path / "settle.pt"
    whole = settled(None, data=loader())
    with pytest.raises(Killed):
        settled(path, 7, data=loader())
    assert same(settled(path, data=loader()), whole)


class Counting:
    """Gives other batches each time it is read."""

    def __init__(self, *, told: bool) -> None:
        self.epoch = 0
        if told:
            self.set_epoch = self._set_epoch

    def _set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter([(x + epoch, y) for x, y in data()])


def test_a_loader_that_is_told_its_epoch(tmp_path: Path) -> None:
    path = tmp_path / "settle.pt"
    whole = settled(None, data=Counting(told=True))
    with pytest.raises(Killed):
        settled(path, 9, data=Counting(told=True))
    assert same(settled(path, data=Counting(told=True)), whole)


def test_a_loader_that_counts_for_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settle.pt"
    with pytest.raises(Killed):
        settled(path, 9, data=Counting(told=False))
    with pytest.raises(BakeError, match="come in another order than when"):
        settled(path, data=Counting(told=False))


def test_a_finished_checkpoint_is_not_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "settle.pt"
    first = settled(path, data=shuffled())
    assert same(settled(path, 1, data=shuffled()), first)  # no step is made, so that nothing kills it


@pytest.mark.parametrize(
    ("change", "said"),
    [({"lr": 0.1}, "lr 0.05, now 0.1"), ({"way": "ramp"}, "way 'first', now 'ramp'"), ({"seed": 3}, "seed 0, now 3")],
)
def test_a_checkpoint_of_another_training(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "settle.pt"
    options = {"steps": 2, "lr": 0.05, "checkpoint": path}
    sf.bake(net(), data(), settle=sf.Settle(**options))  # type: ignore[arg-type]
    with pytest.raises(BakeError, match=f"is of another training \\({said}"):
        sf.bake(net(), data(), settle=sf.Settle(**{**options, **change}))  # type: ignore[arg-type]


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    options = sf.Settle(steps=2, checkpoint=tmp_path / "settle.pt")
    sf.bake(net(), data(), settle=options)
    with pytest.raises(BakeError, match="is of another training \\(network"):
        sf.bake(net(seed=1), data(), settle=options)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"])
def test_a_damaged_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settle.pt"
    path.write_bytes(content)
    with pytest.raises(BakeError, match="is no checkpoint that can be read"):
        sf.bake(net(), data(), settle=sf.Settle(steps=2, checkpoint=path))


def test_a_checkpoint_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BakeError, match="cannot write .*is the folder there"):
        sf.bake(net(), data(), settle=sf.Settle(steps=2, checkpoint=tmp_path / "none" / "settle.pt"))


# What cannot work.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"every": True}, "every must be an integer of at least 1"),
        ({"lr": float("nan")}, "lr must be a positive finite number"),
        ({"constants_rate": -1}, "constants_rate must be a positive finite number"),
        ({"penalty": 0}, "penalty must be a positive finite number"),
        ({"way": "slowly"}, "choose one of 'first', 'ramp'"),
        ({"over": 0}, "over must be a share of the steps"),
        ({"distill": 1.5}, "distill must be a share of the loss"),
        ({"autocast": torch.float16}, "float16 needs scaled losses"),
        ({"optimizer": 3}, "optimizer is int: give a function"),
        ({"divergence": F.mse_loss}, "distill=0 uses none"),
        ({"loss": F.mse_loss, "distill": 1}, "distill=1 uses none"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BakeError, match=said):
        sf.Settle(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"settle": 5}, "settle is int: give Settle"),
        ({"finetune": sf.FineTune()}, "give one of the two"),
        ({"to": "asr"}, r"give Settle\(way='asr'\)"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BakeError, match=said):
        sf.bake(net(), data(), **{"settle": sf.Settle(steps=1), **options})


def test_a_loss_that_explodes() -> None:
    options = sf.Settle(steps=3, loss=lambda output, targets: output.sum() * float("inf"))
    with pytest.raises(BakeError, match=r"settle: the loss is -?(inf|nan) at step 1"):
        sf.bake(net(), data(), settle=options)


@pytest.mark.parametrize("loss", [lambda output, targets: 1.0, lambda output, targets: output])
def test_a_loss_that_is_no_scalar(loss: Any) -> None:
    with pytest.raises(BakeError, match=r"settle: the loss .* must be a scalar tensor that depends on the weights"):
        sf.bake(net(), data(), settle=sf.Settle(steps=1, loss=loss))


class Moody(nn.Module):
    """Its output has another structure while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(before_conv, se=SE())

    def forward(self, x: Tensor) -> Any:
        y = self.net(x)
        return [y, y] if self.training else y


def test_outputs_that_cannot_be_compared() -> None:
    torch.manual_seed(0)
    with pytest.raises(BakeError, match="cannot be compared .*give divergence="):
        sf.bake(Moody().eval(), [x for x, _ in data()], settle=sf.Settle(steps=1, distill=1.0))


def test_the_control_trains_the_attention_alone() -> None:
    """Without gates the same loop is the control: no constant, every weight trained."""
    from stripefold.baking.batches import Batches
    from stripefold.baking.settle import Settling

    model = net()
    before = copy.deepcopy(model)
    found = Settling(model, (), {}, sf.Settle(steps=3, lr=0.1), Batches(data(), "data", model)).run()
    assert found == {}
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert "first.se.fc1.weight" in moved
    assert len(discover(model, data()[0][0]).gates) == 2


def test_nothing_to_train() -> None:
    from stripefold.baking.batches import Batches
    from stripefold.baking.settle import Settling

    model = net().requires_grad_(False)
    with pytest.raises(BakeError, match="no parameter of the model needs a gradient"):
        Settling(model, (), {}, sf.Settle(), Batches(data(), "data", model))
