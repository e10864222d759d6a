"""Files of one network in onnxruntime, side by side: what does int8 gain in speed?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stripefold.export.session import OnnxModel
from stripefold_lab.bench.report import Report
from stripefold_lab.bench.steps import synthetic_batch
from stripefold_lab.bench.timing import Candidate, Settings, compare


def compare_onnx(
    files: Mapping[str, Path], shape: Sequence[int], *, settings: Settings | None = None, date: str = ""
) -> Report:
    """Time ONNX files on the same images, on as many threads as torch uses.

    Args:
        files: Row name -> file; the first is the baseline.
        shape: Of the images, (N, C, H, W).
        settings: How it is measured; memory is not, as another runtime's is out of sight.
        date: Day of the measurement.
    """
    settings = settings or Settings(memory=False)
    images, _ = synthetic_batch(shape, 1, settings)

    def running(path: Path) -> Callable[[], Any]:
        model = OnnxModel(path)
        feed = model.feed(images)
        return lambda: model.session.run(None, feed)

    candidates = [Candidate(name=name, run=running(path)) for name, path in files.items()]
    return compare(f"onnxruntime, batch {shape[0]}", candidates, settings, date=date)
