"""From a configuration to a model with its blocks and gates: the same one from the same configuration, bit for bit."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stripefold.errors import ConfigError, TraceError
from stripefold_lab.training.seeding import derive_seed
from stripefold_lab.training.tasks import get_task

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.data import ImageSpec


def build_backbone(config: TrainConfig, spec: ImageSpec) -> nn.Module:
    """The network without attention.

    Args:
        config: ``task``, ``model``, ``model_options``, ``pretrained`` and ``seed`` are read.
        spec: What the data looks like.

    Raises:
        ConfigError: If no such model is known, or it does not take such images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.seed, "backbone"))
        return get_task(config.task).build(config, spec)


def build_model(config: TrainConfig, spec: ImageSpec, *, images: Tensor | None = None) -> nn.Module:
    """The network with its blocks and attention, in training mode. A seed gives the same backbone under all of them.

    Args:
        config: The run's configuration.
        spec: What the data looks like.
        images: Training images (N, C, H, W) on which blocks of ``init: identity`` are measured; None where their
            weights are loaded afterwards.

    Raises:
        AttachError: If the attention does not suit the network.
        BranchError: If no convolution of the network can become such a block, or an option does not fit.
        ConfigError: As for ``build_backbone``; also if the network does not run on such images.
    """
    from stripefold.asr.attach import attach_
    from stripefold.asr.config import GateForm

    model = build_backbone(config, spec)
    if config.branch is not None:
        _put_blocks(model, config, images)
    forms: dict[str, tuple[GateForm, ...]] = {
        "none": (), "static": ("static",), "dynamic": ("dynamic",), "both": ("static", "dynamic"),
    }  # fmt: skip
    where = list(config.where) if isinstance(config.where, tuple) else config.where
    for form in forms[config.form]:
        own = {name: getattr(config, name) for name in ("repeats", "psi", "init", "freeze", "start")}
        static = own if form == "static" else {}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(config.seed, f"gates, {form}"))
            try:
                attach_(
                    model,
                    config.attention,
                    where=where,
                    form=form,
                    example=spec.example(),
                    attention_options=config.attention_options,
                    **static,
                )
            except TraceError as error:
                raise ConfigError(
                    f"model {config.model!r} does not run on images of {spec.size} x {spec.size}: set image_size to "
                    f"what it takes, or choose a network for small images such as resnet20. {error}"
                ) from error
    return model.train()


def _put_blocks(model: nn.Module, config: TrainConfig, images: Tensor | None) -> None:
    from stripefold.branches.branch import branch_

    assert config.branch is not None
    where = list(config.branch_where) if isinstance(config.branch_where, tuple) else config.branch_where
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="init='identity' without data")
        torch.default_generator.manual_seed(derive_seed(config.seed, "branches"))
        data = None if images is None or config.init == "paper" else images.split(config.batch_size)
        branch_(model, config.branch, where=where, init=config.init, data=data, options=config.branch_options)
