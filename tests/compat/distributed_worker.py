"""One of the two processes of ``test_distributed.py``: ``python -m ...distributed_worker KIND FOLDER RANK``."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stripefold as sf
from tests.lifecycle import attached, images

WORLD = 2


def train_(model: nn.Module, rank: int) -> None:
    """Two steps, each process on its half of the batch; the mean of the gradients is the whole batch's gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
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
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
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
    train_(model, rank)
    fold, attach = refusal_of(lambda: sf.fold(model)), refusal_of(lambda: sf.attach_(model, form="dynamic"))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {"state": get_model_state_dict(model, options=options), "fold": fold, "attach": attach}


def main(kind: str, folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    kinds = {
        "ddp": distributed_data_parallel,
        "fsdp": fully_sharded,
        "fsdp chain": lambda rank: fully_sharded(rank, "dia"),
    }
    result = kinds[kind](rank)
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
