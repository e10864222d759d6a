"""The dynamic form of dia: one cell for all sites of a width, its state handed on within one forward and no further."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import stripefold as sf
from stripefold.asr.chain import StateChain
from stripefold.asr.gate import DynamicGate
from stripefold.attention import ChannelAttention
from stripefold.attention.registry import _ATTENTIONS
from stripefold.errors import AttachError, BakeError, ChainError
from stripefold_lab import create_model
from tests.lifecycle import Block, TinyNet, error, images, prepared, scatter_, step_, tiny

EXACT = 1e-10
SKIPPED = "'blocks.{}.bn2' ran without the state of 'blocks.{}.bn2': .*once each, in the order.*checkpointing"


class Cell(nn.Module):
    """The reference: DIANet's LSTM as its paper writes it, without anything of stripefold."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input1, self.input2 = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, 4 * channels)
        self.hidden1, self.hidden2 = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, 4 * channels)

    def forward(self, y: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.input2(torch.relu(self.input1(y))) + self.hidden2(torch.relu(self.hidden1(h)))
        n = y.shape[1]
        i, f, g, o = gates[:, :n], gates[:, n : 2 * n], gates[:, 2 * n : 3 * n], gates[:, 3 * n :]
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.sigmoid(c), c


class Reference(nn.Module):
    """ResNet-20 with one cell for each stage, in a forward of its own."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.net = backbone
        self.cells = nn.ModuleList(Cell(width) for width in (16, 32, 64))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.net.bn1(self.net.conv1(x)))
        for stage, cell in zip((self.net.layer1, self.net.layer2, self.net.layer3), self.cells, strict=True):
            h = c = None
            for block in stage:
                shortcut = x if block.downsample is None else block.downsample(x)
                branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
                if h is None:
                    h = c = torch.zeros(branch.shape[:2], dtype=x.dtype)
                h, c = cell(branch.mean((2, 3)), h, c)
                x = torch.relu(branch * h[:, :, None, None] + shortcut)
        return self.net.fc(x.mean((2, 3)))


LAYERS = {
    "from_descriptor.reduce": "input1",
    "from_descriptor.expand": "input2",
    "from_state.reduce": "hidden1",
    "from_state.expand": "hidden2",
}


def pairs(model: nn.Module, reference: Reference) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
    """(name, ours, the reference's) for every parameter of both."""
    theirs = dict(reference.named_parameters())
    found = []
    for name, ours in model.named_parameters():
        key = f"net.{name.replace('.bn2.base.', '.bn2.')}"
        if ".gates." in name:
            stage, layer, kind = int(name[5]) - 1, *name.partition(".attention.")[2].rsplit(".", 1)
            key = f"cells.{stage}.{LAYERS[layer]}.{kind}"
        found.append((name, ours, theirs.pop(key)))
    assert not theirs
    return found


def farthest(found: list[tuple[str, Tensor, Tensor]]) -> float:
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for _, a, b in found)


def both() -> tuple[nn.Module, Reference]:
    """Our network and the reference, with the same numbers."""
    torch.manual_seed(0)
    backbone = prepared(create_model("resnet20").double(), torch.randn(8, 3, 16, 16).double())
    model = scatter_(sf.attach(backbone, "dia", form="dynamic")).train()
    reference = Reference(sf.detach(model)).double().train()
    with torch.no_grad():
        for _, ours, theirs in pairs(model, reference):
            theirs.copy_(ours)
    return model, reference


def test_values_and_gradients_are_the_references_over_several_steps() -> None:
    model, reference = both()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, reference)]
    for batch in (6, 3, 5):  # of any size
        x = torch.randn(batch, 3, 16, 16).double()
        outputs = []
        for each, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(each(x))
            outputs[-1].square().mean().backward()
        assert error(*outputs) < EXACT
        assert farthest([(n, a.grad, b.grad) for n, a, b in pairs(model, reference)]) < EXACT
        assert all(bool(cell.hidden1.weight.grad.any()) for cell in reference.cells)  # the state takes part
        for optimizer in optimizers:
            optimizer.step()
        assert farthest([(n, a.detach(), b.detach()) for n, a, b in pairs(model, reference)]) < EXACT
    x = torch.randn(4, 3, 16, 16).double()
    expected = reference.eval()(x)
    assert error(model.eval()(x), expected) < EXACT
    for gate in gates_of(model):
        gate.position = 0
    assert error(model(x), expected) > 1e-4  # the control: every site starting anew


def test_one_cell_for_each_width() -> None:
    backbone = create_model("resnet20")
    model = sf.attach(backbone, "dia", form="dynamic")
    count = [sum(p.numel() for p in m.parameters()) for m in (backbone, model)]
    cell = {c: 2 * (5 * c * (c // 4) + c // 4 + 4 * c) for c in (16, 32, 64)}
    assert count[1] - count[0] == sum(cell.values()) == 14392
    gates = gates_of(model)
    assert [gate.position for gate in gates] == [0, 1, 2] * 3
    assert [len({id(g.attention) for g in gates}), len({id(g.chain) for g in gates})] == [3, 3]


def dynamic(blocks: int = 2, model: nn.Module | None = None) -> nn.Module:
    """A prepared network of this many blocks with a dynamic chain along them."""
    torch.manual_seed(0)
    model = TinyNet() if model is None else model
    for _ in range(blocks - 2):
        model.blocks.append(Block(8))
    backbone = prepared(model.double(), images(8))
    return scatter_(sf.attach(backbone, "dia", form="dynamic")).train()


def gates_of(model: nn.Module) -> list[DynamicGate]:
    return [module for module in model.modules() if isinstance(module, DynamicGate)]


def left(model: nn.Module) -> list[object]:
    return [
        state for chain in {m.chain for m in model.modules() if isinstance(m, DynamicGate)} for state in chain._left
    ]


def test_every_forward_starts_anew_and_leaves_nothing() -> None:
    model = dynamic(3).eval()
    expected = model(images())
    model(images(7, seed=5))
    assert torch.equal(model(images()), expected)
    assert left(model) == []
    assert error(model(images(8)[:4]), model(images(8))[:4]) < 1e-12


def test_nothing_keeps_the_graph_of_a_forward() -> None:
    model = dynamic(3)
    kept: list[weakref.ref[Tensor]] = []
    model.blocks[0].bn2.gates[0].register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    model(images()).sum().backward()
    gc.collect()
    assert kept[0]() is None


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_after_a_step_and_in_the_middle_of_a_forward(copied: str) -> None:
    model = step_(dynamic(3), images())
    model.eval()
    model.blocks[0](model.stem(images()))  # a part of a forward: the first site leaves a state
    assert len(left(model)) == 1
    other = _copy(model, copied)
    assert left(other) == []
    assert set(other.state_dict()) == set(model.state_dict())
    assert error(other(images()), model(images())) == 0
    chains = {id(gate.chain) for gate in gates_of(other)}
    hooks = {id(h.__self__) for m in other.modules() for h in m._forward_pre_hooks.values()}
    assert chains == hooks
    assert chains.isdisjoint({id(gate.chain) for gate in gates_of(model)})
    step_(other.train(), images())
    assert error(other.eval()(images()), model(images())) > 1e-6


def _copy(model: nn.Module, way: str) -> nn.Module:
    if way == "deepcopy":
        return copy.deepcopy(model)
    if way == "pickle":
        return pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_state_dict_round_trip() -> None:
    model, other = step_(dynamic(3), images()), sf.attach(sf.detach(dynamic(3)), "dia", form="dynamic")
    assert not any("chain" in key for key in model.state_dict())
    other.load_state_dict(model.state_dict())
    assert error(other.eval()(images()), model.eval()(images())) == 0


class Skipping(TinyNet):
    """Runs the blocks it is told to."""

    run: tuple[int, ...] = (0, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k in self.run:
            x = self.blocks[k](x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("run", "match"),
    [
        ((0, 2), SKIPPED.format(2, 1)),
        ((1, 2), SKIPPED.format(1, 0)),
        ((2,), SKIPPED.format(2, 1)),
        ((1, 0, 2), SKIPPED.format(1, 0)),
        ((0, 1, 1, 2), SKIPPED.format(1, 0)),
    ],
)
@pytest.mark.parametrize("before", [(0, 1, 2), (0,), (0, 1)])
def test_a_skipped_site_is_never_stood_in_for_by_another_forward(
    before: tuple[int, ...], run: tuple[int, ...], match: str
) -> None:
    """Whatever the forward before was, one that stopped early among them."""
    model = dynamic(3, Skipping()).eval()
    expected = model(images())
    model.run = before
    model(images())
    model.run = run
    with pytest.raises(ChainError, match=match):
        model(images())
    model.run = (0, 1, 2)
    assert torch.equal(model(images()), expected)


def test_leaving_early_is_allowed() -> None:
    model = dynamic(3, Skipping())
    whole = copy.deepcopy(model)
    whole.blocks = whole.blocks[:2]
    whole.run = model.run = (0, 1)
    assert torch.equal(model(images()), whole(images()))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is None)
    model.run = (0, 1, 2)
    step_(model, images())


def test_other_samples_are_refused() -> None:
    class Doubling(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks[0](self.stem(x))
            return self.head(self.blocks[1](torch.cat([x, x])).mean((2, 3)))

    unlike = "'blocks.1.bn2' ran on {} samples and 'blocks.0.bn2', .*, on {}: .*the same"
    with pytest.raises(AttachError, match="once its layers carry gates: " + unlike.format(4, 2)):
        dynamic(2, Doubling())
    unknown = Doubling()
    unknown.input_size = None  # so that attaching has nothing to run
    model = sf.attach(unknown.double(), "dia", form="dynamic", where="blocks.*.bn2")
    with pytest.raises(ChainError, match=unlike.format(8, 4)):
        model(images())


class Checkpointed(TinyNet):
    """Recomputes single blocks, or all of them together."""

    way: tuple[str, bool] | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.way is None:
            x = self.blocks(x)
        elif self.way[0] == "chain":
            x = checkpoint(self.blocks, x, use_reentrant=self.way[1])
        else:
            for k, block in enumerate(self.blocks):
                apart = self.way[0] == "blocks" or k == 0
                x = checkpoint(block, x, use_reentrant=self.way[1]) if apart else block(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("way", [("chain", False), ("chain", True), ("first block", False)])
def test_checkpointing_the_whole_chain_is_right(way: tuple[str, bool]) -> None:
    model = dynamic(3, Checkpointed())
    plain = copy.deepcopy(model)
    model.way = way
    calls: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    step_(model, images())
    step_(plain, images())
    assert len(calls) == 2  # the control: it was recomputed
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert float((parameter - other).detach().abs().max()) < 1e-12, name


@pytest.mark.parametrize(
    ("way", "match"),
    [
        (("blocks", False), SKIPPED.format(2, 1)),
        (("blocks", True), SKIPPED.format(2, 1)),
        (("first block", True), "'blocks.0.bn2' ran without gradients and 'blocks.1.bn2', .*use_reentrant=False"),
    ],
)
def test_checkpointing_a_part_of_a_chain_is_refused(way: tuple[str, bool], match: str) -> None:
    model = dynamic(3, Checkpointed())
    model.way = way
    with pytest.raises(ChainError, match=match):
        model(images()).square().mean().backward()
    model.way = None
    step_(model, images())


def test_what_a_backward_pass_recomputed_is_no_part_of_a_forward() -> None:
    model = dynamic(3, Checkpointed())
    model.way = ("first block", False)
    model(images()).square().mean().backward()
    assert len(left(model)) == 1  # of the first block, which ran once more
    with pytest.raises(ChainError, match=SKIPPED.format(1, 0)):
        model.blocks[1](model.stem(images()))


def test_threads_do_not_meet() -> None:
    """One network serves several threads at once, as any other does; each waits for the other in mid-chain."""
    model = dynamic(3).eval()
    inputs = [images(4, seed=seed) for seed in range(2)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    meet = threading.Barrier(2)
    for block in model.blocks:
        block.register_forward_hook(lambda *_: (meet.wait(30), None)[1])

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_traced_compiled_and_exported_it_is_the_same() -> None:
    torch._dynamo.reset()
    model = dynamic(2).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    runs = {
        "compile": torch.compile(model, backend="aot_eager", fullgraph=True),
        "export": torch.export.export(model, (images(),), dynamic_shapes=({0: batch},), strict=False).module(),
        "fx": fx.symbolic_trace(model),
    }
    for name, run in runs.items():
        for size in (4,) if name == "compile" else (4, 7):
            assert error(run(images(size)), model(images(size))) < 1e-12, name
    assert left(model) == []
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_jit_trace() -> None:
    model = dynamic(3).eval()
    traced = torch.jit.trace(model, images())
    assert error(traced(images(7)), model(images(7))) < 1e-12


def test_channels_of_another_axis_are_another_chain() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).movedim(1, -1))

    model = sf.attach(Mixed(), "dia", form="dynamic", where="affine")
    assert [len(gate.chain.sites) for gate in gates_of(model)] == [1, 1]
    assert not any(module._forward_pre_hooks for module in model.modules())  # nothing is ever handed on
    assert model(torch.randn(2, 3, 5, 5)).shape == (2, 5, 5, 8)


def test_beside_static_gates_and_taken_off() -> None:
    model = scatter_(sf.attach(dynamic(3), "dia"))
    step_(model, images())
    folded, report = sf.fold(model, report=True)
    assert (len(report.folded), len(report.left)) == (3, 3)
    assert error(folded.eval()(images()), model.eval()(images())) < EXACT
    bare = sf.detach(folded)
    assert not any(module._forward_pre_hooks for module in bare.modules())
    assert not any(isinstance(value, StateChain) for module in bare.modules() for value in vars(module).values())
    assert error(bare(images()), model(images())) > 1e-3


def test_an_adapter_keeps_the_order_of_the_chain(tmp_path: Path) -> None:
    """The order in which sites run, not the one in which they are registered."""

    class Reversed(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            first, second = self.blocks
            del self.blocks
            self.second, self.first = second, first

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))

    torch.manual_seed(0)
    backbone = prepared(Reversed().double(), images(8)).eval()
    for form in ("static", "dynamic"):
        model = scatter_(sf.attach(backbone, "dia", form=form)).eval()
        sf.save_adapter(model, tmp_path / form)
        other = sf.load_adapter(backbone, tmp_path / form).eval()
        assert error(other(images()), model(images())) == 0, form
        assert error(model(images()), backbone(images())) > 1e-4


def test_baking_whole_chains_or_from_their_end() -> None:
    model, x = dynamic(3).eval(), images(8)
    labelled = [(x, torch.zeros(8, dtype=torch.long))]
    baked, report = sf.bake(model, [x])
    assert [site.outcome for site in report.sites] == ["folded"] * 3
    assert not any(type(module).__module__.startswith("stripefold") for module in baked.modules())
    assert not any(module._forward_pre_hooks for module in baked.modules())
    rest, report = sf.bake(model, [x], where=["blocks.1*", "blocks.2*"])
    assert [site.outcome for site in report.sites] == ["dynamic", "folded", "folded"]
    assert rest(x).shape == baked(x).shape
    assert left(rest) == []  # the chain ends where its sites do
    _, report = sf.bake(model, [x], where=["blocks.0*", "blocks.2*"])
    assert [site.outcome for site in report.sites] == ["dynamic", "dynamic", "folded"]
    assert "'blocks.1.bn2' stays dynamic and takes its state: bake the whole chain" in report.sites[0].why
    with pytest.raises(BakeError, match="'blocks.1.bn2' stays dynamic and takes its state"):
        sf.bake(model, [x], where="blocks.0*")
    _, report = sf.bake(model, labelled, max_drop=100)
    assert [site.outcome for site in report.sites] == ["folded"] * 3


def test_a_chained_attention_without_a_dynamic_form() -> None:
    class Rung(ChannelAttention):
        chained = True
        squeezes = excites = source = "this test"

        def squeeze(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

        def excite(self, descriptor: Tensor) -> Tensor:
            return descriptor

    sf.register_attention("rung", Rung)
    try:
        with pytest.raises(AttachError, match="'rung' is chained and has no forward_chained"):
            sf.attach(tiny(), "rung", form="dynamic")
    finally:
        _ATTENTIONS.pop("rung")
