"""The processes of a run: started by torchrun or by SLURM, one per device, as many as the configuration says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from stripefold.errors import ConfigError
from stripefold_lab.processes import ALONE, GLOO, GLOO_AND_NCCL, ProcessRank, torchrun_place

if TYPE_CHECKING:
    from torch import nn

    from stripefold_lab.training.config import TrainConfig


def place_of(config: TrainConfig) -> ProcessRank:
    """Where this process stands among those that the configuration asks for.

    Args:
        config: ``devices``, ``nodes`` and what cannot be done with them on this machine are read.

    Raises:
        ConfigError: They were not started, or another number of them; or the machine lacks what they need.
    """
    wanted = config.devices * config.nodes
    found = torchrun_place()
    launcher = "torchrun"
    if found is None and wanted > 1:
        # One process alone is left alone under SLURM: a sweep's trials inherit the variables of the job around them.
        found, launcher = _slurm_place(), "SLURM"
    if wanted > 1 and found is None:
        raise ConfigError(
            f"devices is {config.devices} and nodes is {config.nodes}, but this process was started alone: start all "
            f"{wanted} of them with `torchrun --nproc-per-node {config.devices} -m stripefold train ...`, or "
            "under SLURM with srun"
        )
    if found is not None and found.world != wanted:
        raise ConfigError(
            f"{launcher} started {found.world} processes, but devices x nodes is {config.devices} x {config.nodes} = "
            f"{wanted}: set devices to the processes of one machine and nodes to the number of machines"
        )
    if wanted > 1:
        _check_machine(config)
    return found or ALONE


def _slurm_place() -> ProcessRank | None:
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if not all(name in os.environ for name in names):
        return None
    try:
        environment = SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise ConfigError(f"these SLURM settings cannot be used: {error}") from error
    # Where the processes meet: found in the job's list of nodes unless the variables are set.
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    return ProcessRank(
        rank=environment.global_rank(), world=environment.world_size(), local_rank=environment.local_rank()
    )


def environment_of(place: ProcessRank) -> ClusterEnvironment:
    """What Lightning is told about the processes; one that is alone is alone, whatever job it runs in.

    Args:
        place: Of this process.
    """
    if place.world == 1:
        return LightningEnvironment()
    return TorchElasticEnvironment() if torchrun_place() is not None else SLURMEnvironment(auto_requeue=False)


def on_gpu(config: TrainConfig) -> bool:
    """Whether the run computes on GPUs of CUDA.

    Args:
        config: ``accelerator`` is read.
    """
    return config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def backend_of(config: TrainConfig) -> str:
    """What the processes talk through: NCCL between GPUs, gloo for everything else.

    Args:
        config: ``accelerator`` is read.
    """
    return GLOO_AND_NCCL if on_gpu(config) else GLOO


def _check_machine(config: TrainConfig) -> None:
    if config.sync_batchnorm and not on_gpu(config):
        raise ConfigError(
            "sync_batchnorm is True, and torch synchronises BatchNorm on GPUs only: leave it out, or choose a network "
            "without BatchNorm"
        )
    if config.strategy == "fsdp" and not on_gpu(config) and not hasattr(torch.cpu.Stream, "record_event"):
        raise ConfigError(
            f"strategy is 'fsdp', which torch {torch.__version__} runs on GPUs only: choose ddp, or a newer torch"
        )


def synchronised(model: nn.Module, config: TrainConfig, place: ProcessRank) -> nn.Module:
    """The model whose BatchNorms normalise over the whole batch of a step, where the run asks for that.

    Left to itself (None) a run does so on several GPUs, so that the statistics do not depend on their number.

    Args:
        model: With its attention.
        config: ``sync_batchnorm`` and ``accelerator`` are read.
        place: Of this process.
    """
    wanted = on_gpu(config) if config.sync_batchnorm is None else config.sync_batchnorm
    if place.world == 1 or not wanted:
        return model
    converted: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted
