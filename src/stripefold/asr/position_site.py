"""Sites of gates over positions: in front of a linear layer on a flattened map, and in front of a global pooling.

Both multiply the map while they train: positions have no parameter there that would be the cheaper side. (Where the
output features of a layer are positions, a gate over positions is an ordinary ``Site``.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from stripefold.algebra.positions import flattened_scale, map_scale, pooling_kernel
from stripefold.algebra.rounding import FOLD_WIDER
from stripefold.asr.gated import Gated, check_finite
from stripefold.errors import FoldError, ResolutionError
from stripefold.graph.positions import PositionPlace
from stripefold.layers.absorb import absorb_scale, surely_fits
from stripefold.layers.accepts import unwritable
from stripefold.layers.refusal import altered, tied_to
from stripefold.layers.rule import Rule
from stripefold.modules.computed import computed
from stripefold.modules.float64_weights import Float64Weights, Misfit
from stripefold.modules.foldable import Foldable, FoldNote
from stripefold.modules.modules import move_call_hooks

_AXES = ("depth", "height", "width")
_WEIGHTS = "weights"
_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class PositionSite(Gated):
    """``y = B(s (.) x)`` with s the product of static gates over the positions of x; abstract.

    Args:
        base: the user's module B.
        place: what is known about it, the resolution above all.
    """

    own = Gated.own | {"place", "input_rule"}

    def __init__(self, base: nn.Module, place: PositionPlace) -> None:
        super().__init__(base)
        self.place = place

    def extra_repr(self) -> str:
        """The positions."""
        return f"{self.place.size} positions, {self.place.channels} channels"

    def refuse(self, found: str) -> ResolutionError:
        """The error for a map of another resolution.

        Args:
            found: what came instead, in words.
        """
        return ResolutionError(
            f"the gate on {self.place.name!r} was attached, and is trained, for {self.place.size} positions, but found "
            f"{found}. Run the model at the resolution it was attached at (resize or crop the images), or attach anew "
            "with an example= of this one and train"
        )

    def checked_scale(self, name: str) -> Tensor:
        """The scale in float64, (P,) or (C, P).

        Raises:
            FoldError: it is not finite, or has no numbers.
        """
        with torch.no_grad():
            s = self.scale(torch.float64)
        check_finite(name, s, of="positions")
        assert s is not None  # a position site is made with a gate
        return s


class InputSite(PositionSite):
    """In front of a linear layer on a flattened map: folds into its input side, W' = W diag(s).

    ``weight`` reads as the effective tensor.

    Args:
        base: the linear layer, or a site on it: gates on its output stand beside this one.
        place: of kind "flatten".
        rule: the layer's, with an input side.
    """

    def __init__(self, base: nn.Module, place: PositionPlace, rule: Rule) -> None:
        super().__init__(base, place)
        self.input_rule = rule

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002 - the layer's own name for it
        """The layer on the scaled map; (N, C P) -> the layer's output.

        Raises:
            ResolutionError: another number of features.
        """
        s = self._features()
        if not is_symbolic(input) and input.shape[-1] != s.shape[0]:
            positions = f"{input.shape[-1] / self.place.channels:g} positions"
            raise self.refuse(f"{input.shape[-1]} features where {s.shape[0]} are expected, {positions}")
        return self._modules["base"]((input * s).to(input.dtype), *args, **kwargs)  # type: ignore[misc]

    def _features(self, dtype: torch.dtype | None = None) -> Tensor:
        s = self.scale(dtype)
        assert s is not None  # a position site is made with a gate
        return flattened_scale(s, self.place.channels, self.place.axis)

    def effective_tensor(self, base: nn.Module, name: str, tensor: Any) -> Any:
        """The effective weight."""
        scaled = (self.input_rule.input or {}).get(name)
        if scaled is None or tensor is None:
            return tensor
        return computed(scaled(base, tensor, self._features()).to(tensor.dtype))

    def check_fold(self, name: str, owners: Mapping[int, list[str]]) -> list[FoldNote]:
        """See ``Foldable``."""
        base, rule = self.base, self.input_rule
        reason = altered(base) or rule.input_refuse(base)
        if not isinstance(base, Foldable):  # a site judges its own layer
            reason = reason or unwritable(base, rule.input or ())
            reason = reason or tied_to(base, rule.input or (), f"{name}.base" if name else "base", owners)
        if reason is not None:
            raise FoldError(f"cannot fold the gate on {name!r}: {reason}")
        s = flattened_scale(self.checked_scale(name), self.place.channels, self.place.axis)
        with torch.no_grad():
            misfit = self._misfit(s)
        if misfit is not None:
            raise FoldError(
                f"cannot fold the gate on {name!r}: {misfit} (largest scale {s.abs().max():.3g}). {FOLD_WIDER}"
            )
        why = f"into the input side of the layer, at {self.place.size} positions only"
        return [FoldNote(name=name, kind=self.kinds, folded=True, why=why)]

    def _misfit(self, s: Tensor) -> Misfit | None:
        """The tensor that does not hold this site's scale and that of a site on the layer's output, or None."""
        site: Any = self.base
        layer = site.base if isinstance(site, Gated) else site
        v = site.scale(torch.float64) if isinstance(site, Gated) and site.static_gates else None
        if surely_fits(layer, self.input_rule.input or (), s, *(() if v is None else (v,))):
            return None
        trial = Float64Weights()
        if v is not None:
            absorb_scale(trial, layer, self.input_rule, v)
        absorb_scale(trial, layer, self.input_rule, s, "input")
        return trial.misfit()

    @torch.no_grad()
    def folded_(self, weights: Float64Weights) -> nn.Module:
        """Fold the gates into the layer's input side; the layer is returned, or its site where dynamic gates stay."""
        base: Any = self.base
        layer = base.base if isinstance(base, Gated) else base
        absorb_scale(weights, layer, self.input_rule, self._features(torch.float64), "input")
        return self.without_static_gates_()


class PoolSite(PositionSite):
    """In front of a mean over all positions: folds into a depthwise convolution as large as the map.

    A mean of a scaled map is a weighted mean. The pooling has no tensor for the weights, so a convolution takes its
    place: the keys change, and only ``fuse=True`` does that.
    """

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - the layer's own name for it
        """The mean of the scaled map, (N, C, *grid) -> what the pooling gives.

        Raises:
            ResolutionError: a map of another size.
        """
        grid = self.place.grid
        if not is_symbolic(input) and tuple(input.shape[2:]) != grid:
            raise self.refuse(f"a map of {'x'.join(str(int(size)) for size in input.shape[2:])} positions")
        s = self.scale()
        assert s is not None  # a position site is made with a gate
        return self._modules["base"]((input * map_scale(s, grid)).to(input.dtype))  # type: ignore[misc]

    @property
    def new_keys(self) -> str:
        """See ``Foldable``."""
        return (
            f"a mean has no weight that could hold the scale of {self.place.size} positions, so that a depthwise "
            f"convolution takes the place of {type(self.base).__name__} (new key {self._key!r})"
        )

    @property
    def _key(self) -> str:
        return f"{self.place.name}.{_WEIGHTS}.weight"

    def check_fold(self, name: str, owners: Mapping[int, list[str]]) -> list[FoldNote]:
        """See ``Foldable``."""
        del owners  # the pooling has no tensors that could be shared
        self.checked_scale(name)
        kernel = f"{_CONVOLUTIONS[len(self.place.grid) - 1].__name__} of {self.place.size} in place of the pooling"
        why = f"into a {kernel}, new key {self._key!r}, at this resolution only"
        return [FoldNote(name=name, kind=self.kinds, folded=True, why=why)]

    def folded_(self, weights: Float64Weights) -> nn.Module:
        """Layers of torch that pool with weights, and refuse every other size."""
        s = self.checked_scale(self.place.name)
        psi = self.static_gates[0].psi
        trains = any(parameter.requires_grad for parameter in self.gates.parameters())
        pooled = weighted_pooling(s, self.place)
        convolution = pooled.get_submodule(_WEIGHTS)
        kernel = convolution.get_parameter("weight").detach().to(psi.device)
        convolution.weight = nn.Parameter(torch.zeros_like(kernel, dtype=psi.dtype), trains)
        weights.set(convolution, {"weight": kernel})
        pooled.train(self.training)
        move_call_hooks(self, pooled)
        return pooled


def is_symbolic(value: object) -> bool:
    """Whether a tracer runs that keeps no branch on a shape: ``torch.fx`` has none to look at, a jit trace its own."""
    return not torch.compiler.is_compiling() and (isinstance(value, fx.Proxy) or torch._C._is_tracing())


def weighted_pooling(s: Tensor, place: PositionPlace) -> nn.Sequential:
    """A weighted mean over all positions as plain layers, float64: a convolution with a kernel as large as the map.

    ``Unflatten`` with one size lets exactly that size pass, so that a map of another one raises and names both.

    Args:
        s: (P,) or (C, P), float64.
        place: of kind "pooling".
    """
    channels, grid = place.channels, place.grid
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for axis, (name, size) in enumerate(zip(_AXES[-len(grid) :], grid, strict=True), start=2):
        layers[name] = nn.Unflatten(axis, (size,))
    convolution = _CONVOLUTIONS[len(grid) - 1](channels, channels, grid, groups=channels, bias=False, device="meta")
    convolution.weight = nn.Parameter(pooling_kernel(s, channels, grid), False)
    layers[_WEIGHTS] = convolution
    if len(place.output) == 1:
        layers["flatten"] = nn.Flatten(1)
    return nn.Sequential(layers)
