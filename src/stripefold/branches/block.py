"""The block: a sum of branches in a convolution's place, and how it folds to one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from stripefold.algebra.kernels import Merged, add_branches
from stripefold.algebra.rounding import FOLD_WIDER, why_unfit
from stripefold.branches.base import Branch, PrimaryBranch, memory_format
from stripefold.branches.geometry import ConvGeometry
from stripefold.errors import BranchError, FoldError
from stripefold.layers.accepts import is_affine_map
from stripefold.layers.refusal import altered
from stripefold.layers.rule import rule_for
from stripefold.modules.computed import computed
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import Foldable, FoldNote
from stripefold.modules.modules import move_call_hooks
from stripefold.modules.stand_in import StandIn

_SETTINGS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    "transposed", "output_padding",
)  # fmt: skip


@final
class BranchBlock(StandIn, Foldable):
    """A sum of branches that folds to one convolution.

    The convolution's settings (``in_channels``, ``stride``, ``groups`` ...) read as before; ``weight`` and ``bias`` are
    those of the folded convolution, computed and read-only.

    Args:
        convolution: what the block stands for; a plain layer with a rule.
        kind: the block's name.
        branches: by name, the first one a ``PrimaryBranch``.
    """

    def __init__(self, convolution: nn.Module, kind: str, branches: Mapping[str, Branch]) -> None:
        super().__init__()
        self.kind = kind
        self.grid = ConvGeometry.of(convolution)
        self.rule = rule_for(convolution)
        self._had_bias = convolution._parameters.get("bias") is not None
        for name in _SETTINGS:
            setattr(self, name, getattr(convolution, name))
        self.branches = nn.ModuleDict(branches)
        # The layer to come: the very object's attributes without its tensors. In a tuple, so that it is no submodule.
        self._shell = (_without_tensors(convolution),)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the convolution's own name for it
        """The sum of the branches; shapes are the convolution's, (N, C_in, *map) -> (N, C_out, *map).

        Raises:
            BranchError: a map without a batch axis.
        """
        if isinstance(input, Tensor) and input.dim() != self.grid.axes + 2:
            raise BranchError(
                f"the {self.kind} block takes maps with a batch axis, {self.grid.axes + 2} axes in all, and was given "
                f"{tuple(input.shape)}: its BatchNorms would take another axis for the channels. Call it with x[None]"
            )
        total: Tensor | None = None
        for branch in self._modules["branches"].values():  # type: ignore[union-attr, operator]
            output = branch(input)
            total = output if total is None else total + output
        assert total is not None
        return total

    def __getattr__(self, name: str) -> Any:
        """What the convolution's class offers besides a call (``_conv_forward``), on the folded weight."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.stands_for
            # An error inside a property of the block's own comes here, too; and to start anew is for its branches.
            if layer is None or name.startswith("__") or name == "reset_parameters" or hasattr(BranchBlock, name):
                raise
            if name in vars(layer):
                return vars(layer)[name]
            offered = inspect.getattr_static(type(layer), name, None)
            if not hasattr(offered, "__get__"):
                raise
            return offered.__get__(self, type(self))

    @property
    def stands_for(self) -> nn.Module | None:
        """See ``StandIn``: the convolution to come."""
        shell = self.__dict__.get("_shell")
        return None if shell is None else shell[0]

    @property
    def lead(self) -> PrimaryBranch:
        """The branch that carries the convolution's own numbers."""
        first = next(iter(self.branches.values()))
        assert isinstance(first, PrimaryBranch)
        return first

    def merged(self) -> Merged:
        """All branches in eval mode as one kernel and bias, float64, differentiable.

        Raises:
            FoldError: a branch holds something that does not merge.
        """
        return add_branches([branch.merged() for branch in self._parts()])

    @property
    def weight(self) -> Tensor:
        """The folded convolution's weight, in the block's dtype; differentiable, read-only."""
        kernel = self.merged()[0]
        return computed(kernel.to(next(self.parameters()).dtype))  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The folded convolution's bias, likewise; None where it has none."""
        bias = self.merged()[1]
        return None if bias is None else computed(bias.to(next(self.parameters()).dtype))

    @property
    def gained_key(self) -> str | None:
        """See ``Foldable``: the branches' normalisations shift, and the convolution had no bias to take that."""
        return "bias" if not self._had_bias and self.has_norms else None

    @property
    def has_norms(self) -> bool:
        """Whether a BatchNorm is in it: its training and its eval form then differ."""
        return any(is_affine_map(module) for module in self.modules())

    def extra_repr(self) -> str:
        """The kind and the convolution."""
        return f"{self.kind}: {self._shell[0].extra_repr()}"

    def check_fold(self, name: str, owners: Mapping[int, list[str]]) -> list[FoldNote]:
        """See ``Foldable``."""
        try:
            self._check_inside(name, owners)
            with torch.no_grad():
                kernel, bias = self.merged()
            self._check_result(kernel, bias)
        except FoldError as error:
            raise FoldError(f"cannot fold the {self.kind} block on {name!r}: {error}") from error
        except (ValueError, RuntimeError) as error:
            raise FoldError(
                f"cannot fold the {self.kind} block on {name!r}: its branches do not fit together any more ({error}). "
                "Undo what was changed inside it"
            ) from error
        count = len(self.branches)
        why = f"{count} {'branches' if count > 1 else 'branch'} into {type(self._shell[0]).__name__}"
        return [FoldNote(name=name, kind=self.kind, folded=True, why=why)]

    @torch.no_grad()
    def folded_(self, weights: Float64Weights) -> nn.Module:
        """The convolution, with the branches' sum as its weight and bias."""
        layer, like = self._shell[0], next(self.parameters())
        dtype, (weight_trains, bias_trains) = like.dtype, self.lead.flags()
        self.double()  # for gates inside, and sums of their own that branches are kept as
        weights.move_into_(self)
        kernel, bias = self.merged()
        zeros = torch.zeros_like(kernel, dtype=dtype).contiguous(memory_format=memory_format(like))
        layer._parameters["weight"] = nn.Parameter(zeros, weight_trains)
        weights.set(layer, {"weight": kernel})
        if bias is not None:
            if self._had_bias:
                layer._parameters["bias"] = nn.Parameter(torch.zeros_like(bias, dtype=dtype), bias_trains)
            weights.set(layer, {"bias": bias}, added=["bias"])
        layer.training = self.training
        move_call_hooks(self, layer)
        self.branches.clear()  # spent: a large model is folded block by block
        return layer

    def _parts(self) -> Iterator[Branch]:
        for branch in self.branches.values():
            if not isinstance(branch, Branch):
                raise FoldError(f"{type(branch).__name__} in it is no branch")
            yield branch

    def _check_inside(self, name: str, owners: Mapping[int, list[str]]) -> None:
        """Gates inside must fold first, and the layers must compute what their types say."""
        for path, module in self.named_modules(prefix=name):
            if module is self:
                continue
            if isinstance(module, Foldable):
                stays = [note for note in module.check_fold(path, owners) if not note.folded]
                if stays:
                    raise FoldError(
                        f"{stays[0].kind} on {path!r} inside it {stays[0].why}, so that the branches do not merge. "
                        "Put dynamic attention on the block itself"
                    )
            reason = altered(module)
            if reason is not None:
                raise FoldError(f"{path!r}: {reason}")

    def _check_result(self, kernel: Tensor, bias: Tensor | None) -> None:
        if tuple(kernel.shape) != self.grid.kernel_shape:
            raise FoldError(f"its branches give a kernel of shape {tuple(kernel.shape)}, not {self.grid.kernel_shape}")
        if kernel.is_meta:
            raise FoldError("it is on the meta device and has no numbers: to_empty(...) and load_state_dict first")
        dtype = next(self.parameters()).dtype
        for key, tensor in (("kernel", kernel), ("bias", bias)):
            if tensor is None:
                continue
            if not bool(tensor.isfinite().all()):
                raise FoldError("its kernel is not finite. Training diverged; go back to a good checkpoint")
            why = why_unfit(tensor, dtype, is_factor=tensor is kernel)
            if why is not None:
                raise FoldError(f"its {key} {why}. {FOLD_WIDER}")


def _without_tensors(layer: nn.Module) -> nn.Module:
    """A layer of the same type and attributes whose parameters are None.

    It shares the dictionaries of hooks; they move to the block with the layer's own, and back to it at fold.
    """
    shell: nn.Module = object.__new__(type(layer))
    shell.__dict__.update(layer.__dict__)
    shell.__dict__["_parameters"] = dict.fromkeys(layer._parameters)
    return shell
