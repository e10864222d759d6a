"""Static int8 quantisation with onnxruntime: calibrate on images, write, and measure what it costs.

Weights per output channel and symmetric, activations per tensor with a zero point, in QDQ form. A scale per channel
covers whatever range a folded scale or a merged BatchNorm gives each channel, exactly as it would before folding;
`ranges` shows what one scale per tensor would lose instead.

Source: Jacob et al. 2018, arXiv 1712.05877; weights per channel: Krishnamoorthi 2018, arXiv 1806.08342.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from stripefold.errors import ExportError
from stripefold.export.session import OnnxModel
from stripefold.export.write import writing

Method = Literal["minmax", "entropy", "percentile"]
METHODS: dict[str, str] = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """An int8 file beside the float file it came from.

    Attributes:
        path: the int8 file.
        calibration_images: how many images gave the ranges of the activations.
        float_bytes: size of the float file.
        int8_bytes: size of the int8 file.
        images: how many labelled images both were judged on; 0: none were given.
        float_accuracy: fraction of right answers of the float file, or None.
        int8_accuracy: of the int8 file.
        agreement: fraction of images on which both give the same answer.
    """

    path: Path
    calibration_images: int
    float_bytes: int
    int8_bytes: int
    images: int = 0
    float_accuracy: float | None = None
    int8_accuracy: float | None = None
    agreement: float | None = None

    def __str__(self) -> str:
        """Return a few lines for a person."""
        size = f"{self.float_bytes / 2**20:.2f} MiB -> {self.int8_bytes / 2**20:.2f} MiB"
        lines = [f"{self.path}: int8, calibrated on {self.calibration_images} images, {size}"]
        if self.float_accuracy is not None and self.int8_accuracy is not None:
            drop = 100 * (self.float_accuracy - self.int8_accuracy)
            lines.append(
                f"accuracy {self.float_accuracy:.2%} -> {self.int8_accuracy:.2%} ({drop:+.2f} points lost), the same "
                f"answer on {self.agreement:.2%} of {self.images} images"
            )
        return "\n  ".join(lines)


def quantize_int8(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    calibration: Iterable[Any],
    *,
    test: Iterable[tuple[Tensor, Tensor]] = (),
    method: Method = "minmax",
    reduce_range: bool = False,
) -> QuantizationReport:
    """Quantise an ONNX file of one image input to int8.

    Args:
        source: a float32 ONNX file, such as `export_model` writes.
        output: the int8 ONNX file; written whole or not at all.
        calibration: batches (N, C, H, W), or pairs whose first part they are; a few hundred images are usual.
        test: batches (N, C, H, W) with labels (N,), to measure what quantisation costs.
        method: how the range of an activation is chosen: ``minmax``, ``entropy`` or ``percentile``.
        reduce_range: 7-bit weights, for x86 processors without VNNI, whose 8-bit sums saturate.

    Returns:
        Sizes, accuracy and agreement.

    Raises:
        ExportError: no calibration images, a file that is no float32 ONNX model of one input, onnxruntime or onnx are
            missing, or it cannot quantise the model.
    """
    source, output = Path(source), Path(output)
    if method not in METHODS:
        raise ExportError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}")
    model = OnnxModel(source)
    if len(model.names) != 1:
        raise ExportError(f"{source} takes {model.names}: int8 calibration here is for models of one image input")
    batches = _Batches(calibration, model.names[0])
    with writing(output) as temporary:
        _quantize(source, temporary, batches, method=method, reduce_range=reduce_range)
        judged = _judge(model, OnnxModel(temporary), test)
    sizes = {"float_bytes": source.stat().st_size, "int8_bytes": output.stat().st_size}
    return QuantizationReport(path=output, calibration_images=batches.images, **sizes, **judged)


class _Batches:
    """Calibration images as onnxruntime asks for them, one batch at a time."""

    def __init__(self, batches: Iterable[Any], name: str) -> None:
        self._batches: Iterator[Any] = iter(batches)
        self._name = name
        self.images = 0

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        self.images += len(images)
        return {self._name: images.numpy(force=True)}


def _quantize(source: Path, output: Path, batches: _Batches, *, method: str, reduce_range: bool) -> None:
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ExportError(f"int8 needs more packages ({error}): pip install 'stripefold[export]'") from error

    class Reader(quantization.CalibrationDataReader):
        get_next = staticmethod(batches.get_next)

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(output),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=getattr(quantization.CalibrationMethod, METHODS[method]),
            )
        except Exception as error:  # onnxruntime's own classes, and plain ValueErrors
            if not batches.images:
                raise ExportError("there are no calibration images: give batches of a few hundred images") from error
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise ExportError(f"onnxruntime cannot quantise {source}: {type(error).__name__}: {first}") from error


def _judge(full: OnnxModel, int8: OnnxModel, test: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Accuracy of both, and how often they agree."""
    images = right = right_int8 = same = 0
    for batch, labels in test:
        answers, answers_int8 = (model(batch)[0].argmax(1) for model in (full, int8))
        images += len(labels)
        right += int((answers == labels).sum())
        right_int8 += int((answers_int8 == labels).sum())
        same += int((answers == answers_int8).sum())
    if not images:
        return {}
    shares = {"float_accuracy": right / images, "int8_accuracy": right_int8 / images, "agreement": same / images}
    return {"images": images, **shares}


@contextmanager
def _without_advice() -> Iterator[None]:
    """Onnxruntime logs advice about its own options on the root logger, which belongs to the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
