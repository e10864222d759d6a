"""Bake with constants that nothing favours, and compare with the network whose gates are held constant by hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stripefold.baking.apply import apply_, verify_baked
from stripefold.baking.override_gates import can_hold, override_gates
from stripefold.baking.sites import BakeSite, plan_bake
from stripefold.modules.example import Example, example_to, run_example
from stripefold.stripe.discover import Discovery, discover
from tests.lifecycle import EXACT, IMAGE_DEPENDENCE, error
from tests.zoo.prepare import Randomness, calibrate_frozen_, jitter_, randomise_, statistics_of_the_last_batch
from tests.zoo.subject import images, quick_creation


def prepared(
    build: Callable[[], nn.Module], size: int | tuple[int, ...] = 64, *, seed: int = 0
) -> tuple[nn.Module, Tensor]:
    """A float64 model, every number of it random, its statistics calibrated and jittered; and two images."""
    sides = (size, size) if isinstance(size, int) else size
    with quick_creation():
        model = build()
    return prepare(model, images(1, 3, *sides, batch=4).double(), seed=seed)


def prepare(model: nn.Module, x: Example, *, seed: int = 0) -> tuple[nn.Module, Example]:
    """As ``prepared``, for a model and a batch of one's own; the first two samples come back."""
    model, x = model.double(), example_to(x, torch.device("cpu"), torch.float64)
    randomness = Randomness(seed)
    randomise_(model, randomness)
    with statistics_of_the_last_batch(model), torch.no_grad():
        run_example(model.train(), x)
    calibrate_frozen_(model, x)
    model.eval()
    jitter_(model, randomness)
    return model, x[:2] if isinstance(x, Tensor) else x


def constants_for(sites: Collection[BakeSite], *, signed: bool = True, seed: int = 3) -> dict[str, Tensor]:
    """Random numbers away from 0 and 1; of both signs where the plan allows it."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for site in sites:
        v = 0.3 + torch.rand(site.gate.channels, generator=generator, dtype=torch.float64)
        minus = torch.rand(v.shape, generator=generator) < 0.5
        found[site.name] = torch.where(minus, -v, v) if signed and not site.needs_nonnegative else v
    return found


@dataclass(frozen=True)
class Outcome:
    """What was baked and how.

    Attributes:
        discovery: of the model with dynamic gates.
        sites: as they were baked.
        constants: of the gates that were.
        baked: the result.
        error: against the network with constant gates, relative.
        against_dynamic: against the network as it was: the control.
        against_ones: against the network with its gates at 1: the other control.
        dependence: how much the output depends on the image.
    """

    discovery: Discovery
    sites: list[BakeSite]
    constants: dict[str, Tensor]
    baked: nn.Module
    error: float
    against_dynamic: float
    against_ones: float
    dependence: float

    def how(self) -> list[str]:
        """Per gate, in order."""
        return [site.how for site in self.sites]


def bake_exactly(model: nn.Module, x: Example, *, names: Collection[str] | None = None, signed: bool = True) -> Outcome:
    """Bake a copy of a model with random constants and measure."""
    discovery = discover(model, x)
    sites = plan_bake(model, discovery, names)
    constants = constants_for(sites, signed=signed)
    baked, final = apply_(copy.deepcopy(model), sites, constants)
    held = {site.name: constants[site.name] for site in final if site.how != "keep"}
    assert all(can_hold(site.gate) for site in final if site.how != "keep")
    report = verify_baked(model, discovery.gates, baked, held, x)
    with torch.no_grad():
        output, dynamic = run_example(baked, x), run_example(model, x)
        with override_gates(model, discovery.gates, {name: torch.ones_like(v) for name, v in held.items()}):
            ones = run_example(model, x)
    spread = float((output - output.mean(0, keepdim=True)).abs().max() / output.abs().max())
    return Outcome(discovery, final, held, baked, report.error, error(output, dynamic), error(output, ones), spread)


def assert_exact(outcome: Outcome) -> None:
    """To the tolerance, with controls that show it could have failed."""
    assert outcome.error <= EXACT
    assert outcome.dependence > IMAGE_DEPENDENCE
    assert outcome.against_dynamic > 1e-3
    assert outcome.against_ones > 1e-3
