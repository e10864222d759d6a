"""The life of one model: attach, train, fold, compare; every figure measured on the way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.asr.sites import attached_sites
from stripefold.errors import AttachError
from stripefold.modules.example import Example, example_to
from stripefold.modules.float64 import KeepFloat64, is_float64
from stripefold.modules.tensors import tensors_of
from tests.zoo.measure import Unequal, error, float32_tolerance, image_dependence, judge
from tests.zoo.prepare import (
    Randomness,
    calibrate_frozen_,
    jitter_,
    randomise_,
    randomise_gates_,
    statistics_of_the_last_batch,
)
from tests.zoo.subject import Subject, all_outputs, quick_creation

WHERE = ("residual", "norm", "affine")
CALM, CALMER = 1e-4, 0.5
"""Rounding noise in float32 beyond which a network hides what is looked for, and the gain it is prepared with then."""
BATCHES = 4
"""Batches on which a float32 error is measured again that exceeds its tolerance on one: one measures noise roughly."""
STEPS = 3
TRAINING_SEED, TEST_SEED = 100, 7


class Unfit(Exception):
    """The model does not run on this example; another size may do."""


def check(subject: Subject) -> dict[str, Any]:
    """Run one subject through the whole lifecycle.

    Returns:
        The figures by name.

    Raises:
        Unfit: the model cannot be built or run in this size.
        Unequal: it runs, and a promise does not hold.
    """
    start = time.perf_counter()
    figures = _measure(subject, gain=1.0)
    if figures["noise32"] > CALM:
        figures = _measure(subject, gain=CALMER)
    if figures["error32"] > float32_tolerance(figures):
        figures = _measure(subject, gain=figures["gain"], batches=BATCHES)
    judge(figures)
    return figures | {"seconds": round(time.perf_counter() - start, 2)}


def _measure(subject: Subject, *, gain: float, batches: int = 1) -> dict[str, Any]:
    randomness = Randomness(0, gain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own; ours have their tests elsewhere
        model, figures = _attached(subject, randomness)
        figures |= _train_(subject, model, randomness)
        _check_structure(sf.fold(model, check=False), figures.pop("structure"))
        examples = [subject.inputs(TEST_SEED + index) for index in range(batches)]
        return figures | _compare(subject, model.eval(), examples) | {"gain": gain, "batches": batches}


def _attached(subject: Subject, randomness: Randomness) -> tuple[nn.Module, dict[str, Any]]:
    """The prepared model with its gates on, and what is known of it so far."""
    torch.manual_seed(0)
    try:
        with quick_creation():
            model = subject.build()
        structure = [(key, tuple(t.shape), t.dtype) for key, t in model.state_dict().items()]
        figures = {"params": sum(p.numel() for p in model.parameters()), "structure": structure}
        randomise_(model, randomness)
        example = subject.inputs(TRAINING_SEED)
        calibrate_frozen_(model, example)
        model, where, note = _attach(model, example)
    except AttachError as error:
        raise Unequal(f"attach: {error}") from error
    except Exception as error:
        raise Unfit(f"{type(error).__name__}: {error}") from error
    randomise_gates_(model, randomness)
    figures |= {"input": _shapes(example), "where": where, "sites": len(attached_sites(model))}
    return model, figures | ({"note": note} if note else {})


def _shapes(example: Example) -> list[list[int]]:
    return [list(tensor.shape) for _, tensor in tensors_of(example)]


def _attach(model: nn.Module, example: Example) -> tuple[nn.Module, str, str]:
    """The model, the first ``where`` that selects anything, and why those before it did not."""
    notes = []
    for where in WHERE:
        try:
            return sf.attach_(model, "se", where=where, example=example), where, "; ".join(notes)
        except AttachError as error:
            if "selects no layer" not in str(error):
                raise
            notes.append(_why_not(where, str(error)))
    raise AttachError("; ".join(notes))


def _why_not(where: str, message: str) -> str:
    """The first refusal, where layers were found and refused."""
    refused = message.split("\n")[1:2]
    return f"{where}: {refused[0].strip()[:200]}" if refused else f"{where}: no such layer"


def _train_(subject: Subject, model: nn.Module, randomness: Randomness) -> dict[str, Any]:
    """Steps on fresh batches until every gate parameter has had a gradient, then one step of an optimiser."""
    gates = {name: p for name, p in model.named_parameters() if _is_gate(name)}
    others = [p for name, p in model.named_parameters() if not _is_gate(name) and p.requires_grad]
    missing = set(gates)
    model.train()
    steps = 0
    with statistics_of_the_last_batch(model):
        while missing and steps < STEPS:
            try:
                loss = subject.loss(model, subject.inputs(TRAINING_SEED + steps), randomness.generator)
            except Exception as error:
                raise Unfit(f"training step: {type(error).__name__}: {error}") from error
            loss.backward()
            steps += 1
            missing -= {name for name, p in gates.items() if p.grad is not None and bool(p.grad.any())}
    _check_gradients(gates, missing)
    _step(gates.values(), others)
    jitter_(model, randomness)
    return {"steps": steps}


def _is_gate(name: str) -> bool:
    return ".gates." in f".{name}"


def _check_gradients(gates: dict[str, nn.Parameter], missing: set[str]) -> None:
    infinite = [name for name, p in gates.items() if p.grad is not None and not bool(p.grad.isfinite().all())]
    if infinite:
        raise Unequal(
            f"{len(infinite)} of {len(gates)} gate parameters have a gradient that is not finite: {infinite[0]}"
        )
    if missing:
        raise Unequal(
            f"{len(missing)} of {len(gates)} gate parameters have no gradient after {STEPS} steps: {min(missing)}"
        )


def _step(gates: Iterable[nn.Parameter], others: list[nn.Parameter]) -> None:
    """Gates by Adam, so that each moves whatever its gradient's size; the rest by a short clipped step."""
    torch.optim.Adam(gates, lr=0.02).step()
    with_gradient = [p for p in others if p.grad is not None and bool(p.grad.isfinite().all())]
    nn.utils.clip_grad_norm_(with_gradient, 1.0)
    torch.optim.SGD(with_gradient, lr=0.05).step() if with_gradient else None
    for parameter in (*gates, *others):
        parameter.grad = None


def _compare(subject: Subject, model: nn.Module, examples: list[Example]) -> dict[str, Any]:
    """Attached, folded and bare in float32; attached and folded in float64."""
    wide = [example_to(example, torch.device("cpu"), torch.float64) for example in examples]
    attached32 = _run(subject.smooth_outputs, model, examples)
    folded32 = _run(subject.smooth_outputs, sf.fold(model, check=False), examples)
    bare32 = _run(subject.smooth_outputs, sf.detach(model), examples)
    model.double()
    folded64 = _run(all_outputs, sf.fold(model, check=False), wide)
    truth = _run(all_outputs, model, wide)
    smooth = truth if subject.smooth_outputs is all_outputs else _run(subject.smooth_outputs, model, wide)
    return {
        "nan": sum(bool(tensor.isnan().any()) for tensor in smooth.values()),
        "error64": error(folded64, truth),
        "error32": error(folded32, smooth),
        "noise32": error(attached32, smooth),
        "image_dependence": image_dependence(smooth),
        "control": error(bare32, smooth),
        "unmoved": sum(site.is_at_start() for site in attached_sites(model).values()),
    }


def _check_structure(folded: nn.Module, expected: list[Any]) -> None:
    found = [(key, tuple(t.shape), t.dtype) for key, t in folded.state_dict().items()]
    if found != expected:
        different = sorted({key for key, *_ in set(found) ^ set(expected)})
        raise Unequal(f"the folded model's state dict is not the backbone's: {different[:3] or 'another order'}")


def _run(outputs: Any, model: nn.Module, examples: list[Example]) -> dict[str, Tensor]:
    found = {}
    with torch.inference_mode(), KeepFloat64() if is_float64(model) else nullcontext():
        for index, example in enumerate(examples):
            torch.manual_seed(1)
            found |= {f"{index}: {path}": tensor.clone() for path, tensor in outputs(model, example).items()}
    return found
