"""What is done to a model once it is decided: first to a copy, which is compared, then perhaps to the model itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from stripefold.baking.apply import apply_, verify_baked
from stripefold.baking.graph_modules import drop_probes_
from stripefold.baking.options import To
from stripefold.baking.sites import BakeSite, plan
from stripefold.baking.warm import warm_
from stripefold.errors import BakeError
from stripefold.stripe.discover import Discovery
from stripefold.surgery.example import Example


@dataclass(kw_only=True)
class Recipe:
    """Constants or trainable gates in the place of some gates.

    Attributes:
        discovery: of the model.
        to: "plain" or "asr".
        constants: gate -> v (C,) of those that are replaced; for "asr", what the gates start with.
        descriptors: gate -> mean descriptor (D,); for "asr".
        idle: modules that serve a gate alone are replaced by some that do nothing; ``tried`` finds out if that may be.
    """

    discovery: Discovery
    to: To
    constants: Mapping[str, Tensor]
    descriptors: Mapping[str, Tensor]
    idle: bool = True

    def apply_(self, model: nn.Module) -> tuple[nn.Module, list[BakeSite]]:
        """Do it, in place; everything is checked before the first change.

        Args:
            model: the model that was discovered, or a copy of it.

        Returns:
            The model (another object only where it was a site itself), and what became of each gate.
        """
        names = list(self.constants)
        made = model
        final: list[BakeSite] = []
        if names and self.to == "asr":
            made, final = warm_(model, self.discovery, self.descriptors, names)
        elif names:
            sites = plan(model, self.discovery, names, constants=self.constants, idle=self.idle)
            made, final = apply_(model, sites, self.constants)
        drop_probes_(made)
        return made, final

    def tried(self, model: nn.Module, example: Example, *, in_place: bool) -> tuple[nn.Module, list[BakeSite]]:
        """Do it to a copy and compare that with the model, its gates held constant by hooks.

        Args:
            model: a copy of the user's model to work on (see ``working_copy``); hooks stand on it meanwhile.
            example: an input.
            in_place: refuse what cannot be done to the model itself.

        Raises:
            BakeError: it would have to be replaced as a whole.
            VerifyError: the copy computes something else.
        """
        try:
            return self._compared(model, example, in_place=in_place)
        except Exception:
            # The code around a gate may read what a module that only serves the gate returned, or an attribute of it.
            if not self.idle or not self._has_idle(model):
                raise
        self.idle = False
        return self._compared(model, example, in_place=in_place)

    def _has_idle(self, model: nn.Module) -> bool:
        if self.to == "asr" or not self.constants:
            return False
        sites = plan(model, self.discovery, list(self.constants), constants=self.constants)
        return any(site.spare.modules for site in sites)

    def _compared(self, model: nn.Module, example: Example, *, in_place: bool) -> tuple[nn.Module, list[BakeSite]]:
        copied = copy.deepcopy(model)
        made, final = self.apply_(copied)
        if in_place and made is not copied:
            raise BakeError("the model itself is what is baked and cannot be replaced in place: use bake, which copies")
        held = {site.name: self.constants[site.name] for site in final if site.how != "keep"}
        if held:
            verify_baked(model, self.discovery.gates, made, held, example)
        return made, final
