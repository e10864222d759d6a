"""``verify``: do two models compute the same? Judged against the first model's own rounding noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stripefold.errors import VerifyError
from stripefold.folding.as_deployed import fast_path_difference
from stripefold.folding.layer_by_layer import DoesNotRunError, call, place, run_both
from stripefold.folding.outputs import compared
from stripefold.folding.tolerance import NothingComparedError, agreement, judge
from stripefold.modules.example import Example, examples_of
from stripefold.modules.float64 import float64_copy, is_float64
from stripefold.modules.leaked_modules import leaked_object
from stripefold.modules.modules import NO_COPY, first_parameter, uninitialized
from stripefold.modules.preserve_state import on_copies
from stripefold.modules.thread_state import Interruptible


@dataclass(frozen=True, kw_only=True)
class EquivalenceReport:
    """What ``verify`` measured; errors are the largest difference over the largest value of the truth.

    Attributes:
        passed: ``error <= tolerance``.
        dtype: the dtype both models ran in.
        error: of the other model, against the truth (float64; for float64 models, the reference itself), in the worst
            output.
        reference_error: of the reference model, against the same truth: its own rounding noise, in the output that
            sets the tolerance.
        tolerance: 1e-10 in float64, else 4 times ``reference_error`` with the dtype's floor.
        worst_output: path of the output with the largest error, of those that fail if any does.
        worst_layer: the module, common to both, whose outputs differ most, and by how much.
        layers: the common modules that were compared: (path, error), in call order; of a run whose layers return more
            than 2 GiB, the first ones.
        agreement: fraction of equal arg-max predictions, or None where the output does not look like scores.
        blind: whether every sample of the inputs gives the reference the same outputs, as with a head that starts at
            zero: equal outputs then say little, and the layers have to be looked at.
        fast_path: what torch's own fused fast path changes when the models run as they are deployed, in words; None
            where it changes nothing. Everything else is compared without it.
        inputs: how many inputs were compared.
        worst_input: which of them, from 0, the report is about: the worst.
    """

    passed: bool
    dtype: str
    error: float
    reference_error: float
    tolerance: float
    worst_output: str
    worst_layer: tuple[str, float] | None
    layers: tuple[tuple[str, float], ...]
    agreement: float | None
    blind: bool = False
    fast_path: str | None = None
    inputs: int = 1
    worst_input: int = 0

    def __str__(self) -> str:
        verdict = "equivalent" if self.passed else "NOT equivalent"
        text = f"{verdict} in {self.dtype}: relative error {self.error:.2e}, allowed {self.tolerance:.2e}"
        if self.inputs > 1:
            text += f" on the worst of {self.inputs} inputs (number {self.worst_input + 1})"
        if self.dtype != "float64":
            text += f" (the reference's own rounding {self.reference_error:.2e})"
        if self.worst_layer is not None and self.worst_layer[1] == 0:
            text += "; every layer the same to the last bit"
        elif self.worst_layer is not None:
            text += f"; worst layer {self.worst_layer[0]} {self.worst_layer[1]:.2e}"
        if self.agreement is not None:
            text += f"; predictions agree {100 * self.agreement:.2f} %"
        if self.blind:
            text += "; but the outputs are the same for every sample, so that only the layers say something"
        if self.fast_path is not None:
            text += f"; {self.fast_path}"
        return text


def verify(
    model: nn.Module,
    other: nn.Module,
    inputs: Example,
    *,
    tolerance: float | None = None,
    raise_on_mismatch: bool = True,
) -> EquivalenceReport:
    """Compare two models on the same inputs, each as it is used: in eval mode, but for what is kept out of it.

    Args:
        model: the reference, such as the training model.
        other: what should compute the same, such as the folded model; same dtype and device.
        inputs: tensor, tuple of arguments or mapping of keyword arguments; or a list of such, all of which are run.
        tolerance: relative error allowed; None follows the numeric policy (see ``EquivalenceReport.tolerance``).
        raise_on_mismatch: raise, or only report.

    Raises:
        VerifyError: the models differ, return different structures, values that are not finite or nothing but empty
            tensors, or differ in dtype.

    Below float64 the truth is a float64 copy of ``model`` (with its own, rounded weights): an error is only an error
    if it is larger than what rounding does to the reference itself.
    """
    with Interruptible():
        dtype = _common_dtype(model, other)
        reports: list[EquivalenceReport] = []
        empty: NothingComparedError | None = None
        for each in examples_of(inputs):
            try:
                reports.append(_compared(model, other, each, dtype, tolerance))
            except NothingComparedError as error:
                empty = error
            except DoesNotRunError as error:
                raise DoesNotRunError(f"{error}{_borrowed(model, other)}") from error
        if empty is not None and not reports:
            raise empty
        worst = max(range(len(reports)), key=lambda k: (not reports[k].passed, reports[k].error))
        report = replace(
            reports[worst],
            inputs=len(reports),
            worst_input=worst,
            fast_path=next((each.fast_path for each in reports if each.fast_path is not None), None),
        )
        if raise_on_mismatch and not report.passed:
            raise VerifyError(
                f"{report}. Worst at {report.worst_output}. First layer that differs: {_first_difference(report)}"
                f"{_borrowed(model, other)}"
            )
        return report


def _borrowed(model: nn.Module, other: nn.Module) -> str:
    """An object of the one that a function of the other uses, as the reason why they differ, or nothing."""
    found = leaked_object(other, model) or leaked_object(model, other)
    if found is None:
        return ""
    return (
        f". {found}, so that it reads and writes there and not in its own: let it take what it uses from the module "
        "that it is called with, or work in place: fold_(model, check=False)"
    )


def _compared(
    model: nn.Module, other: nn.Module, inputs: Example, dtype: torch.dtype, tolerance: float | None
) -> EquivalenceReport:
    """The report on one input."""
    outcome = run_both(model, other, inputs)
    expected, found, layers = outcome.expected, outcome.found, outcome.layers
    _check_not_empty(expected, found)
    truth = expected if dtype == torch.float64 else _truth(model, outcome.inputs, dtype)
    _check_no_nan(truth)
    verdict = judge(found, expected, truth, dtype, tolerance=tolerance)
    return EquivalenceReport(
        passed=verdict.passed,
        dtype=str(dtype).removeprefix("torch."),
        error=verdict.error,
        reference_error=verdict.reference_error,
        tolerance=verdict.tolerance,
        worst_output=verdict.where,
        worst_layer=max(layers.items(), key=lambda item: item[1]) if layers else None,
        layers=tuple(layers.items()),
        agreement=agreement(expected, found),
        blind=_same_for_every_sample(truth),
        fast_path=fast_path_difference(model, other, outcome.inputs, verdict.tolerance) if verdict.passed else None,
    )


def _common_dtype(model: nn.Module, other: nn.Module) -> torch.dtype:
    for given in (model, other):
        if not isinstance(given, nn.Module):
            raise VerifyError(f"verify compares two modules, got {type(given).__name__}")
        lazy = uninitialized(given)
        if lazy is not None:
            raise VerifyError(lazy)
    tensors = [first_parameter(model), first_parameter(other)]
    dtypes = list(dict.fromkeys(tensor.dtype for tensor in tensors if tensor is not None))
    if len(dtypes) > 1:
        raise VerifyError(f"the models differ in dtype: {dtypes[0]} and {dtypes[1]}. Convert one: model.to(dtype)")
    dtype = dtypes[0] if dtypes else torch.float32
    # With parts of a narrower type it is their rounding that counts.
    return torch.float32 if dtype == torch.float64 and not (is_float64(model) and is_float64(other)) else dtype


def _truth(model: nn.Module, inputs: Example, dtype: torch.dtype) -> dict[str, Tensor]:
    """The outputs in float64 for inputs as the model took them: rounded, as its weights are."""
    try:
        exact = float64_copy(model)
    except NO_COPY as error:
        raise VerifyError(
            f"{type(model).__name__} cannot be copied ({error}), so there is no float64 reference: compare in float64 "
            "with verify(model.double(), other.double(), ...)"
        ) from error
    placed = place(exact, inputs, torch.float64)
    return on_copies(lambda copied: compared(call(copied, placed, copied_from=dtype)), exact)


def _check_not_empty(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    if not any(tensor.numel() for tensor in (*expected.values(), *found.values())):
        raise NothingComparedError(
            "both models return empty tensors only on this example (a detector that finds nothing in it, say): nothing "
            "was compared. Give an example in which they find something; fold takes it as example="
        )


def _check_no_nan(outputs: Mapping[str, Tensor]) -> None:
    for path, tensor in outputs.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise VerifyError(f"{path} of the reference model is NaN: nothing can be compared. Look at its weights")


def _same_for_every_sample(outputs: Mapping[str, Tensor]) -> bool:
    batched = [tensor for tensor in outputs.values() if tensor.is_floating_point() and tensor.dim() and len(tensor) > 1]
    return bool(batched) and all(bool((tensor == tensor[:1]).all()) for tensor in batched)


def _first_difference(report: EquivalenceReport) -> str:
    return next(
        (f"{name} ({error:.2e})" for name, error in report.layers if error > report.tolerance), "none of the common"
    )
