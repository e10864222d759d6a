"""A network over several processes: whole on each, with buffers that must agree, or in parts (fsdp).

Why a strategy of our own: Lightning's names the optimiser's states by the order of the model's parameters, the files of
a run by that of the optimiser's groups, which is another one where gates have a group to themselves. Here the file is
the same whatever wrote it, and a run goes on with any number of processes under either strategy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from stripefold.modules.foldable import Foldable

UNIT = 2**16
"""Parameters from which a block is gathered by itself; below, a message costs more than it carries."""
ROWS = (nn.Sequential, nn.ModuleList)
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def average_buffers_(model: nn.Module, group: Any) -> None:
    """Give every floating-point buffer its mean over the processes, each of which saw other images.

    Args:
        model: The same on every process.
        group: The processes.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
    if not buffers:
        return
    # One message for all of them; in float64, so that what agreed already is left as it is.
    flat = torch.cat([buffer.detach().flatten().double().cpu() for buffer in buffers])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def shard_(model: nn.Module, mesh: Any) -> None:
    """Let each process keep a part of every parameter; a block is gathered while it computes (FSDP2).

    Args:
        model: With its attention; built alike on every process.
        mesh: The processes, one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    for block in units(model, UNIT):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def units(model: nn.Module, unit: int) -> list[nn.Module]:
    """The blocks that are gathered by themselves: members of a sequence or a list, the inner ones first.

    A block whose parameters are also used outside of it, such as one attention along the depth of a stage, is none.

    Args:
        model: With its attention.
        unit: Parameters that make a block worth it.
    """
    uses = _uses(model)
    # A site is gathered whole: its layer's weight is read together with its gates.
    inside = {part for module in model.modules() if isinstance(module, Foldable) for part in module.modules()}
    rows = [module for module in model.modules() if isinstance(module, ROWS) and module not in inside]
    blocks = dict.fromkeys(block for row in rows for block in row if not isinstance(block, ROWS))
    return [block for block in reversed(blocks) if _is_unit(block, uses, unit)]


def _is_unit(block: nn.Module, uses: Counter[int], unit: int) -> bool:
    large = sum(parameter.numel() for parameter in block.parameters()) >= unit
    return large and all(uses[key] == count for key, count in _uses(block).items())


def _uses(model: nn.Module) -> Counter[int]:
    """How many places of a model hold each parameter; a module in two places is in two."""
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    return Counter(id(p) for module in modules for p in module._parameters.values() if p is not None)


class Sharded(ModelParallelStrategy):
    """FSDP2 whose checkpoints are the files that one process writes, and reads them.

    Args:
        world: How many processes there are.
        timeout: How long one waits for another.
    """

    def __init__(self, world: int, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands over the optimiser's state, as it does to every other strategy."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state on the first process, with numbers for names as an optimiser of one process has them."""
        assert self.model is not None
        bare = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: dict[str, Any] = dict(get_optimizer_state_dict(self.model, bare, options=WHOLE))
        names = [name for each in state.get("param_groups", ()) for name in each["params"]]
        return _renamed(state, {name: number for number, name in enumerate(names)}) if state else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every process reads the file, the way that runs nothing in it."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each process takes its parts of the weights."""
        assert self.model is not None
        set_model_state_dict(self.model, checkpoint["state_dict"], options=WHOLE)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each process takes its parts of the optimisers' states."""
        assert self.model is not None
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            mine = [names[id(parameter)] for each in optimizer.param_groups for parameter in each["params"]]
            theirs = [number for each in saved["param_groups"] for number in each["params"]]
            state = _renamed(saved, dict(zip(theirs, mine, strict=True)))
            set_optimizer_state_dict(self.model, [optimizer], state, options=WHOLE)


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimiser's state, its parameters under other names."""
    return {
        "state": {names[name]: content for name, content in state["state"].items()},
        "param_groups": [
            {**each, "params": [names[name] for name in each["params"]]} for each in state["param_groups"]
        ],
    }
