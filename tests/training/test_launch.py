"""Where a process stands, what is refused before any others are waited for, and how batches are divided."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn

import stripefold as sf
from stripefold.asr.gate import StaticGate
from stripefold.distributed import gathered, is_lost, run_on_all_ranks, summed
from stripefold.errors import ConfigError, ObserveError
from stripefold_lab.models import create_model
from stripefold_lab.processes import ALONE, ProcessRank, joined
from stripefold_lab.training import launch
from stripefold_lab.training.batch_sharding import BatchSharding, ShardedBatches
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.launch import environment_of, place_of, synchronised
from stripefold_lab.training.sharding import units
from tests.crew import slurm, torchrun

TWO = TrainConfig(devices=2, accelerator="cpu")


def started(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_one_process_is_alone_whatever_job_it_runs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of(TrainConfig()) == ALONE
    started(monkeypatch, slurm(1, 2, 1))
    assert place_of(TrainConfig()) == ALONE
    assert environment_of(ALONE).world_size() == 1


def test_torchrun_and_slurm_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        started(patch, slurm(1, 2, 1))
        assert place_of(TWO) == ProcessRank(rank=1, world=2, local_rank=1)
        assert not place_of(TWO).first
    started(monkeypatch, torchrun(0, 2, 1))
    assert place_of(TWO) == ProcessRank(rank=0, world=2, local_rank=0)


def test_refused_before_anybody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="this process was started alone: start all 2 of them with `torchrun"):
        place_of(TWO)
    with monkeypatch.context() as patch:
        started(patch, slurm(0, 4, 1))
        with pytest.raises(ConfigError, match=r"SLURM started 4 processes, but devices x nodes is 2 x 1 = 2"):
            place_of(TWO)
        patch.delenv("SLURM_NTASKS_PER_NODE")
        with pytest.raises(ConfigError, match="these SLURM settings cannot be used: You set `--ntasks=4`"):
            place_of(TWO)
    started(monkeypatch, torchrun(0, 2, 1))
    with pytest.raises(ConfigError, match="sync_batchnorm is True, and torch synchronises BatchNorm on GPUs only"):
        place_of(TWO.with_overrides(sync_batchnorm=True))
    monkeypatch.delattr(torch.cpu.Stream, "record_event", raising=False)
    with pytest.raises(ConfigError, match=r"strategy is 'fsdp', which torch .* runs on GPUs only: choose ddp"):
        place_of(TWO.with_overrides(strategy="fsdp"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"devices": 4, "batch_size": 30}, "batch_size is 30, and devices x nodes is 4.*set 28 or 32"),
        ({"devices": 2, "nodes": 4, "batch_size": 3}, "batch_size is 3, and devices x nodes is 8.*set 8$"),
        ({"strategy": "fsdp"}, "strategy is 'fsdp', but devices and nodes are 1: leave it at auto"),
        ({"devices": 2, "strategy": "fsdp", "observe_every": 1}, "observe_every is 1, and with fsdp no process has"),
        ({"devices": 2, "strategy": "fsdp", "compile": True}, "compile is True, which does not go together with fsdp"),
        ({"devices": 2, "strategy": "fsdp", "channels_last": True}, "channels_last is True, which does not go"),
        ({"devices": 0}, "devices is 0; it must be at least 1"),
        ({"strategy": "horovod"}, "strategy is 'horovod'; choose one of auto, ddp, ddp-unused, fsdp"),
    ],
)
def test_configurations_that_cannot_be_divided(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)


def test_groups_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ProcessRank(rank=0, world=2)
    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_gloo_available", lambda: False)
        with pytest.raises(ConfigError, match="2 processes talk to each other through gloo, which this build of torch"):
            joined(pair).__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: True)
        patch.setattr(dist, "get_world_size", lambda: 5)
        with pytest.raises(ConfigError, match="initialised with 5 processes, and 2 are asked for"):
            joined(pair).__enter__()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="process 0 is number 0 on its machine, which has 0 GPUs"):
        joined(pair, backend="cpu:gloo,cuda:nccl").__enter__()
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match=r"process 0 of 2 did not meet the others at None:None within 1 s \(.*MASTER"):
        joined(pair, timeout=1).__enter__()


def test_one_process_asks_nobody() -> None:
    with joined(ALONE) as group:
        assert group is None
        assert run_on_all_ranks(lambda: 3, group, ObserveError) == 3
        assert gathered(3, group, ObserveError) == [3]
        assert summed((1, 2.5), group, ObserveError) == [1, 2.5]
    assert is_lost(RuntimeError("Connection closed by peer [127.0.0.1]"))
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost(ValueError("Connection closed by peer"))


@pytest.mark.parametrize(("count", "size", "world"), [(92, 30, 3), (7, 4, 2), (64, 16, 4), (5, 5, 5), (9, 2, 2)])
def test_every_image_counts_once(count: int, size: int, world: int) -> None:
    shares = [
        BatchSharding(count=count, batch_size=size, place=ProcessRank(rank=rank, world=world)) for rank in range(world)
    ]
    given = [list(ShardedBatches(range(count), share)) for share in shares]
    assert len({len(batches) for batches in given}) == 1  # nobody waits for a batch that another does not have
    whole = list(ShardedBatches(range(count), BatchSharding(count=count, batch_size=size)))
    for number, batch in enumerate(whole):
        parts = [batches[number][: share.counted(number)] for batches, share in zip(given, shares, strict=True)]
        assert [index for part in parts for index in part] == batch
        assert sum(share.counted(number) for share in shares) == shares[0].total(number) == len(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert all(batches[number] for batches in given)
    uneven = [
        list(ShardedBatches(range(count), BatchSharding(count=count, batch_size=size, place=s.place, even=False)))
        for s in shares
    ]
    assert Counter(index for batches in uneven for part in batches for index in part) == Counter(range(count))


def test_batchnorm_is_synchronised_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ProcessRank(rank=0, world=2)
    model = sf.attach(create_model("resnet20"), "se")
    assert synchronised(model, TWO, pair) is model
    monkeypatch.setattr(launch, "on_gpu", lambda config: True)
    assert synchronised(model, TWO, ALONE) is model
    converted = synchronised(model, TWO, pair)
    assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    assert converted.state_dict().keys() == sf.attach(create_model("resnet20"), "se").state_dict().keys()
    left = synchronised(sf.attach(create_model("resnet20"), "se"), TWO.with_overrides(sync_batchnorm=False), pair)
    assert any(type(module) is nn.BatchNorm2d for module in left.modules())


def test_blocks_are_units_unless_they_share() -> None:
    apart, chained = (sf.attach(create_model("resnet20"), attention) for attention in ("se", "dia"))
    found = units(apart, 1)
    assert not [unit for unit in found if isinstance(unit, StaticGate)]  # a site is gathered whole
    blocks = [module for module in apart.modules() if type(module).__name__ == "BasicBlock"]
    assert [unit for unit in reversed(found) if unit in blocks] == blocks
    assert not [unit for unit in units(chained, 1) if type(unit).__name__ == "BasicBlock"]
    assert units(apart, 10**9) == []
