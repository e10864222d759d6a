"""The reference formulation, written out: BN(x) times SE(psi), the product taken on the activation map.

After ``ASRBatchNorm2d`` of the reference code (Huang et al. 2024), without anything of stripefold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.asr.gate import StaticGate
from stripefold.asr.sites import attached_sites


class ReferenceGate(nn.Module):
    """SE on a learned map psi, shape (1, C, 1, 1): mean, Linear, ReLU, Linear, sigmoid."""

    def __init__(self, gate: StaticGate) -> None:
        super().__init__()
        reduce, expand = gate.attention.mlp.reduce, gate.attention.mlp.expand
        self.psi = nn.Parameter(gate.psi.detach().clone().reshape(1, -1, 1, 1))
        self.down = nn.Linear(reduce.in_features, reduce.out_features).to(reduce.weight.dtype)
        self.up = nn.Linear(expand.in_features, expand.out_features).to(expand.weight.dtype)
        self.down.load_state_dict(reduce.state_dict())
        self.up.load_state_dict(expand.state_dict())

    def forward(self) -> Tensor:
        d = nn.functional.adaptive_avg_pool2d(self.psi, 1).flatten(1)
        return torch.sigmoid(self.up(torch.relu(self.down(d))))


class ReferenceSite(nn.Module):
    """y = B(x) * prod_k SE_k(psi_k), on the map."""

    def __init__(self, base: nn.Module, gates: list[StaticGate]) -> None:
        super().__init__()
        self.base = base
        self.gates = nn.ModuleList(ReferenceGate(gate) for gate in gates)

    def forward(self, x: Tensor) -> Tensor:
        output = self.base(x)
        for gate in self.gates:
            output = output * gate().reshape(1, -1, *(1,) * (output.dim() - 2))
        return output


def reference_of(model: nn.Module) -> nn.Module:
    """The same network with the same numbers, its sites replaced by the reference formulation."""
    other = sf.detach(model)
    for name, site in attached_sites(model).items():
        parent, _, key = name.rpartition(".")
        base = other.get_submodule(name)
        setattr(other.get_submodule(parent), key, ReferenceSite(base, site.static_gates))
    return other


def matched(model: nn.Module, reference: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """(name, ours, the reference's) for every parameter."""
    names = {"psi": "psi", "attention.mlp.reduce": "down", "attention.mlp.expand": "up"}
    theirs = dict(reference.named_parameters())
    pairs = []
    for name, parameter in model.named_parameters():
        key = name
        for ours, its in names.items():
            key = key.replace(f".{ours}", f".{its}") if ".gates." in key else key
        pairs.append((name, parameter, theirs.pop(key)))
    assert not theirs
    return pairs
