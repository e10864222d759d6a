"""From a trained model to a file that other runtimes run.

Folding leaves a plain network, so every exporter of PyTorch works on it; what this package adds is that the file is
right: it is written whole or not at all, read back, and run beside the eager model on inputs of two batch sizes, judged
against a float64 copy of that model as everything else here is. No file needs stripefold to be loaded.

- `model`: ``export_model``, from a model to a ``.safetensors``, ``.pt2`` or ``.onnx`` file
- `batch`, `program`: the example and the captured program, with a batch size left open
- `write`, `check`, `session`: a file is there only if it computes what the eager model computes
- `quantize`, `ranges`: int8 with onnxruntime, and what folding does to the weight range that int8 must cover
- `report`: what was written, and how it was checked

Paper: structural re-parameterization is deployed as a plain network (Ding et al. 2021; Huang et al. 2024, section 3);
static int8 quantisation after Jacob et al. 2018, weights per channel after Krishnamoorthi 2018.
Why here: PyTorch's exporters check nothing by default, and the drop of re-parameterized networks in int8 is the
question that users of such networks ask most.
"""

from __future__ import annotations

from stripefold.export.model import export_model
from stripefold.export.quantize import quantize_int8
from stripefold.export.ranges import compare_ranges
from stripefold.export.report import Check, ExportReport, Outcome

__all__ = ["Check", "ExportReport", "Outcome", "compare_ranges", "export_model", "quantize_int8"]
