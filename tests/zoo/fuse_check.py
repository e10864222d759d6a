"""One architecture through ``fold(fuse=True)``: what is left, how exact it is, and what timm's own fusing leaves."""

from __future__ import annotations

import copy
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.modules.float64 import KeepFloat64, is_float64
from tests.zoo.fuse_subjects import batchnorms, build, contents, layer_scales
from tests.zoo.measure import error, image_dependence
from tests.zoo.models_timm import subjects
from tests.zoo.prepare import Randomness, calibrate_frozen_, jitter_, randomise_, statistics_of_the_last_batch
from tests.zoo.subject import Subject, all_outputs, quick_creation

LARGE = 150_000_000
"""Parameters above which an architecture is built with fewer blocks, because blocks of one kind are alike."""
_DEPTH = 4


def check_fuse(name: str) -> dict[str, Any]:
    """The figures of one architecture.

    Raises:
        RuntimeError: it runs in none of its sizes.
    """
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, example = first_prepared(_subjects(name))
        figures = _figures(model, example)
    seconds = round(time.perf_counter() - start, 1)
    return {"name": name, "input": list(example.shape), **figures, **_shortened(name), "seconds": seconds}


def first_prepared(sizes: Iterable[Subject]) -> tuple[nn.Module, Tensor]:
    """The model and the example of the first of an architecture's sizes in which it runs.

    Raises:
        RuntimeError: it runs in none of them.
    """
    failures = []
    for subject in sizes:
        try:
            return prepared(subject)
        except Exception as failure:  # too small an image: the next size
            failures.append(f"{type(failure).__name__}: {failure}")
    raise RuntimeError("; ".join(failures))


def _shortened(name: str) -> dict[str, Any]:
    whole = contents(build(name))
    return {"shortened_from": whole} if whole["parameters"] > LARGE else {}


def _subjects(name: str) -> list[Subject]:
    """As the other sweep has them, with fewer blocks where all of them would not fit into memory."""
    if contents(build(name))["parameters"] <= LARGE:
        return subjects(name)
    pairs = zip(subjects(name), subjects(name, depth=_DEPTH), strict=True)
    return [replace(whole, build=partial(_build_shortened, whole, shallow)) for whole, shallow in pairs]


def _build_shortened(whole: Subject, shallow: Subject) -> nn.Module:
    try:
        return shallow.build()
    except TypeError:  # it counts its blocks by stage
        return shortened(whole.build())


def shortened(model: nn.Module) -> nn.Module:
    """The model with the first block of every kind in each stage: what follows the first keeps the shape."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "blocks" and isinstance(module, (nn.Sequential, nn.ModuleList)):
            stages = list(module) if all(isinstance(stage, nn.Sequential) for stage in module) else [module]
            for stage in stages:
                kinds = [type(block) for block in stage]
                for index in reversed([i for i, kind in enumerate(kinds) if kind in kinds[:i]]):
                    del stage[index]
    return model


def prepared(subject: Subject) -> tuple[nn.Module, Tensor]:
    """A float64 model in eval mode with every number random, statistics calibrated and jittered; and its input."""
    torch.manual_seed(0)
    with quick_creation():
        model = subject.build()
    randomness, example = Randomness(0), subject.inputs(0)
    randomise_(model, randomness)
    calibrate_frozen_(model, example)
    with torch.no_grad():
        if batchnorms(model):
            with statistics_of_the_last_batch(model):
                model.train()(example)
        jitter_(model, randomness)
        model.eval()(example)
    return model.double(), subject.inputs(7).double()


def _figures(model: nn.Module, example: Tensor) -> dict[str, Any]:
    expected = outputs(model, example)
    return {  # one after the other, so that no more copies stand side by side than one comparison needs
        **contents(model),
        "batchnorms": len(batchnorms(model)),
        **_in_float64(model, example, expected),
        "image_dependence": image_dependence(expected),
        "control": error(outputs(control(model), example), expected),
        **_in_bfloat16(model, example),
        **_timm(model, example, expected),
    }


def _in_float64(model: nn.Module, example: Tensor, expected: dict[str, Tensor]) -> dict[str, Any]:
    """What is left and why, how exact the rest is, and what a second call does."""
    plain, report = sf.fold(model, fuse=True, example=example, check=False, report=True)
    again, second = sf.fold(plain, fuse=True, example=example, check=False, report=True)
    left = [note for note in report.left if note.name in {*batchnorms(plain), *layer_scales(plain)}]
    return {
        "batchnorms_left": len(batchnorms(plain)),
        "layer_scales_left": len(layer_scales(plain)),
        "why_left": _counted(note.why.replace(note.name, "it") for note in left),
        "scales_left": _counted(note.kind for note in report.left if note.kind.startswith("scale of ")),
        "additions_left": _counted(note.kind for note in report.left if note.kind.startswith("addition of ")),
        "merged": _counted(note.kind for note in report.folded),
        "error64": error(outputs(plain, example), expected),
        "again_folded": len(second.folded),
        "again_same": _same_state(plain, again),
        "float64_kept": _dtypes(plain) == {"float64"},
    }


def _counted(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def outputs(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode(), KeepFloat64() if is_float64(model) else nullcontext():
        return {path: tensor.clone() for path, tensor in all_outputs(model, example).items()}


def control(model: nn.Module) -> nn.Module:
    """The control: every BatchNorm's and LayerScale's own numbers taken away must be seen."""
    bare = copy.deepcopy(model)
    with torch.no_grad():
        for name in (*batchnorms(bare), *layer_scales(bare)):
            for parameter in bare.get_submodule(name).parameters():
                parameter.fill_(1.0)
    return bare


def _same_state(first: nn.Module, second: nn.Module) -> bool:
    mine, its = first.state_dict(), second.state_dict()
    return list(mine) == list(its) and all(torch.equal(mine[key], its[key]) for key in mine)


def _dtypes(model: nn.Module) -> set[str]:
    floating = (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    return {str(tensor.dtype).removeprefix("torch.") for tensor in floating}


def _in_bfloat16(model: nn.Module, example: Tensor) -> dict[str, Any]:
    """Whether bfloat16 weights stay bfloat16, and how many tensors are not the float64 fold rounded once."""
    narrow = copy.deepcopy(model).bfloat16()
    try:
        with torch.no_grad():  # what a model caches of a run with gradients cannot be copied
            narrow(example.bfloat16())
    except NotImplementedError as error:  # torch has no such operation in bfloat16 on this device
        return {"bfloat16_not_run": str(error).splitlines()[0]}
    found = sf.fold(narrow, fuse=True, example=example.bfloat16(), check=False)
    exact = sf.fold_(narrow.double(), fuse=True, example=example, check=False).state_dict()
    state = found.state_dict()
    different = [
        key for key in exact if key not in state or not torch.equal(state[key], exact[key].to(state[key].dtype))
    ]
    return {"bfloat16_kept": _dtypes(found) == {"bfloat16"}, "bfloat16_rounded_otherwise": len(different)}


def _timm(model: nn.Module, example: Tensor, expected: dict[str, Tensor]) -> dict[str, Any]:
    """What ``timm.utils.reparameterize_model`` leaves, in float32 as it is meant to be used, and in float64."""
    try:
        theirs = timm.utils.reparameterize_model(copy.deepcopy(model).float())
    except Exception as failure:  # it may raise anything
        return {"timm": _in_words(failure)}
    found: dict[str, Any] = {"timm_left": len(batchnorms(theirs))}
    try:
        wide = timm.utils.reparameterize_model(copy.deepcopy(model))
        found["timm_error64"] = error(outputs(wide, example), expected)
    except Exception as failure:
        found["timm_float64"] = _in_words(failure)
    try:
        timm.utils.reparameterize_model(theirs)
    except Exception as failure:
        found["timm_again"] = _in_words(failure)
    return found


def _in_words(failure: Exception) -> str:
    return f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"[:160]
