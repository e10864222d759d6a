"""``param_groups``: optimiser groups with the gates' weight decay set apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from stripefold.asr.sites import attached_sites


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    gate_weight_decay: float = 0.0,
    gate_lr: float | None = None,
    no_decay: Callable[[str, nn.Parameter], bool] | None = None,
) -> list[dict[str, Any]]:
    """Split the trainable parameters for ``torch.optim``: backbone, backbone without decay, gates.

    Args:
        model: an attached model.
        weight_decay: for the backbone.
        gate_weight_decay: for psi and theta. The reference recipe decays everything alike: give the same number.
        gate_lr: learning rate of the gates; None leaves it to the optimiser.
        no_decay: ``(name, parameter) -> True`` for backbone parameters without decay, for example
            ``lambda name, p: p.ndim <= 1``.

    Returns:
        Non-empty groups with "params", "weight_decay", "name" (and "lr").
    """
    gates = {
        id(parameter)
        for site in attached_sites(model).values()
        for gate in site.gates
        for parameter in gate.parameters()
    }
    backbone: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    gated: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in gates:
            gated.append(parameter)
        elif no_decay is not None and no_decay(name, parameter):
            undecayed.append(parameter)
        else:
            backbone.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": backbone, "weight_decay": weight_decay, "name": "backbone"},
        {"params": undecayed, "weight_decay": 0.0, "name": "backbone_no_decay"},
        {"params": gated, "weight_decay": gate_weight_decay, "name": "gates"},
    ]
    if gate_lr is not None:
        groups[2]["lr"] = gate_lr
    return [group for group in groups if group["params"]]
