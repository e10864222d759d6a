"""One block deployed by a method of its own: on a float64 copy, compared on random input, then rounded once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.comparison import FLOAT64_TOLERANCE
from stripefold.algebra.rounding import why_unfit
from stripefold.errors import VerifyError
from stripefold.folding.outputs import compared, worst_error
from stripefold.layers.substitute import has_call_hooks
from stripefold.modules.float64 import KeepFloat64
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import Foldable
from stripefold.modules.modules import first_parameter
from stripefold.modules.preserve_state import preserve_state

TensorShapes = Mapping[str, tuple[int, ...]]
"""Dotted path -> shape of the one tensor that a block is given."""
_SEED = 20240611
_SIDE = 24
"""Height and width at most given to a block that is checked: enough for its borders and its middle."""


def reparameterize_block(
    block: nn.Module, method: str, shape: tuple[int, ...] | None, weights: Float64Weights
) -> nn.Module | str:
    """The module that takes the block's place: the block itself where there is nothing to do, or why it stays.

    Args:
        block: any device, dtype and mode; left as it is.
        method: name of its method, which works in place or returns a module.
        shape: of its input.
        weights: knows what the numbers were before rounding, and learns what the merged ones were.
    """
    if _is_done(block):
        return block
    reason = _obstacle(block, shape)
    if reason is not None or shape is None:
        return reason or ""
    with preserve_state(block) as copied, KeepFloat64():
        try:
            before, after = _twin(copied), _twin(copied)
            for twin in (before, after):
                weights.copy_into_(twin, block)
            after = _called(after, method)
        except Exception as error:  # the method is other people's code and may raise anything
            return f"its {method} fails: {_in_words(error)}"
        if _unchanged(before, after):
            return block
        difference = _difference(before, after, shape)
    if difference > FLOAT64_TOLERANCE:
        return f"its {method} changes what it computes (relative error {difference:.1e} in float64)"
    return _as_block_(after, block, weights) or after


def _is_done(block: nn.Module) -> bool:
    """Whether it was deployed before: calling some methods twice raises."""
    return isinstance(getattr(block, "reparam_conv", None), nn.Module)


def _obstacle(block: nn.Module, shape: tuple[int, ...] | None) -> str | None:
    for name, part in block.named_modules():
        if isinstance(part, Foldable):
            return f"{name} in it stays as it is"
        if name and has_call_hooks(part):
            return f"{name} in it has hooks that would be lost"
    if any(tensor.is_meta for tensor in (*block.parameters(), *block.buffers())):
        return "it has no numbers (meta device)"
    if shape is None:
        return "the example does not reach it with one tensor, so that the result could not be checked"
    return None


def _twin(block: nn.Module) -> nn.Module:
    """A float64 copy on the CPU in eval mode, without the hooks of the block itself."""
    hooks = {key: value for key, value in vars(block).items() if key.endswith("_hooks")}
    memo: dict[int, Any] = {id(value): type(value)() for value in hooks.values()}
    twin = copy.deepcopy(block, memo).to("cpu").double()
    for name, tensor in _plain_tensors(twin):
        if tensor.is_floating_point():
            setattr(twin.get_submodule(name[0]), name[1], tensor.to("cpu", torch.float64))
    return twin


def _plain_tensors(block: nn.Module) -> list[tuple[tuple[str, str], Tensor]]:
    """Tensors that are neither parameters nor buffers: ``.double()`` does not see them."""
    return [
        ((path, key), value)
        for path, module in block.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    ]


def _called(twin: nn.Module, method: str) -> nn.Module:
    """What a twin becomes; layers that the method makes without naming a dtype are float64 ones on the CPU."""
    held = {name for name, _ in _plain_tensors(twin)}
    with torch.device("cpu"):  # and under KeepFloat64; torch's default type is the whole process's
        returned = getattr(twin, method)()
    result = twin if returned is None else returned
    if not isinstance(result, nn.Module):
        raise TypeError(f"it returned {type(result).__name__}, not a module")
    for (path, key), _ in _plain_tensors(result):
        if (path, key) not in held:  # a scratch tensor such as the identity kernel
            delattr(result.get_submodule(path), key)
    for part in result.modules():
        part.training = False
    return result


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _unchanged(before: nn.Module, after: nn.Module) -> bool:
    """Whether the method did nothing."""
    if [(name, type(part)) for name, part in before.named_modules()] != [
        (name, type(part)) for name, part in after.named_modules()
    ]:
        return False
    mine, its = before.state_dict(), after.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)


def _difference(before: nn.Module, after: nn.Module, shape: tuple[int, ...]) -> float:
    """Relative error of the outputs on random input; a large map is cut to its corner where the block allows it."""
    cut = tuple(min(size, _SIDE) for size in shape[2:]) if len(shape) == 4 else shape[2:]
    for size in dict.fromkeys([cut, shape[2:]]):
        generator = torch.Generator("cpu").manual_seed(_SEED)
        x = torch.randn((*shape[:2], *size), generator=generator, dtype=torch.float64, device="cpu")
        try:
            expected = compared(before(x.clone()))
        except Exception:  # a block may demand its size
            continue
        return _compared(after, x, expected)
    return float("inf")


def _compared(after: nn.Module, x: Tensor, expected: dict[str, Tensor]) -> float:
    try:
        return worst_error(compared(after(x)), expected)[1]
    except (VerifyError, RuntimeError, AttributeError, TypeError):
        return float("inf")


@torch.no_grad()
def _as_block_(after: nn.Module, block: nn.Module, weights: Float64Weights) -> str | None:
    """Give a deployed twin the dtype, device and flags of the block, by name where the name is still there.

    Not by ``Float64Weights.write_``, which rounds into tensors that a layer has: those of the twin are float64 ones, of
    layers that the method has made. What they were is noted, so that they are rounded once all the same when something
    else is merged into them.

    Returns:
        The first tensor that its type does not hold, in words; or None.
    """
    own = {name: (path, tensor) for path, name, tensor in _tensors(block)}
    large = [tensor for *_, tensor in _tensors(block) if tensor.is_floating_point() and tensor.dim() > 1]
    like = large[0] if large else first_parameter(block)
    trained = any(parameter.requires_grad for parameter in block.parameters())
    misfit: str | None = None
    for path, name, tensor in list(_tensors(after)):
        model_for = own[name][1] if name in own and own[name][1].shape == tensor.shape else like
        holder, key = after.get_submodule(path), name.rpartition(".")[2]
        if model_for is None or not tensor.is_floating_point():
            continue
        rounded = tensor.detach().to(model_for.device, model_for.dtype)
        why = why_unfit(tensor, rounded.dtype, tensor, is_factor=tensor.dim() > 1)  # of vectors, the most are added
        misfit = misfit or (why and f"the merged {key} {why}")
        if key in holder._parameters:
            flag = model_for.requires_grad if name in own else trained
            rounded = nn.Parameter(rounded, requires_grad=flag)
            holder._parameters[key] = rounded
        else:
            holder._buffers[key] = rounded
        if rounded.dtype != torch.float64:
            weights.note(holder, key, tensor.detach().to(model_for.device))
    _set_modes_(after, block)
    return misfit


def _set_modes_(after: nn.Module, block: nn.Module) -> None:
    modes = {name: part.training for name, part in block.named_modules()}
    for name, part in after.named_modules():
        part.training = modes.get(name, block.training)


def _tensors(block: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(module path, full name, tensor) of every parameter and buffer."""
    for path, module in block.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield path, f"{path}.{key}" if path else key, tensor
