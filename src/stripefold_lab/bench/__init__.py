"""Speed and memory, side by side.

Two numbers from two runs do not make a ratio: machines warm up, throttle and are shared. So everything is measured
in one process, candidate after candidate, round after round, and one candidate is an identical *copy* of the
baseline: its ratio is the noise floor below which no difference means anything. Ratios are taken within a round and
their median is reported with both quartiles. Accelerators are synchronised around every timed call.

- `timing`: rounds, quartiles, paired ratios
- `memory`: the most bytes that were alive at once
- `steps`: what is timed: a training step, an inference
- `candidates`: plain, copy, dynamic attention, ASR, the product on the activation map, folded, fused
- `folding`, `processes`: how long `fold_`, imports and commands take
- `report`, `environment`: results as a table and as JSON, with the device and versions they belong to
"""

from __future__ import annotations

from stripefold_lab.bench.candidates import inference_candidates, training_candidates
from stripefold_lab.bench.folding import measure_folding
from stripefold_lab.bench.memory import peak_bytes
from stripefold_lab.bench.processes import measure_processes
from stripefold_lab.bench.report import Report, Row
from stripefold_lab.bench.steps import inference, synthetic_batch, training_step
from stripefold_lab.bench.timing import Candidate, Settings, compare, interleave

__all__ = [
    "Candidate",
    "Report",
    "Row",
    "Settings",
    "compare",
    "inference",
    "inference_candidates",
    "interleave",
    "measure_folding",
    "measure_processes",
    "peak_bytes",
    "synthetic_batch",
    "training_candidates",
    "training_step",
]
