"""Random networks: every public call right or refused, nothing of the user's touched; and controls of the checks."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn

import stripefold as sf
from tests.grammar.calls import CHECKS
from tests.grammar.check import Subject, attempt, faults, loaded_from
from tests.grammar.network import EVERY, Network, network
from tests.grammar.opened import OPEN, is_open
from tests.grammar.run import chosen, findings_of
from tests.grammar.state import State, ordinary_run
from tests.grammar.types import HEADS, STEMS

SAMPLE, SWEEP = 60, 2000
PIECES = [name for name, piece in EVERY.items() if piece not in (*STEMS, *HEADS)]


def told(subject: Network, seed: int, wanted: tuple[str, ...] = (), checks: tuple[str, ...] = ()) -> str:
    """Every fault that is not known to be open, with the network; empty where there is none."""
    found = faults(findings_of(seed, checks or chosen(seed), wanted))
    new = [f"{finding.verdict} {finding.call}: {finding.detail}" for finding in found if not is_open(subject, finding)]
    return "\n".join([*new, str(subject)]) if new else ""


@pytest.mark.parametrize("seed", range(SAMPLE))
def test_sample(seed: int) -> None:
    assert told(network(seed), seed) == ""


@pytest.mark.zoo
@pytest.mark.parametrize("first", range(SAMPLE, SWEEP + SAMPLE, 20))
def test_sweep(first: int) -> None:
    broken = [told(network(seed), seed) for seed in range(first, first + 20)]
    assert "\n".join(filter(None, broken)) == ""


@pytest.mark.zoo
@pytest.mark.parametrize("name", PIECES)
def test_each_piece(name: str) -> None:
    broken = [told(network(seed, [name]), seed, (name,), tuple(CHECKS)) for seed in range(3)]
    assert "\n".join(filter(None, broken)) == ""


@pytest.mark.zoo
@pytest.mark.parametrize("name", sorted(OPEN))
def test_what_is_open_is_open(name: str) -> None:
    """A row of OPEN whose fault is mended has to go."""
    seen = {finding.call for seed in range(6) for finding in faults(findings_of(seed, wanted=(name,)))}
    assert any(call.startswith(OPEN[name].calls) for call in seen)


def test_a_seed_is_a_network() -> None:
    assert network(7).source == network(7).source != network(8).source
    with loaded_from(network(7)) as one, loaded_from(network(7)) as two:
        state, other = one.net.state_dict(), two.net.state_dict()
        assert all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("name", PIECES)
def test_every_piece_runs(name: str) -> None:
    for seed in range(4):
        with loaded_from(network(seed, [name])) as loaded:
            ordinary_run(loaded)


def plain() -> Network:
    return network(2, ["conv_norm", "residual"])


def test_the_comparison_sees_a_wrong_weight() -> None:
    subject = Subject.of(plain())
    with loaded_from(subject.network) as loaded:
        wrong = copy.deepcopy(loaded.net)
        with torch.no_grad():
            next(wrong.parameters())[0] += 1e-6
        assert not subject.compare("fuse", wrong, subject.truth, loaded)
        assert subject.compare("fuse", loaded.net, subject.truth, loaded)
    assert [finding.verdict for finding in subject.findings] == ["wrong", "right"]


def test_the_comparison_sees_a_structure() -> None:
    subject = Subject.of(plain())
    with loaded_from(subject.network) as loaded:
        loaded.net.head = nn.Identity()
        assert not subject.compare("fuse", loaded.net, subject.truth, loaded)


@pytest.mark.parametrize(
    ("steps", "change"),
    [
        ("conv_norm", lambda net: net.norm1.running_mean.add_(1e-12)),
        ("conv_norm", lambda net: net.norm1.train()),
        ("conv_norm", lambda net: setattr(net, "norm1", copy.deepcopy(net.norm1))),
        ("conv_norm", lambda net: net.conv1.register_forward_hook(lambda *a: None)),
        ("conv_norm", lambda net: setattr(net.conv1, "weight", nn.Parameter(net.conv1.weight.detach().clone()))),
        ("conv_norm", lambda net: net.conv1.weight.requires_grad_(False)),
        ("conv_norm", lambda net: setattr(net, "note", 1)),
        ("cache_in_object", lambda net: net.grid1.known.update({6: torch.zeros(6)})),
        ("cache_nested", lambda net: net.cache1["a"][1][0].update({1: 2})),
        ("streaming_deque", lambda net: net.past1.append(torch.zeros(()))),
        ("cache_in_closure", lambda net: net.grid1(torch.zeros(6, device="meta"))),
        ("conv_norm", lambda net: torch.set_grad_enabled(not torch.is_grad_enabled())),
        ("conv_norm", lambda net: torch.randn(1)),
    ],
)
def test_a_mark_is_seen(steps: str, change: object) -> None:
    subject = Subject.of(network(2, [steps]))
    grad = torch.is_grad_enabled()
    with loaded_from(subject.network) as loaded, torch.no_grad():
        state = State(loaded)
        assert state.differences(loaded, subject.ordinary, draws=False) == []
        change(loaded.net)  # type: ignore[operator]
        assert state.differences(loaded, subject.ordinary, draws=False) != []
    torch.set_grad_enabled(grad)


def test_what_hooks_collect_on_another_device_is_seen() -> None:
    subject = Subject.of(network(0, ["hook_sums"]))
    with loaded_from(subject.network) as loaded:
        state = State(loaded)
        loaded.module.TOTAL1["sum"] = torch.zeros((), device="meta")
        assert "meta" in state.differences(loaded, subject.ordinary, draws=False)[0]


def test_exceptions_are_told_apart() -> None:
    subject = Subject.of(plain())

    def refuse() -> None:
        raise sf.errors.FoldError("no")

    def break_down() -> None:
        raise KeyError("x")

    with loaded_from(subject.network) as loaded:
        attempt(subject, "fuse", loaded, refuse)
        attempt(subject, "fuse", loaded, break_down)
    assert [finding.verdict for finding in subject.findings] == ["refused", "foreign"]


def test_calls_are_not_all_refused() -> None:
    """Right is not what remains when everything is left out."""
    done: Counter[str] = Counter()
    for seed in range(3):
        for finding in findings_of(seed, wanted=["conv_norm", "residual", "se_block"]):
            done[finding.call] += finding.done if finding.verdict == "right" else 0
    for call in ("sites", "attach", "attach, fold", "attach, fuse", "fuse", "branch, fold", "observe", "bake"):
        assert done[call] > 0, call
