"""What is done to a model once it is decided: first to a copy, which is compared, then perhaps to the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stripefold.baking.apply import apply_, verify_baked
from stripefold.baking.graph_modules import drop_probes_
from stripefold.baking.options import To
from stripefold.baking.sites import BakeSite, plan_bake
from stripefold.baking.warm import warm_
from stripefold.errors import BakeError
from stripefold.modules.example import Example, example_to, examples_of, run_example
from stripefold.modules.modules import first_parameter
from stripefold.modules.preserve_state import preserve_state
from stripefold.modules.tensors import tensors_in
from stripefold.stripe.discover import Discovery


@dataclass(kw_only=True)
class Recipe:
    """Constants or trainable gates in the place of some gates.

    Attributes:
        discovery: of the model.
        to: "plain" or "asr".
        constants: gate -> v (C,) of those that are replaced; for "asr", what the gates start with.
        descriptors: gate -> mean descriptor (D,); for "asr".
        idle: modules that serve a gate alone are replaced by some that do nothing; ``tried`` finds out if that may be.
        once: what takes their place returns one row for all samples; likewise.
    """

    discovery: Discovery
    to: To
    constants: Mapping[str, Tensor]
    descriptors: Mapping[str, Tensor]
    idle: bool = True
    once: bool = False

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
            sites = plan_bake(model, self.discovery, names, constants=self.constants, idle=self.idle)
            made, final = apply_(model, sites, self.constants, once=self.once)
        drop_probes_(made)
        return made, final

    def tried(
        self, model: nn.Module, copied: Callable[[], nn.Module], example: Example, *, in_place: bool
    ) -> tuple[nn.Module, list[BakeSite]]:
        """Do it to a copy and compare that with the model, its gates held constant by hooks.

        Args:
            model: that was discovered, not the user's own: hooks stand on it meanwhile.
            copied: makes another copy, which is the one that is baked.
            example: an input.
            in_place: refuse what cannot be done to the model itself.

        Raises:
            BakeError: it would have to be replaced as a whole.
            VerifyError: the copy computes something else.
        """
        free = self.to == "plain" and self._stands_in_code(model)
        one = all(tensor.shape[0] == 1 for tensor in tensors_in(example) if tensor.dim())
        # The code around a gate may not take one row for all samples, or may read an attribute of what was replaced.
        ways = [(True, True), (True, False), (False, False)][one:] if free else [(True, False)]
        for self.idle, self.once in ways[:-1]:
            with suppress(Exception):
                return self._compared(model, copied(), example, in_place=in_place)
        self.idle, self.once = ways[-1]
        return self._compared(model, copied(), example, in_place=in_place)

    def _stands_in_code(self, model: nn.Module) -> bool:
        """Whether any gate is called for by the code of a block, which goes on with what it is given instead."""
        if not self.constants:
            return False
        sites = plan_bake(model, self.discovery, list(self.constants), constants=self.constants)
        return any(site.spare.modules or (site.place is not None and not site.place.whole) for site in sites)

    def _compared(
        self, model: nn.Module, copied: nn.Module, example: Example, *, in_place: bool
    ) -> tuple[nn.Module, list[BakeSite]]:
        made, final = self.apply_(copied)
        if in_place and made is not copied:
            raise BakeError("the model itself is what is baked and cannot be replaced in place: use bake, which copies")
        held = {site.name: self.constants[site.name] for site in final if site.how != "keep"}
        if held:
            verify_baked(model, self.discovery.gates, made, held, example)
        if self.once:
            _check_not_written(made, example)
        return made, final


def _check_not_written(made: nn.Module, example: Example) -> None:
    """See that the code around a gate does not write into the constant that it is given.

    Raises:
        ParametersWrittenError: it does.
    """
    like = first_parameter(made)
    with preserve_state(made) as copied:
        for each in examples_of(example):
            run_example(copied, example_to(each, torch.device("cpu") if like is None else like.device, None))
