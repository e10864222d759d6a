"""The report of a baked ONNX network: that of ``stripefold.bake``, with what only a file has."""

from __future__ import annotations

from dataclasses import dataclass

from stripefold.baking.report import BakeReport, SiteResult
from stripefold.baking.table import SAY, cut, some, wrapped

_NAME, _KIND = 26, 12


@dataclass(frozen=True, kw_only=True)
class OnnxBakeReport(BakeReport):
    """What one ``bake`` of an ONNX network did; prints as a table.

    Attributes:
        bytes_before: size of the file that was given.
        bytes_after: size of the baked file.
        operations_before: number of operations, constants not counted.
        operations_after: likewise, of the baked network.
        error: largest relative difference of an output from the network with its gates held at the same constants.
        tolerance: what was allowed for ``error``: 1e-5 in float32, or what rounding alone does to these outputs.
        rms_error: the same as ``error``, with the root mean square in place of the largest.
        path: where it was written, or "".
    """

    bytes_before: int
    bytes_after: int
    operations_before: int
    operations_after: int
    error: float = 0.0
    tolerance: float = 0.0
    rms_error: float = 0.0
    path: str = ""

    def __str__(self) -> str:
        rows = [_row(self, site) for site in self.sites]
        return "\n".join([*wrapped(_headline(self)), "", _header(), *rows, "", *_reasons(self), *_figures(self)])


def _headline(report: OnnxBakeReport) -> str:
    counts = {say: sum(site.outcome == key for site in report.sites) for key, say in SAY.items()}
    ends = ", ".join(f"{count} {say}" for say, count in counts.items() if count)
    return (
        f"baked {report.model}: {len(report.baked)} of {len(report.sites)} gates ({ends}); constants: "
        f"{report.constants} over {report.images} images"
    )


def _header() -> str:
    numbers = f"{'C':>5} {'index':>6} {'std/|v|':>8} {'moving':>7} {'alone':>7}"
    return f"{'gate':<{_NAME}} {'kind':<{_KIND}} {numbers}  result"


def _row(report: OnnxBakeReport, site: SiteResult) -> str:
    alone = "-" if site.alone is None or report.before is None else f"{site.alone - report.before:+.2f}"
    moving = site.moving_channels
    numbers = (
        f"{_number(site.stripe_index, 3):>6} {_number(site.within_over_mean, 3):>8} {_number(moving, 1):>7} {alone:>7}"
    )
    name, kind = cut(site.name, _NAME), cut(site.kind, _KIND)
    return f"{name:<{_NAME}} {kind:<{_KIND}} {site.channels:>5} {numbers}  {SAY[site.outcome]}"


def _reasons(report: OnnxBakeReport) -> list[str]:
    """Where each kind of outcome went, gates of one reason together."""
    groups: dict[str, list[str]] = {}
    for site in report.sites:
        if site.why:
            groups.setdefault(f"{SAY[site.outcome]}: {site.why}", []).append(site.name)
    return [line for why, names in groups.items() for line in wrapped(f"{why} - {some(names)}")]


def _figures(report: OnnxBakeReport) -> list[str]:
    steps = {"as given": report.before, "with constants": report.constant, "written": report.after}
    shown = ", ".join(f"{name} {value:.2f}" for name, value in steps.items() if value is not None)
    lines = wrapped(f"{report.metric}: {shown}") if shown else []
    lines += [
        "alone: change of the metric when this gate alone is constant; moving: effective number of channels that vary",
        "index: 1 where every image gets the same vector; std/|v|: deviation over images / mean of |v|",
    ]
    if report.max_drop is not None:
        lines.append(f"budget: the metric may fall by {report.max_drop:g}")
    lines.append(
        f"size: {report.bytes_before} -> {report.bytes_after} bytes "
        f"({report.bytes_after / max(1, report.bytes_before) - 1:+.1%}), {report.operations_before} -> "
        f"{report.operations_after} operations"
    )
    if report.speed is not None:
        before, after = 1e3 * report.speed.before, 1e3 * report.speed.after
        lines.append(
            f"speed: {before:.2f} -> {after:.2f} ms for {report.speed.batch} samples on {report.speed.device} "
            f"({report.speed.ratio:.3f} x)"
        )
    if report.baked:
        lines.append(
            f"checked: relative difference {report.error:.1e} at most, {report.tolerance:.1e} allowed; "
            f"{report.rms_error:.1e} root mean square"
        )
    return [*lines, *(line for note in report.notes for line in wrapped(note))]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
