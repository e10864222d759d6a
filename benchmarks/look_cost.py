"""What a look at a model costs: ``sites`` and ``fold(fuse=True)``, CPU seconds and peak memory, a process for each.

    python -m benchmarks.look_cost                  # every network, one line of JSON each
    PYTHONPATH=OTHER/src python benchmarks/look_cost.py   # the same for another tree, to compare

CPU seconds of the process, and not the clock, so that other work on the machine counts for little.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

NETWORKS = ("resnet50", "convnext_tiny", "vit_large_patch16_224", "chain1600")
CALLS = ("sites", "fold")


def build(name: str):
    """The network in eval mode, and an example of two images."""
    import timm
    import torch
    from torch import nn

    torch.manual_seed(0)
    if name != "chain1600":
        return timm.create_model(name).eval(), torch.randn(2, 3, 224, 224)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

        def forward(self, x):
            return x + self.norm(self.conv(x)).relu()

    chain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *(Block() for _ in range(1600)))
    return chain.eval(), torch.randn(2, 3, 8, 8)


def measure(name: str, call: str) -> dict[str, object]:
    """CPU seconds of one call, and what it adds to the peak memory of the process, in MiB."""
    import warnings

    import torch

    import stripefold as sf

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, x = build(name)
    with torch.no_grad():
        model(x)
    run = {
        "sites": lambda: sf.sites(model, example=x),
        "fold": lambda: sf.fold(model, fuse=True, example=x, check=False),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    run[call]()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"network": name, "call": call, "cpu_s": round(seconds, 3), "peak_mib": round(peak / 1024, 1)}


def main() -> None:
    """One process for each network and call, so that the peak memory is its own."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
        return
    for name in NETWORKS:
        for call in CALLS:
            done = subprocess.run([sys.executable, __file__, name, call], capture_output=True, text=True)
            print(done.stdout.strip() or done.stderr.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
