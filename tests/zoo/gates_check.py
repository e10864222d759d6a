"""One architecture of timm: the gates expected, found by the trace, and recorded by a real observation."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from typing import Any

import timm
import torch
from torch import nn

import stripefold as sf
from stripefold.stripe.discover import Discovery, discover
from tests.zoo.gates_expected import class_name, expected_gates
from tests.zoo.models_timm import MAXIMUM_PARAMETERS, subjects
from tests.zoo.prepare import Randomness, randomise_
from tests.zoo.subject import Subject, quick_creation

_MESSAGE = 400


def check_gates(name: str) -> dict[str, Any] | None:
    """The result line of one architecture; None for one above the limit of parameters."""
    start = time.perf_counter()
    line: dict[str, Any] = {"name": name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = without_weights(name)
            line["params"] = sum(parameter.numel() for parameter in model.parameters())
            if line["params"] > MAXIMUM_PARAMETERS:
                return None
            size = (2, *model.pretrained_cfg["input_size"])
            found = discover(model, torch.zeros(size, device="meta"))
            line |= {"expected": dict(expected_gates(model)), "found": dict(found_gates(model, found))}
            line |= {"hooked": sum(gate.source is not None for gate in found.gates), "others": len(found.others)}
            if line["expected"] or line["found"]:
                line |= recorded_gates(name, model, found)
        except Exception as failure:  # every failure is a finding
            line["failure"] = f"{type(failure).__name__}: {failure}"[:_MESSAGE]
    return line | {"seconds": round(time.perf_counter() - start, 2)}


def without_weights(name: str) -> nn.Module:
    """The architecture on the meta device, or with empty weights where it cannot be built there."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (RuntimeError, NotImplementedError):
        with quick_creation():
            return timm.create_model(name)


def found_gates(model: nn.Module, discovery: Discovery) -> Counter[str]:
    """Class -> number of gates found in its modules."""
    return Counter(class_name(model.get_submodule(gate.where)) for gate in discovery.gates)


def recorded_gates(name: str, model: nn.Module, discovery: Discovery) -> dict[str, Any]:
    """Observe two random images in the smallest size that the architecture takes."""
    wanted = [gate.name for gate in discovery.gates]
    failure = ""
    for subject in subjects(name):
        try:
            report = observe_randomly(subject)
        except (sf.errors.StripefoldError, RuntimeError, AssertionError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"[:_MESSAGE]
            continue
        recorded = [layer.name for layer in report.layers if bool(layer.mean.isfinite().all())]
        if recorded == wanted:
            return {"recorded": len(recorded), "size": list(subject.inputs(0).shape[1:])}
        failure = f"recorded {len(recorded)} of {len(wanted)}; {'; '.join(report.unrecorded)}"[:_MESSAGE]
    return {"recorded": 0, "failure": failure}


def observe_randomly(subject: Subject) -> sf.StripeReport:
    """Random weights, random images."""
    with quick_creation():
        model = subject.build()
    randomise_(model, Randomness(0))
    return sf.observe(model.eval(), subject.inputs(0), keep=2)
