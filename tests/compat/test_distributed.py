"""Two processes on CPU (gloo): DDP, and FSDP2 with its gathered state dict. The truth is one process, whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import stripefold as sf
from tests.compat.distributed_worker import WORLD
from tests.crew import run_workers
from tests.lifecycle import assert_folds, attached, error, images

pytestmark = pytest.mark.slow


FSDP = ("fsdp", "fsdp chain", "fsdp resumed")


def run(kinds: tuple[str, ...], folder: Path) -> dict[str, list[dict]]:
    run_workers("tests.compat.distributed_worker", ",".join(kinds), str(folder), world=WORLD)
    return {
        kind: [torch.load(folder / f"{kind} {rank}.pt", weights_only=True) for rank in range(WORLD)] for kind in kinds
    }


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this torch cannot run FSDP2 on the CPU")
    return run(FSDP, tmp_path_factory.mktemp("sharded"))


def alone(attention: str, momentum: float = 0.0) -> nn.Module:
    model = attached(attention).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    for step in range(2):
        optimizer.zero_grad()
        model(images(8, seed=step)).square().mean().backward()
        optimizer.step()
    return model


def assert_trained_alike(state: dict[str, torch.Tensor], truth: nn.Module, attention: str) -> nn.Module:
    model = attached(attention).eval()
    assert error(model(images()), truth(images())) > 1e-4  # the control: training moved it
    model.load_state_dict(state)
    assert error(model(images()), truth(images())) < 1e-10
    return model


def test_two_processes_of_ddp(tmp_path: Path) -> None:
    truth, results = alone("dia"), run(("ddp",), tmp_path)["ddp"]
    for result in results:
        model = assert_trained_alike(result["state"], truth, "dia")
        plain = assert_folds(model, images())
        assert all(torch.equal(result["folded"][key], tensor) for key, tensor in plain.state_dict().items())
        assert "wrapped in DistributedDataParallel" in result["attach"]


@pytest.mark.parametrize(("kind", "attention"), [("fsdp", "se"), ("fsdp chain", "dia")])
def test_two_processes_of_fsdp2(sharded: dict[str, list[dict]], kind: str, attention: str) -> None:
    truth, (first, second) = alone(attention), sharded[kind]
    model = assert_trained_alike(first["state"], truth, attention)
    assert_folds(model, images(), keys=list(sf.detach(model).state_dict()))
    for result in (first, second):
        assert result["fold"].startswith("cannot fold a sharded model")
        assert "full state dict" in result["fold"]
        assert "wrapped in FSDP2 (fully_shard): attach to the bare model first" in result["attach"]


def test_fsdp2_goes_on_from_a_checkpoint_in_parts(sharded: dict[str, list[dict]]) -> None:
    """Saved and loaded through torch.distributed.checkpoint, then folded through the gathered state dict."""
    first, second = sharded["fsdp resumed"]
    assert first["parts"] == WORLD
    assert not second["state"]  # the gathered weights are the first process's
    truth = alone("se", momentum=0.9)
    model = assert_trained_alike(first["state"], truth, "se")
    # The control: without the momentum of the step before the checkpoint, the second step ends elsewhere.
    assert error(model(images()), alone("se")(images())) > 1e-4
    folded, expected = sf.fold(model, check=False), sf.fold(truth, check=False)
    assert error(folded(images()), expected(images())) < 1e-10
    assert_folds(model, images())
