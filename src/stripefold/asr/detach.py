"""``detach``: the bare backbone back, gates dropped. The control of every experiment."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from stripefold.asr.chain import tidy_chains_
from stripefold.asr.gate import DynamicGate
from stripefold.asr.gated import Gated
from stripefold.asr.sites import attached_sites
from stripefold.errors import AttachError
from stripefold.modules.all_or_nothing import AllOrNothing
from stripefold.modules.modules import forget_compiled, replace_modules
from stripefold.modules.root import copy_of
from stripefold.modules.thread_state import Interruptible


def detach(model: nn.Module) -> nn.Module:
    """A copy of the model without any gate, static or dynamic; the model given stays as it is.

    Raises:
        AttachError: not a module, or one that cannot be copied.
    """
    with Interruptible():
        return detach_(copy_of(model, "detach_", AttachError))


def detach_(model: nn.Module) -> nn.Module:
    """Take every gate off the model in place; a model without gates comes back as it is.

    Returns:
        The bare backbone: the same object, unless the root itself was a site.

    Raises:
        AttachError: not a module.
    """
    with Interruptible():
        found = attached_sites(model)
        change = AllOrNothing(model)
        with change, change:
            return _without_gates_(model, found)


def _without_gates_(model: nn.Module, found: Mapping[str, Gated]) -> nn.Module:
    if found:
        forget_compiled(model)
    bare: dict[nn.Module, nn.Module] = {}
    for site in reversed(list(found.values())):  # a site of positions may hold one of channels
        site.gates = nn.ModuleList(gate for gate in site.gates if not isinstance(gate, DynamicGate))
        left = site.without_static_gates_()
        bare[site] = bare.get(left, left)
    model = replace_modules(model, bare)
    tidy_chains_(model)
    return model
