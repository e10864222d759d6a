"""The public calls, each made on a network that was built for it alone."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from tests.grammar.check import Subject, attempt, loaded_from, told
from tests.grammar.compare import distances, outputs
from tests.grammar.network import EVERY, Loaded
from tests.grammar.observing import check_bake, check_observe

_ATTENTIONS = ("se", "ie", "eca", "srm", "scale", "cbam", "gct", "ese", "spa", "shift")
_BLOCKS = ("acnet", "dbb", "repvgg", "mobileone", "doconv")
_LAST = (nn.Linear, nn.LayerNorm)


def check_sites(subject: Subject) -> None:
    """``sites`` changes nothing."""
    rng = subject.rng("sites")
    with loaded_from(subject.network) as loaded:
        where, example = rng.choice(["residual", "norm", "affine", "positions"]), _example(loaded, rng)
        good, table = attempt(subject, "sites", loaded, lambda: sf.sites(loaded.net, where, example=example))
        if good:
            subject.note("sites", "right", done=len(table), left=len(table.refused))
            _afterwards(subject, "sites", loaded)


def check_attach(subject: Subject) -> None:
    """``attach`` scales what the sites give, and ``fold`` keeps that: with and without a check, and fused."""
    rng = subject.rng("attach")
    with loaded_from(subject.network) as loaded:
        attached = _attached(subject, loaded, rng, _example(loaded, rng))
        if attached is None:
            return
        truth = _truth(subject, "attach", attached, loaded)
        for name, options in (
            ()
            if truth is None
            else (
                ("attach, fold", {"check": False}),
                ("attach, fold, checked", {"check": True}),
                ("attach, fuse", {"check": False, "fuse": True}),
            )
        ):
            _fold(subject, name, attached, truth, loaded, {**options, "example": _example(loaded, rng)})


def check_attach_list(subject: Subject) -> None:
    """As ``check_attach``, with an example for every way that the network is used."""
    rng = subject.rng("attach, all examples")
    with loaded_from(subject.network) as loaded:
        attached = _attached(subject, loaded, rng, _examples(loaded, rng), "attach, all examples")
        if attached is None:
            return
        truth = _truth(subject, "attach, all examples", attached, loaded)
        if truth is None:
            return
        options = {"check": True, "fuse": True, "example": _examples(loaded, rng)}
        _fold(subject, "attach, fuse, all examples", attached, truth, loaded, options)


def check_fuse(subject: Subject) -> None:
    """``fold(fuse=True)`` of the plain network."""
    for name, check in (("fuse", False), ("fuse, checked", True)):
        rng = subject.rng("fuse")
        with loaded_from(subject.network) as loaded:
            options = {"check": check, "fuse": True, "example": _example(loaded, rng)}
            _fold(subject, name, loaded.net, subject.truth, loaded, options)


def check_fuse_list(subject: Subject) -> None:
    """``fold(fuse=True)`` with an example for every way that the network is used."""
    rng = subject.rng("fuse, all examples")
    with loaded_from(subject.network) as loaded:
        options = {"check": False, "fuse": True, "example": _examples(loaded, rng)}
        _fold(subject, "fuse, all examples", loaded.net, subject.truth, loaded, options)


def check_fold_in_place(subject: Subject) -> None:
    """``fold_`` of a copy: right, or refused with the copy as it was."""
    rng = subject.rng("fold_")
    with loaded_from(subject.network) as loaded:
        example, mine = _example(loaded, rng), subject.network.load().net
        good, made = attempt(
            subject, "fold_", loaded, lambda: sf.fold_(mine, fuse=True, example=example, check=rng.random() < 0.5)
        )
        if "lazy" not in subject.network.tags:
            subject.compare("fold_" if good else "fold_, refused", made if good else mine, subject.truth, loaded)


def check_branch(subject: Subject) -> None:
    """``branch`` and its fold, plain and fused."""
    rng = subject.rng("branch")
    with loaded_from(subject.network) as loaded:
        kind, where = rng.choice(_BLOCKS), rng.choice(["spatial", "*"])
        good, branched = attempt(
            subject,
            "branch",
            loaded,
            lambda: sf.branch(loaded.net, kind, where=where, example=_example(loaded, rng)),
            draws=True,
        )
        if not good or "lazy" in subject.network.tags:
            return
        randomise_(branched, rng, lambda name: True)
        truth = _truth(subject, "branch", branched, loaded)
        for name, options in (
            ()
            if truth is None
            else (
                ("branch, fold", {"check": False}),
                ("branch, fold, checked", {"check": True}),
                ("branch, fuse", {"check": False, "fuse": True}),
            )
        ):
            _fold(subject, name, branched, truth, loaded, {**options, "example": _example(loaded, rng)})


def check_verify(subject: Subject) -> None:
    """``verify`` passes a network and its copy, and sees a wrong weight."""
    rng = subject.rng("verify")
    with loaded_from(subject.network) as loaded:
        example, same = _example(loaded, rng), subject.network.load().net
        good, report = attempt(subject, "verify", loaded, lambda: sf.verify(loaded.net, same, example))
        if good:
            subject.note("verify", "right" if report.passed else "wrong", f"error {report.error:.2g} of itself")
        several = _examples(loaded, rng)
        good_on_all, on_all = attempt(
            subject, "verify, all examples", loaded, lambda: sf.verify(loaded.net, same, several)
        )
        if good_on_all:
            subject.note("verify, all examples", "right" if on_all.passed else "wrong")
        _afterwards(subject, "verify", loaded)
        wrong = None if not good or "lazy" in subject.network.tags else _visibly_wrong(loaded, subject.tolerance)
        if wrong is not None:
            _, report = attempt(
                subject, "verify, wrong weight", loaded,
                lambda: sf.verify(loaded.net, wrong, example, raise_on_mismatch=False),
            )  # fmt: skip
            if report is not None:
                subject.note("verify, wrong weight", "wrong" if report.passed else "right", str(report)[:120])


CHECKS: dict[str, Callable[[Subject], None]] = {
    "sites": check_sites,
    "attach": check_attach,
    "fuse": check_fuse,
    "fold_": check_fold_in_place,
    "branch": check_branch,
    "verify": check_verify,
    "observe": check_observe,
    "bake": check_bake,
    "attach_list": check_attach_list,
    "fuse_list": check_fuse_list,
}


def randomise_(net: nn.Module, rng: random.Random, chosen: Callable[[str], bool]) -> None:
    """Move the chosen parameters and statistics far from their start."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if not chosen(name) or not tensor.is_floating_point() or not tensor.numel():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
            if name.endswith("running_var"):
                tensor.mul_(1 + 0.5 * noise.abs())
            elif name.endswith("running_mean") or isinstance(tensor, nn.Parameter):
                tensor.add_(noise, alpha=0.3)


def _attached(
    subject: Subject, loaded: Loaded, rng: random.Random, example: Any, call: str = "attach"
) -> nn.Module | None:
    """The network with random gates, compared with itself under hooks that scale; None where refused or wrong."""
    attention, where = rng.choice(_ATTENTIONS), rng.choice(["norm", "affine", "residual", "norm", "*"])
    repeats = rng.choice([1, 1, 2])
    good, attached = attempt(
        subject, call, loaded,
        lambda: sf.attach(loaded.net, attention, where=where, repeats=repeats, example=example), draws=True,
    )  # fmt: skip
    if not good or "lazy" in subject.network.tags:
        return None
    randomise_(attached, rng, lambda name: ".gates." in f".{name}")
    scales, shifts = sf.scales(attached), sf.shifts(attached)
    names = list(dict.fromkeys((*scales, *shifts)))
    if any(_is_read(subject, name) for name in names):
        return attached  # a site's own tensors are read scaled, which hooks cannot do
    hooked = copy.deepcopy(loaded.net)
    for name in names:
        hooked.get_submodule(name).register_forward_hook(_scaled(scales.get(name), shifts.get(name)), prepend=True)
    right = subject.compare(call, attached, hooked, loaded, done=len(names))
    return attached if right else None


def _truth(subject: Subject, call: str, net: nn.Module, loaded: Loaded) -> list[list[Tensor]] | None:
    """What the changed network computes before it is folded; None, and a finding, where it no longer runs."""
    try:
        return outputs(net, loaded.calls)
    except sf.errors.StripefoldError as problem:
        subject.note(call, "refused", f"when the result runs: {problem}")
        return None
    except Exception as problem:
        subject.note(call, "wrong", f"the result raises {told(problem)}")
        return None


def _scaled(scale: Tensor | None, shift: Tensor | None) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        shape = [-1] if isinstance(module, _LAST) else [1, -1] + [1] * (output.dim() - 2)
        if scale is not None:
            output = output * scale.view(shape).to(output.dtype)
        return output if shift is None else output + shift.view(shape).to(output.dtype)

    return hook


def _is_read(subject: Subject, name: str) -> bool:
    """Whether the site belongs to a piece that reads parameters as well as calling layers."""
    number = re.search(r"(\d+)$", name.split(".")[0])
    steps = subject.network.steps
    return number is not None and int(number[1]) < len(steps) and "reads" in EVERY[steps[int(number[1])]].tags


def _fold(
    subject: Subject, call: str, net: nn.Module, truth: Sequence[Sequence[Tensor]], loaded: Loaded, options: Any
) -> None:
    """Fold a network, with its report, and compare with what it computed; ``net`` itself must stay as it is."""
    bench = Loaded(loaded.module, net, loaded.calls)
    good, made = attempt(subject, call, bench, lambda: sf.fold(net, report=True, **options))
    if good and "lazy" not in subject.network.tags:
        plain, report = made
        counts = {"done": len(report.folded), "left": len(report.left)}
        subject.compare(call, plain, list(truth), loaded, **counts)


def _example(loaded: Loaded, rng: random.Random) -> Any:
    return loaded.calls[0].example(rng.choice(["tensor", "tuple", "mapping"]))


def _examples(loaded: Loaded, rng: random.Random) -> list[Any]:
    """One for each way; what hangs on an attribute no example can show."""
    form = rng.choice(["tensor", "tuple", "mapping"])
    return [call.example(form) for call in loaded.calls if not call.attributes]


def _afterwards(subject: Subject, call: str, loaded: Loaded) -> None:
    """The user's own network still computes what it did, from the state that it was in."""
    if "lazy" not in subject.network.tags:
        subject.compare(f"{call}, afterwards", loaded.net, subject.truth, loaded)


def _visibly_wrong(loaded: Loaded, tolerance: float) -> nn.Module | None:
    """A copy with one wrong weight that shows on the first call."""
    truth = outputs(loaded.net, loaded.calls[:1])
    for index in range(len(list(loaded.net.parameters()))):
        wrong = copy.deepcopy(loaded.net)
        weight = list(wrong.parameters())[index]
        if not weight.is_floating_point() or isinstance(weight, nn.parameter.UninitializedTensorMixin):
            continue
        with torch.no_grad():
            weight.mul_(1.5).add_(0.3)
        if 10 * max(tolerance, 0.02) < max(distances(outputs(wrong, loaded.calls[:1]), truth)) < float("inf"):
            return wrong
    return None
