"""One model of a public code base through every public call, judged by plain float64 runs of the model itself.

Nothing of stripefold's takes part in the judgement: a gate's scale is computed from its parameters by the formula of
the paper, the gated model is the untouched one under hooks that multiply, a dynamic gate's factor is output over
input of its module, and the baked model is the untouched one under hooks that hold these factors at their means.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from tests.grammar.compare import distances, flat
from tests.grammar.state import changes, own_state
from tests.zoo.codebases_models import Model
from tests.zoo.prepare import Randomness, jitter_, randomise_, statistics_of_the_last_batch

EXACT = 1e-10
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)


@dataclass
class Line:
    """What became of one model; errors are the largest difference over the largest value, over two inputs."""

    package: str
    name: str
    sites: int = 0
    gates_folded: int = 0
    fused: int = 0
    fuse_left: int = 0
    gates: int = 0
    gates_checked: int = 0
    others: int = 0
    baked: int = 0
    baked_checked: int = 0
    kept: int = 0
    why_left: dict[str, int] = field(default_factory=dict)
    why_kept: dict[str, int] = field(default_factory=dict)
    error: float = 0.0
    control: float = float("inf")
    refused: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Subject:
    """A prepared model and the inputs it is judged on."""

    def __init__(self, source: Model) -> None:
        self.source = source
        self.model = prepared(source)
        self.inputs = [source.inputs(1), source.inputs(2)]
        self.line = Line(source.package, source.name)
        self.before = dict(own_state(self.model))
        self.truth = self.outputs(self.model)

    def outputs(self, model: nn.Module) -> list[list[Tensor]]:
        """Of every input, on a copy in eval mode."""
        return [[t for t in flat(found) if t.numel()] for found in _run(copy.deepcopy(model).eval(), self.inputs)]

    def attempt(self, call: str, act: Callable[[], Any]) -> Any:
        """Make a public call; None where it is refused. The model has to stay bit for bit what it was."""
        result = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = act()
        except sf.errors.StripefoldError as problem:
            self.line.refused.append(f"{call}: {str(problem).splitlines()[0][:200]}")
        except Exception as problem:
            self.line.faults.append(f"{call}: {type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:160]}")
        changed = changes(self.before, dict(own_state(self.model)))
        if changed:
            self.line.faults.append(f"{call}: {changed[0]}")
            self.model = prepared(self.source)
            self.before = dict(own_state(self.model))
        return result

    def compare(self, call: str, made: nn.Module, truth: list[list[Tensor]]) -> None:
        """Hold a result against what it should compute."""
        try:
            error = max(distances(self.outputs(made), truth))
        except Exception as problem:
            self.line.faults.append(f"{call}: the result raises {type(problem).__name__}: {str(problem)[:120]}")
            return
        self.line.error = max(self.line.error, error)
        if error > EXACT:
            self.line.faults.append(f"{call}: off by {error:.2g}")


def check(source: Model) -> Line:
    """Every public call."""
    subject = Subject(source)
    _gates(subject)
    made = subject.attempt(
        "fuse", lambda: sf.fold(subject.model, fuse=True, example=subject.inputs[0], check=False, report=True)
    )
    if made is not None:
        plain, report = made
        subject.line.fused, subject.line.fuse_left = len(report.folded), len(report.left)
        subject.line.why_left = _reasons(note.why for note in report.left)
        subject.compare("fuse", plain, subject.truth)
    same = copy.deepcopy(subject.model)
    report = subject.attempt("verify", lambda: sf.verify(subject.model, same, subject.inputs[0]))
    if report is not None and report.error != 0:
        subject.line.faults.append(f"verify: {report.error:.2g} of itself")
    _attention(subject)
    return subject.line


def _reasons(lines: Iterable[str]) -> dict[str, int]:
    return dict(Counter(re.sub(r"'[^']*'", "'...'", line)[:160] for line in lines))


def prepared(source: Model) -> nn.Module:
    """Random weights, statistics of one batch, then jittered; float64, eval mode."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = source.build().double()
        randomness = Randomness(0)
        randomise_(model, randomness)
        with statistics_of_the_last_batch(model), torch.no_grad():
            model.train()(source.inputs(0, batch=4))
    jitter_(model, randomness)
    return model.eval()


def _gates(subject: Subject) -> None:
    """Attach, fold and fuse; the truth is the bare model with hooks that multiply by the paper's formula."""
    example = subject.inputs[0]
    where = "residual"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            where = "residual" if len(sf.sites(subject.model, "residual", example=example)) else "affine"
        except Exception:
            where = "affine"
    attached = subject.attempt("attach", lambda: sf.attach(subject.model, "se", where=where, example=example))
    if attached is None:
        return
    _scatter_(attached)
    scales = paper_scales(attached.state_dict())
    subject.line.sites = len(scales)
    truth = subject.outputs(_scaled(subject.model, scales))
    subject.line.control = min(max(distances(truth, subject.truth)), 9.9)
    subject.compare("attach", attached, truth)
    for call, options in (("attach, fold", {"check": True}), ("attach, fuse", {"check": False, "fuse": True})):
        made = subject.attempt(call, lambda options=options: sf.fold(attached, example=example, report=True, **options))
        if made is not None:
            plain, report = made
            if call == "attach, fold":
                subject.line.gates_folded = len(report.folded)
            subject.compare(call, plain, truth)


def _scatter_(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".gates." in f".{name}":
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def paper_scales(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Site -> sigmoid(W2 relu(W1 psi + b1) + b2), from the attached model's state (Hu 2018, Huang 2024)."""
    found: dict[str, Tensor] = {}
    for key in state:
        match = re.fullmatch(r"(?:(.*)\.)?gates\.(\d+)\.psi", key)
        if match is None:
            continue
        gate = key.removesuffix("psi") + "attention."
        w1, w2 = (next(t for k, t in state.items() if k == f"{gate}mlp.{part}.weight") for part in ("reduce", "expand"))
        b1, b2 = (next(t for k, t in state.items() if k == f"{gate}mlp.{part}.bias") for part in ("reduce", "expand"))
        v = torch.sigmoid(w2 @ torch.relu(w1 @ state[key] + b1) + b2)
        name = match[1] or ""
        found[name] = found[name] * v if name in found else v
    return found


def _scaled(model: nn.Module, scales: Mapping[str, Tensor]) -> nn.Module:
    hooked = copy.deepcopy(model)
    for name, v in scales.items():
        hooked.get_submodule(name).register_forward_hook(_times(v), prepend=True)
    return hooked


def _times(v: Tensor) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        last = isinstance(module, _CHANNELS_LAST) or type(module).__name__ in ("LayerNorm", "Linear")
        return output * (v if last else v.view(1, -1, *[1] * (output.dim() - 2)))

    return hook


def _attention(subject: Subject) -> None:
    """Observe and bake; the factor of a gate is what its module gives over what it takes."""
    report = subject.attempt("observe", lambda: sf.observe(subject.model, subject.inputs))
    if report is None:
        return
    subject.line.gates, subject.line.others = len(report.layers), len(report.others)
    means = factors(subject, [layer.name for layer in report.layers])
    for layer in report.layers:
        mean = means.get(layer.name)
        if mean is not None:
            subject.line.gates_checked += 1
            error = float((layer.mean - mean).abs().max() / mean.abs().max())
            if error > 1e-8:
                subject.line.faults.append(f"observe: the mean of {layer.name} is off by {error:.2g}")
    if not report.layers:
        return
    made = subject.attempt("bake", lambda: sf.bake(subject.model, subject.inputs, recalibrate=False))
    if made is None:
        return
    baked, baking = made
    names = [site.name for site in baking.baked]
    subject.line.baked, subject.line.kept = len(names), len(baking.kept)
    subject.line.why_kept = _reasons(site.why for site in baking.kept)
    if all(name in means for name in names):
        subject.line.baked_checked = len(names)
        subject.compare("bake", baked, subject.outputs(_held(subject.model, {name: means[name] for name in names})))


def factors(subject: Subject, names: list[str]) -> dict[str, Tensor]:
    """Gate -> mean over the images of its factor: output over input of its module, or what a part of it gives."""
    model, seen = copy.deepcopy(subject.model), dict[str, list[Tensor]]()
    known = dict(model.named_modules())
    for name in names:
        if name in known:
            part = _part(known[name])
            record = _recorder if part is None else _PARTS[part].recorder
            target = known[name] if part is None else getattr(known[name], part)
            target.register_forward_hook(record(seen.setdefault(name, [])))
    _run(model, subject.inputs)
    whole = {name: v for name, v in seen.items() if len(v) == len(subject.inputs) and all(each.numel() for each in v)}
    return {name: torch.cat(values).mean(0) for name, values in whole.items()}


def _run(model: nn.Module, inputs: list[Tensor]) -> list[Any]:
    found = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for x in inputs:
            torch.manual_seed(5)  # speechbrain's pooling draws numbers
            found.append(model(x.clone()))
    return found


@dataclass(frozen=True)
class _Part:
    """A module whose output is the factor, or its logit."""

    logits: bool

    def recorder(self, values: list[Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            values.append((output.sigmoid() if self.logits else output).detach().flatten(1))

        return hook

    def holder(self, mean: Tensor) -> Callable[..., Tensor]:
        value = mean.logit() if self.logits else mean
        return lambda module, args, output: value.view(1, -1, *[1] * (output.dim() - 2)).expand_as(output)


# efficientnet-pytorch's blocks, smp's scSE, timm's SE; the factor of a channel that a ReLU left empty is seen only so.
_PARTS = {"_se_expand": _Part(logits=True), "cSE": _Part(logits=False), "gate": _Part(logits=False)}


def _part(module: nn.Module) -> str | None:
    return next((name for name in _PARTS if isinstance(getattr(module, name, None), nn.Module)), None)


def _recorder(values: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        x, v = args[0] if args else None, None
        if isinstance(x, Tensor) and x.dim() > 2:
            v = _factor(x, output)
            faint = 0.01 * x  # beside a saturated gate over positions, every factor looks like one of channels
            v = v if v is not None and _factor(faint, type(module).forward(module, faint)) is not None else None
        values.append(torch.empty(0) if v is None else v)

    return hook


def _factor(x: Tensor, output: Any) -> Tensor | None:
    """v (N, C) with output = v * x, or None where there is none."""
    if not isinstance(output, Tensor) or output.shape != x.shape:
        return None
    a, b = x.flatten(2), output.flatten(2)
    v = (a * b).sum(-1) / (a * a).sum(-1)
    return v if float((a * v[..., None] - b).abs().max()) <= 1e-12 * float(b.abs().max()) else None


def _held(model: nn.Module, means: Mapping[str, Tensor]) -> nn.Module:
    hooked = copy.deepcopy(model)
    for name, mean in means.items():
        module = hooked.get_submodule(name)
        part = _part(module)
        if part is not None:
            getattr(module, part).register_forward_hook(_PARTS[part].holder(mean))
        else:
            module.register_forward_hook(
                lambda module, args, output, mean=mean: args[0] * mean.view(1, -1, *[1] * (args[0].dim() - 2))
            )
    return hooked
