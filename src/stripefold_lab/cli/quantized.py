"""`stripefold export --quantize`: the int8 file, what it costs, what it gains, and the layers that suffer most."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold_lab.cli.output import print_line, print_table

if TYPE_CHECKING:
    from stripefold.export.quantize import QuantizationReport
    from stripefold.export.ranges import RangeTable
    from stripefold_lab.bench import Report
    from stripefold_lab.cli.deployable import Deployable

SHOWN_RANGES = 8


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was written and measured.

    Attributes:
        report: The file, its size and its accuracy.
        ranges: How the weights fill one int8 scale before and after folding.
        speed: Of both files in onnxruntime, one report per batch size.
    """

    report: QuantizationReport
    ranges: RangeTable
    speed: tuple[Report, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ranges = {
            name: {"trained": asdict(before), "folded": asdict(after)}
            for name, (before, after) in self.ranges.layers.items()
        }
        return {**asdict(self.report), "ranges": ranges, "speed": [report.to_dict() for report in self.speed]}

    def print(self) -> None:
        """Print lines and tables for a person."""
        from stripefold.export.ranges import COLUMNS
        from stripefold_lab.cli.bench import print_report

        print_line(f"written: {self.report}")
        rows = sorted(self.ranges.rows(), key=lambda row: -float(row[3]))[:SHOWN_RANGES]
        title = (
            f"Weights per output channel, trained and folded + fused: the widest of {len(self.ranges.layers)} layers"
        )
        caption = (
            "spread: largest channel's range over the median channel's; error: of rounding to int8, one scale or many"
        )
        print_table(title, COLUMNS, rows, caption=caption)
        for report in self.speed:
            print_report(report)


def quantized(given: Deployable, output: Path, int8: Path, count: int) -> Quantized:
    """Write the int8 file of an ONNX file and measure both.

    Args:
        given: What was exported, with its images.
        output: The ONNX file.
        int8: The file to write.
        count: How many images calibrate it.
    """
    import stripefold as sf
    from stripefold.export import compare_ranges, quantize_int8
    from stripefold_lab.bench.runtimes import compare_onnx
    from stripefold_lab.training.data import evaluation_loader

    assert given.data is not None
    assert given.config is not None
    test = evaluation_loader(given.data, given.config)
    report = quantize_int8(output, int8, given.calibration(count), test=test)
    fused = sf.fold(given.model, fuse=True, example=given.example, check=False)
    shape = given.example.shape[1:]
    return Quantized(
        report=report,
        ranges=compare_ranges(given.model, fused),
        speed=tuple(compare_onnx({"float32": output, "int8": int8}, (size, *shape)) for size in (1, 32)),
    )
