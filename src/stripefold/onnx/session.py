"""onnxruntime: one session of a network, its errors in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from stripefold.errors import OnnxError

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
_FATAL_ONLY = 4


class Session:
    """A network in onnxruntime on the CPU.

    Args:
        model: as a graph, a protobuf message, or a file.
        name: for messages.
        threads: within an operation; 0 leaves it to onnxruntime.
        optimised: False runs operation by operation, as the file says.

    Raises:
        OnnxError: onnxruntime cannot run it.
    """

    def __init__(
        self, model: ir.Model | onnx.ModelProto | Path, name: str, *, threads: int = 0, optimised: bool = True
    ) -> None:
        self._name = name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Its threads spin on after a call by default, and take the processor from whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            given = ir.to_proto(model) if isinstance(model, ir.Model) else model
            content = str(given) if isinstance(given, Path) else given.SerializeToString()
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own, bound from C++
            raise OnnxError(f"onnxruntime cannot run {name}: {_reason(error)}") from error
        self.inputs = {each.name: each for each in self._session.get_inputs()}
        self.outputs = [each.name for each in self._session.get_outputs()]

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> list[Array]:
        """Compute outputs, all of them by default.

        Raises:
            OnnxError: the input does not fit, or an operation fails.
        """
        try:
            found: list[Array] = self._session.run(outputs, dict(feed))
        except Exception as error:  # likewise
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in feed.items() if key in self.inputs)
            raise OnnxError(f"{self._name} fails on {shapes}: {_reason(error)}") from error
        return found


def _reason(error: BaseException) -> str:
    """What onnxruntime says, without its codes and the places in its sources."""
    text = " ".join(str(error).split())
    return text.rpartition(" : ")[2][:400] if text.startswith("[ONNXRuntimeError]") else text[:400]
