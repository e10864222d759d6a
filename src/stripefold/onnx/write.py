"""Check a baked network against the one that it stands for, and write it whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from stripefold.atomic import atomic_path
from stripefold.errors import BakeError, OnnxError, VerifyError
from stripefold.onnx.read import MOST_BYTES, OnnxNetwork
from stripefold.onnx.session import Array, Feed, Session

TOLERANCE = 1e-5
"""Largest relative difference of an output from the network with switched gates, in float32."""
_NOISE_FACTOR, _ROUNDINGS = 4.0, 64.0
_LEAST_EQUAL = 0.99  # of whole numbers, which a rounding can turn


@dataclass(frozen=True)
class Comparison:
    """How far a baked network is from the switched one.

    Attributes:
        error: largest difference of an output over its largest value, of all outputs and inputs that were tried.
        tolerance: what was allowed for that.
        rms_error: largest root mean square of the difference over that of the output.
    """

    error: float
    tolerance: float
    rms_error: float


def compare(
    baked: Callable[[Feed], list[Array]],
    switched: Callable[[Feed], list[Array]],
    nearly: Sequence[Callable[[Feed], list[Array]]],
    feeds: Iterable[Feed],
    outputs: list[str],
) -> Comparison:
    """Compare on real inputs.

    Args:
        baked: the new network.
        switched: the original with the same gates held constant.
        nearly: networks that differ from it by rounding alone: how far they are apart is what rounding can do here.
        feeds: inputs.
        outputs: their names, for messages.

    Raises:
        VerifyError: an output differs by more than 1e-5 and than rounding explains.
    """
    worst, allowed, spread = 0.0, TOLERANCE, 0.0
    for feed in feeds:
        expected, found = switched(feed), baked(feed)
        others = [run(feed) for run in nearly]
        for index, (name, before, after) in enumerate(zip(outputs, expected, found, strict=True)):
            if before.shape != after.shape or before.dtype != after.dtype:
                raise VerifyError(
                    f"the output {name!r} of the baked network is {after.dtype} {after.shape}, and was {before.dtype} "
                    f"{before.shape}: nothing was written"
                )
            if not np.issubdtype(before.dtype, np.floating):
                _check_equal(name, before, after)
                continue
            noise = max((relative_error(before, other[index]) for other in others), default=0.0)
            tolerance, error = max(_least(before), _NOISE_FACTOR * noise), relative_error(before, after)
            if not error <= tolerance:
                raise VerifyError(
                    f"the output {name!r} of the baked network differs by {error:.1e} of its size from the one with "
                    f"constant gates, {tolerance:.1e} is allowed: nothing was written"
                )
            worst, allowed = max(worst, error), max(allowed, tolerance)
            spread = max(spread, rms_error(before, after))
    return Comparison(worst, allowed, spread)


def _least(output: Array) -> float:
    return max(TOLERANCE, _ROUNDINGS * float(np.finfo(output.dtype).eps)) if output.dtype != np.float32 else TOLERANCE


def relative_error(before: Array, after: Array) -> float:
    """Largest difference over the largest value; NaN and infinities must be at the same places."""
    if before.size == 0:
        return 0.0
    first, second = before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(first)
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
        return float("inf")
    size = float(np.abs(first[finite]).max(initial=0.0))
    error = float(np.abs(first[finite] - second[finite]).max(initial=0.0))
    return error / size if size else error


def rms_error(before: Array, after: Array) -> float:
    """Root mean square of the difference over that of the value; over what is finite."""
    first, second = before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(first)
    size, error = np.linalg.norm(first[finite]), np.linalg.norm(first[finite] - second[finite])
    return float(error / size) if size else float(error)


def _check_equal(name: str, before: Array, after: Array) -> None:
    share = float((before == after).mean()) if before.size else 1.0
    if share < _LEAST_EQUAL:
        raise VerifyError(
            f"{1 - share:.1%} of the output {name!r} are other numbers than with constant gates: nothing was written"
        )


def to_proto(model: ir.Model, network: OnnxNetwork) -> onnx.ModelProto:
    """The baked graph as a message, valid and with the interface of the original.

    Raises:
        BakeError: it is not, or it is too large.
    """
    proto = ir.to_proto(model)
    known = {each.name for each in network.proto.graph.value_info}
    kept = [each for each in proto.graph.value_info if each.name in known]  # and not what weights say themselves
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    if proto.ByteSize() > MOST_BYTES:
        raise BakeError(f"{network.name}: the baked network has more than 2 GiB, which one ONNX file cannot hold")
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise BakeError(f"{network.name}: what was baked is no valid ONNX model: {error}") from error
    changed = [what for what, before, after in _interface(network.proto, proto) if before != after]
    if changed:
        raise BakeError(f"{network.name}: baking would change its {', '.join(changed)}, so nothing was written")
    return proto


def _interface(before: onnx.ModelProto, after: onnx.ModelProto) -> list[tuple[str, object, object]]:
    def described(proto: onnx.ModelProto) -> dict[str, object]:
        weights = {tensor.name for tensor in proto.graph.initializer}
        return {
            "inputs": [each.SerializeToString() for each in proto.graph.input if each.name not in weights],
            "outputs": [each.SerializeToString() for each in proto.graph.output],
            "opset": sorted((each.domain, each.version) for each in proto.opset_import),
            "metadata": sorted((each.key, each.value) for each in proto.metadata_props),
            "IR version": proto.ir_version,
        }

    first, second = described(before), described(after)
    return [(what, first[what], second[what]) for what in first]


def write_model(proto: onnx.ModelProto, path: str | os.PathLike[str], check: Callable[[Session], object]) -> Path:
    """Write a file, run what was written, and put it there.

    Args:
        proto: of at most 2 GiB.
        path: the file.
        check: is given a session of the written file before it is there; an error leaves none behind.

    Raises:
        BakeError: the file cannot be written.
    """
    target = Path(path)
    try:
        with atomic_path(target) as temporary:
            temporary.write_bytes(proto.SerializeToString())
            try:
                session = Session(temporary, target.name)
            except OnnxError as error:
                raise BakeError(str(error)) from error
            check(session)
    except OSError as error:
        raise BakeError(f"cannot write {target}: {error.strerror or error}") from error
    return target
