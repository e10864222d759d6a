"""An ONNX file in onnxruntime, on as many threads as torch uses, so that the two can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stripefold.errors import ExportError
from stripefold.export.batch import input_leaves
from stripefold.modules.example import Example

_ERRORS_ONLY = 3


class OnnxModel:
    """An ONNX file that is called as the model it came from.

    Args:
        path: the file.
        device: ``cpu``, or ``cuda`` where onnxruntime was built for it.

    Raises:
        ExportError: onnxruntime is not installed, has no such device, or cannot run the file.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        runtime = _runtime()
        provider = "CUDAExecutionProvider" if torch.device(device).type == "cuda" else "CPUExecutionProvider"
        if provider not in runtime.get_available_providers():
            raise ExportError(f"this onnxruntime has no {provider}: install onnxruntime-gpu, or run it on the CPU")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = _ERRORS_ONLY
        # Its threads spin on after a call by default, and take the processor from whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # onnxruntime raises classes of its own, bound from C++
            reason = str(error).strip().splitlines()[0].replace(str(path), "it")
            raise ExportError(
                f"onnxruntime cannot run {_shown(Path(path))}: {reason}. "
                "It computes float32 networks; call model.float() first if this is another"
            ) from error
        self.names = [each.name for each in self.session.get_inputs()]

    def __call__(self, example: Example) -> list[Tensor]:
        """Return all outputs, flat, for an example.

        Raises:
            ExportError: the file takes other inputs.
        """
        found = self.session.run(None, self.feed(example))
        return [torch.from_numpy(array) for array in found]

    def feed(self, example: Example) -> dict[str, Any]:
        """Input name -> array.

        Raises:
            ExportError: the file takes other inputs.
        """
        if isinstance(example, dict) and set(self.names) <= example.keys():  # an input nobody uses is not in the file
            return {name: example[name].numpy(force=True) for name in self.names}
        leaves = input_leaves(example)
        if len(leaves) != len(self.names):
            raise ExportError(
                f"the file takes {self.names}, and the example holds {len(leaves)} tensors: give one for each"
            )
        return {name: leaf.numpy(force=True) for name, leaf in zip(self.names, leaves, strict=True)}


def _shown(path: Path) -> str:
    """The name of a file, for one that is still being written the name it will have."""
    return path.name[1:].rsplit(".", 2)[0] if path.suffix == ".part" else path.name


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError("onnxruntime is not installed: pip install 'stripefold[export]'") from error
    return onnxruntime
