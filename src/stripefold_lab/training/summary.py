"""The summary of a run: one page of Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripefold.asr.gate import StaticGate
from stripefold.atomic import write_text
from stripefold.errors import TrainingError
from stripefold_lab.training.checkpoint import write_failure
from stripefold_lab.training.tasks import get_task

if TYPE_CHECKING:
    from torch import nn

    from stripefold_lab.training.record import MetricsRow
    from stripefold_lab.training.results import TrainResult

LISTED = 8
"""How many names a line gives before it only counts."""


def write_summary(result: TrainResult, rows: list[MetricsRow]) -> None:
    """Write ``summary.md``.

    Args:
        result: What the run gave.
        rows: One per epoch.

    Raises:
        TrainingError: If it cannot be written.
    """
    try:
        write_text(result.summary_file, summary_text(result, rows))
    except OSError as error:
        raise TrainingError(write_failure(result.summary_file, error)) from error


def summary_text(result: TrainResult, rows: list[MetricsRow]) -> str:
    """The summary as Markdown.

    Args:
        result: What the run gave.
        rows: One per epoch.
    """
    sections = [_title(result), _accuracy(result), _deployed(result), _gates(result.model), _time(result, rows)]
    return "\n".join([*(section for section in sections if section), _files(result)])


def _title(result: TrainResult) -> str:
    config = result.config
    gates = {
        "static": f"ASR({config.attention})",
        "dynamic": config.attention,
        "both": f"ASR({config.attention}) + {config.attention}",
        "none": "no attention",
    }[config.form]
    more = f", {config.repeats} gates per site" if config.repeats > 1 else ""
    more += f", {' and '.join(config.freeze)} frozen" if config.freeze and config.form in ("static", "both") else ""
    more += f", {config.branch} blocks" if config.branch is not None else ""
    more += f", {config.batch_noise['kind']} noise in BatchNorm" if config.batch_noise else ""
    return f"# {config.model}, {gates}{more}, on {config.data}, seed {config.seed}\n"


def _accuracy(result: TrainResult) -> str:
    attached, deployed = result.attached, result.deployed
    task = get_task(result.config.task)
    heads = [f"test {measure.word}" for measure in reversed(task.measures)]
    lines = [f"| model | {' | '.join(heads)} | parameters |", "|---" * (len(heads) + 2) + "|"]
    for name, found, model in (("trained", attached, result.model), ("deployed", deployed, result.folded)):
        count = sum(parameter.numel() for parameter in model.parameters())
        told = " | ".join(measure.shown(found.measures[measure.name]) for measure in reversed(task.measures))
        lines.append(f"| {name} | {told} | {count:,} |")
    best = f"{task.score.word}, {result.best_score:.2%} at epoch {result.best_epoch}"
    lines += [
        "",
        f"Both are of the last epoch, on {attached.images} test images. The best epoch's {best},",
        "was chosen by the test images themselves and flatters.",
    ]
    return "\n".join([*lines, ""])


def _deployed(result: TrainResult) -> str:
    if result.verification is None:
        return "## Folding\n\nNothing to fold: the model has no static gates and no branch blocks.\n"
    return f"## Folding\n\n{result.verification}\n"


def _gates(model: nn.Module) -> str:
    gates = {name: module for name, module in model.named_modules() if isinstance(module, StaticGate)}
    if not gates:
        return ""
    dead = {name: gate.attention.dead_units(gate.psi.detach()) for name, gate in gates.items()}
    dead = {name: count for name, count in dead.items() if count}
    unmoved = [name for name, gate in gates.items() if gate.is_at_start()]
    lines = [
        f"## Gates\n\n{len(gates)} gates.",
        f"Dead hidden units: {_listed([f'{name} ({count})' for name, count in dead.items()])}.",
        f"Gates that never moved: {_listed(unmoved)}.",
    ]
    return "\n".join([*lines, ""])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more if names else "none"


def _time(result: TrainResult, rows: list[MetricsRow]) -> str:
    total = sum(row["seconds"] for row in rows)
    return (
        f"## Time\n\n{total:.1f} s for {len(rows)} epochs ({total / len(rows):.2f} s each); {result.epochs_run} "
        "of them in the process that wrote this.\n"
    )


def _files(result: TrainResult) -> str:
    stays = "the deployed weights; their dynamic attention needs stripefold, `stripefold bake` takes it out"
    plain = "the deployed weights; load into the plain model, stripefold is not needed"
    rows = {
        result.folded_file.name: stays if result.config.keeps_attention else plain,
        "checkpoints/last.ckpt": "the training model of the last epoch",
        "checkpoints/best.ckpt": f"the training model of epoch {result.best_epoch}",
        result.metrics_file.name: "one row per epoch",
        "config.yaml": "the resolved configuration",
    }
    if result.config.observe_every:
        rows["stripes/index.html"] = "the gates over training, to look at"
    return "\n".join(["## Files\n", *(f"- `{name}`: {meaning}" for name, meaning in rows.items()), ""])
