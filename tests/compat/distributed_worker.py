"""One of the two processes of ``test_distributed.py``: ``python -m ...distributed_worker KIND[,KIND] FOLDER``."""

from __future__ import annotations

import os
import sys

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stripefold as sf
from stripefold_lab.processes import joined, leave, torchrun_place
from tests.lifecycle import attached, images

WORLD = 2


def train_(
    model: nn.Module, rank: int, steps: range = range(2), optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Steps, each process on its half of the batch; the mean of the gradients is the whole batch's gradient."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    for step in steps:
        optimizer.zero_grad()
        model(images(8, seed=step).chunk(WORLD)[rank]).square().mean().backward()
        optimizer.step()


def refusal_of(call) -> str:
    try:
        call()
    except sf.errors.StripefoldError as error:
        return str(error)
    return ""


def distributed_data_parallel(rank: int) -> dict[str, object]:
    model = DistributedDataParallel(attached("dia").eval())
    refused = refusal_of(lambda: sf.attach(model))
    train_(model, rank)
    return {"state": model.module.state_dict(), "folded": sf.fold(model).state_dict(), "attach": refused}


def fully_sharded(rank: int, attention: str = "se") -> dict[str, object]:
    model = sharded(attention)
    train_(model, rank)
    fold, attach = refusal_of(lambda: sf.fold(model)), refusal_of(lambda: sf.attach_(model, form="dynamic"))
    return {"state": whole_state(model), "fold": fold, "attach": attach}


def sharded(attention: str) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    model = attached(attention).eval()
    for block in model.blocks:
        if attention == "dia":  # one attention along the depth: the module around the whole chain is the unit
            break
        fully_shard(block.bn2, mesh=mesh)  # the site is the unit
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def resumed(rank: int, folder: str) -> dict[str, object]:
    """One step, a checkpoint in as many files as there are processes, and the second step in a model built anew."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    place = os.path.join(folder, "checkpoint")
    first = sharded("se")
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9)
    train_(first, rank, range(1), optimizer)
    weights, moments = get_state_dict(first, optimizer)
    checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=place)

    second = sharded("se")
    optimizer = torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.9)
    weights, moments = get_state_dict(second, optimizer)
    content = {"model": weights, "optimizer": moments}
    checkpoint.load(content, checkpoint_id=place)
    set_state_dict(second, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"])
    train_(second, rank, range(1, 2), optimizer)
    return {"state": whole_state(second), "parts": len([name for name in os.listdir(place) if "distcp" in name])}


def main(asked: str, folder: str) -> None:
    torch.set_num_threads(1)
    kinds = {
        "ddp": distributed_data_parallel,
        "fsdp": fully_sharded,
        "fsdp chain": lambda rank: fully_sharded(rank, "dia"),
        "fsdp resumed": lambda rank: resumed(rank, folder),
    }
    place = torchrun_place()
    with joined(place):
        for kind in asked.split(","):
            torch.save(kinds[kind](place.rank), os.path.join(folder, f"{kind} {place.rank}.pt"))
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
