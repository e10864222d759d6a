"""Does it pay to keep a gate dynamic for the few channels that move, and bake the rest? The time of the gate alone.

    python -m benchmarks.mixed_gate --out benchmarks/settle/results/mixed-gate-cpu.json

A squeeze-and-excitation gate reads all channels for each of its values: pooling and first layer stay whole whatever is
baked behind them. What can go is a part of the second layer and of the product. Measured are, side by side: the whole
gate; "vector": constants written into v but for the moving channels; "channels": the product on moving channels
alone, in place, at a regular distance, the other constants folded away; "scattered": the same for channels that lie
anywhere, x unchanged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stripefold_lab.bench.environment import describe_environment

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7), (96, 112), (240, 14))
"""(channels, size) as in ResNet and MobileNetV3."""
SHARE, REDUCTION = 16, 4
"""One channel in 16 moves; hidden width is a quarter."""


class Gates:
    """The ways to compute one gate; each changes ``x`` or returns the product.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        hidden = channels // REDUCTION
        self.first, self.second = torch.nn.Linear(channels, hidden), torch.nn.Linear(hidden, channels)
        self.moving = torch.arange(0, channels, SHARE)
        self.few = torch.nn.Linear(hidden, len(self.moving))
        self.constant = torch.rand(1, channels)

    def _hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x.mean((2, 3))))

    def whole(self, x: Tensor) -> Tensor:
        """x v(x)."""
        return x * torch.sigmoid(self.second(self._hidden(x)))[:, :, None, None]

    def vector(self, x: Tensor) -> Tensor:
        """v is constant but for the moving channels."""
        v = self.constant.repeat(len(x), 1)
        v[:, self.moving] = torch.sigmoid(self.few(self._hidden(x)))
        return x * v[:, :, None, None]

    def channels(self, x: Tensor) -> Tensor:
        """The product runs on the moving channels alone."""
        v = torch.sigmoid(self.few(self._hidden(x)))
        x[:, ::SHARE] *= v[:, :, None, None]
        return x

    def scattered(self, x: Tensor) -> Tensor:
        """The same for channels that lie anywhere, into a map of its own: x is read elsewhere, too, as a rule."""
        v = torch.sigmoid(self.few(self._hidden(x)))
        return x.index_copy(1, self.moving, x.index_select(1, self.moving) * v[:, :, None, None])


def seconds(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Of one call, of this process."""
    start = time.process_time()
    for _ in range(5):
        run(x)
    return (time.process_time() - start) / 5


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with torch.no_grad():
        for channels, size in SHAPES:
            for batch in (1, 8):
                gates, x = Gates(channels), torch.randn(batch, channels, size, size)
                ways = {name: getattr(gates, name) for name in ("whole", "vector", "channels", "scattered")}
                times: dict[str, list[float]] = {name: [] for name in ways}
                for _ in range(options.rounds):
                    for name, run in ways.items():
                        times[name].append(seconds(run, x))
                found = {name: statistics.median(values) for name, values in times.items()}
                ratios = {
                    f"{name}_over_whole": round(found[name] / found["whole"], 3)
                    for name in ("vector", "channels", "scattered")
                }
                rows.append({"channels": channels, "size": size, "batch": batch, "ms": 1e3 * found["whole"], **ratios})
                print(rows[-1], flush=True)
    content = {"moving": f"1 of {SHARE}", "rows": rows, "environment": describe_environment(torch.device("cpu"))}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
