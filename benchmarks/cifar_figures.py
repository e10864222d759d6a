"""The pictures of the CIFAR-10 experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from safetensors.torch import load_file

mpl.use("Agg")
from matplotlib import colormaps, ticker
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DEPTH = colormaps["viridis"]
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 110,
}
COLUMNS = {
    "stripe_index": "stripe index",
    "within_over_mean": "std over images / mean of v",
    "first_difference": "mean |v(epoch) - v(epoch - 1)|",
    "share_of_class": "share of the class in what varies",
}
ORDERS = {"cheapest first": "C0", "first to last": "C1", "last to first": "C2"}
SHOWN = {"resnet20": ("layer1.1.bn2", "layer2.2.bn2", "layer3.2.bn2")}


def draw(observed: dict[str, Any], cost: dict[str, Any], runs: Path | None, folder: Path) -> None:
    """Write all pictures that there are numbers for; without the runs, those of the stripes stay."""
    with plt.rc_context(STYLE):
        if runs is not None:
            _over_epochs(observed, folder)
            for model, sites in SHOWN.items():
                _stripe_images(runs / f"{model}-se-seed0" / "stripes.safetensors", sites, folder)
        if cost:
            _sites(cost, folder)
            _curves(cost, folder)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _over_epochs(observed: dict[str, Any], folder: Path) -> None:
    figure, grid = plt.subplots(len(observed), len(COLUMNS), figsize=(13, 3 * len(observed)), squeeze=False)
    for row, (model, found) in zip(grid, observed.items(), strict=True):
        for axes, (name, label) in zip(row, COLUMNS.items(), strict=True):
            lines = found["series"][name]
            for k, line in enumerate(lines):
                means = [np.nan if value is None else value[0] for value in line]
                axes.plot(found["epochs"], means, color=DEPTH(k / max(1, len(lines) - 1)), linewidth=1)
            axes.set_title(f"SE-{model}: {label}")
            axes.set_xlabel("epoch")
            axes.set_ylim(bottom=0)
    _depth_bar(figure, grid)
    _save(figure, folder / "stripes_over_epochs.png")


def _depth_bar(figure: Any, grid: Any) -> None:
    figure.tight_layout()
    shades = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), DEPTH)
    bar = figure.colorbar(shades, ax=grid, fraction=0.015, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels(["first gate", "last"])


def _stripe_images(path: Path, sites: tuple[str, ...], folder: Path) -> None:
    if not path.exists():
        return
    tensors = load_file(path)
    epochs = sorted({key.partition("/")[0] for key in tensors})
    epochs = [epochs[0], epochs[1], epochs[len(epochs) // 4], epochs[-1]]
    figure, grid = plt.subplots(len(sites), len(epochs), figsize=(11, 2.1 * len(sites)), squeeze=False)
    for row, site in zip(grid, sites, strict=True):
        for axes, epoch in zip(row, epochs, strict=True):
            values = tensors[f"{epoch}/{site}/sample"].float().numpy()
            drawn = axes.imshow(values, aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"{site}, {'untrained' if int(epoch) == 0 else f'epoch {int(epoch)}'}")
            axes.set_xticks([])
            axes.set_yticks([])
    for row in grid:
        row[0].set_ylabel("images")
    for axes in grid[-1]:
        axes.set_xlabel("channels")
    figure.tight_layout()
    figure.colorbar(drawn, ax=grid, fraction=0.015, pad=0.01, label="v")
    _save(figure, folder / "stripe_images.png")


def _sites(cost: dict[str, Any], folder: Path) -> None:
    figure, grid = plt.subplots(1, 2 * len(cost), figsize=(6.5 * len(cost), 3), squeeze=False)
    for k, (model, found) in enumerate(cost.items()):
        sites = found["sites"]
        for axes, name, label in zip(
            grid[0][2 * k : 2 * k + 2], ("stripe_index", "prior"), ("stripe index", "prior"), strict=True
        ):
            for depth, site in enumerate(sites):
                change, spread = site["change_alone"]
                color = DEPTH(depth / max(1, len(sites) - 1))
                axes.errorbar(
                    max(site[name][0], 1e-7), change, yerr=spread, fmt="o", color=color, markersize=4, linewidth=1
                )
            axes.axhline(0, color="0.6", linewidth=0.8)
            axes.set_xlabel(label)
            axes.set_title(f"SE-{model}")
            if name == "prior":
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    grid[0][0].set_ylabel("change of test accuracy, %\nwhen baked alone")
    _depth_bar(figure, grid)
    _save(figure, folder / "bake_sites.png")


def _curves(cost: dict[str, Any], folder: Path) -> None:
    figure, grid = plt.subplots(1, len(cost), figsize=(5.5 * len(cost), 3.4), squeeze=False)
    for axes, (model, found) in zip(grid[0], cost.items(), strict=True):
        for order, color in ORDERS.items():
            _band(axes, found["curves"][order], color, order)
        for (name, points), color in zip(found["repaired"].items(), ("C4", "C3"), strict=False):
            counts, changes = [point[0] for point in points], [point[1] for point in points]
            axes.plot(counts, changes, ".--", color=color, label=f"cheapest first, {name}")
        bare = found["all_change"].get("bare backbone, trained as long")
        if bare is not None:
            axes.axhline(bare[0], color="0.4", linestyle=":", label="bare backbone")
        axes.axhline(0, color="0.8", linewidth=0.8)
        end = len(found["sites"])
        marks = (
            ("constants, BatchNorm re-estimated", "^", "C4"),
            ("constants trained for one epoch", "s", "C3"),
            ("baked, all weights trained for one more epoch", "*", "k"),
            ("dynamic, all weights trained for one more epoch", "*", "0.6"),
        )
        for name, mark, color in marks:
            if found["all_change"].get(name):
                at = 0 if name.startswith("dynamic") else end
                axes.plot(
                    at, found["all_change"][name][0], mark, color=color, label=name, markersize=6, linestyle="none"
                )
        axes.set_title(f"SE-{model}")
        axes.set_xlabel("gates baked")
    grid[0][0].set_ylabel("change of test accuracy, %")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, folder / "bake_curves.png")


def _band(axes: Axes, values: list[list[float]], color: str, label: str) -> None:
    means = np.array([value[0] for value in values])
    spread = np.array([value[1] for value in values])
    axes.plot(means, color=color, label=label)
    axes.fill_between(range(len(means)), means - spread, means + spread, color=color, alpha=0.2, linewidth=0)
