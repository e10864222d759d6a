"""How ``observe`` and ``bake`` grow with the number of gates: CPU seconds of chains of tiny blocks.

    python -m benchmarks.growth            # every call and size, one line of JSON each
    python -m benchmarks.growth bake 400   # one of them

CPU seconds of the process, and not the clock, so that other work on the machine counts for little. The calls are

    observe   two batches
    bake      the same two batches, no metric: every gate becomes a constant
    metric    with a metric that costs nothing, which is asked for each gate alone
    budget    with a budget as well: asked for each gate alone, then for the gates together, one more each time

A metric that runs the model takes time in proportion to the gates, and is asked in proportion to the gates: those two
are quadratic by what is asked for. What is measured here is what they cost beside the metric's own runs.

CPU seconds on one thread of a virtual machine of two cores (torch 2.14, others at work beside it):

    gates     100    400   1600
    bake      2.1    8.2   36.0
    metric    3.1   19.4      -

For each gate that is asked alone the model is looked through once, so that whatever the metric changed in it is put
back: 28 ms for 400 gates.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings

CALLS = ("observe", "bake", "metric", "budget")
GATES = (100, 400, 1600)


def chain_of_gates(gates: int, *, residual: bool = True):
    """Blocks of four channels with squeeze and excitation, in evaluation mode."""
    import torch
    from torch import nn

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduce, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

        def forward(self, x):
            return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.gate = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), Gate()

        def forward(self, x):
            gated = self.gate(self.norm(self.conv(x)))
            return x + gated if residual else gated

    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(*(Block() for _ in range(gates)), head).eval()


def measure(call: str, gates: int) -> dict[str, object]:
    """CPU seconds of one call."""
    import torch

    import stripefold as sf

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = [torch.randn(2, 4, 4, 4) for _ in range(2)]
    run = {
        "observe": lambda model: sf.observe(model, data),
        "bake": lambda model: sf.bake(model, data),
        "metric": lambda model: sf.bake(model, data, metric=lambda _: 1.0),
        "budget": lambda model: sf.bake(model, data, metric=lambda _: 1.0, max_drop=1.0),
    }[call]
    run(chain_of_gates(2))  # what is imported when first needed
    model = chain_of_gates(gates)
    start = time.process_time()
    run(model)
    return {"call": call, "gates": gates, "cpu_s": round(time.process_time() - start, 2)}


def main() -> None:
    """One process for each call and size."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    for call in CALLS:
        for gates in GATES:
            words = [sys.executable, "-m", "benchmarks.growth", call, str(gates)]
            done = subprocess.run(words, capture_output=True, text=True)
            print(done.stdout.strip() or done.stderr.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
