"""What two models give when they run as they are deployed: without hooks, on torch's fused fast paths.

A layer with gates keeps ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` off their fused path, and the
folded one takes it. Where that path gives other values (torch clears what a mask hides, and cuts what is hidden in all
samples), folding has not changed anything, but what is deployed does differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stripefold.errors import VerifyError
from stripefold.folding.outputs import compared, relative_errors
from stripefold.modules.example import Example, example_copy, run_example
from stripefold.modules.preserve_state import on_copies, random_state_kept

_ROUNDING = 1e-5
"""What the kernels of that path may round otherwise, in models that compute in float32 inside."""
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def fast_path_difference(model: nn.Module, other: nn.Module, inputs: Example, tolerance: float) -> str | None:
    """What torch's fused fast path changes between two models that compute the same without it, in words, or None.

    Args:
        model: the reference.
        other: the one that is deployed.
        inputs: the example, as the models take it.
        tolerance: the relative error allowed.
    """
    if not torch.backends.mha.get_fastpath_enabled() or not any(isinstance(m, _FUSED) for m in other.modules()):
        return None
    expected, found = on_copies(lambda *copies: tuple(_outputs(each, inputs) for each in copies), model, other)
    try:
        errors = relative_errors(found, expected)
    except VerifyError:
        errors = {"the outputs": float("inf")}
    worst = max(errors, key=lambda path: errors[path])
    if errors[worst] <= max(tolerance, _ROUNDING):
        return None
    amount = _amount(errors[worst], found.get(worst), expected.get(worst))
    return (
        f"as deployed, {worst} differs ({amount}): {type(other).__name__} takes torch's fused fast path of transformer "
        "layers here, which its reference does not take, and torch gives other values on it (it clears what a mask "
        "hides). torch.backends.mha.set_fastpath_enabled(False) gives the reference's values"
    )


def _outputs(model: nn.Module, inputs: Example) -> Mapping[str, Tensor]:
    """Of a copy; the fused path is taken as the user's process has it."""
    with random_state_kept(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what the path is made of; it will warn again
        return compared(run_example(model, example_copy(inputs)))


def _amount(error: float, found: Tensor | None, expected: Tensor | None) -> str:
    if found is not None and expected is not None and found.shape != expected.shape:
        return f"shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    return f"relative error {error:.2e}"
