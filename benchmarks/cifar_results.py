"""From what `stripes_cifar` and `bake_cifar` measured to tables and figures, mean and spread over the seeds.

    python -m benchmarks.cifar_results --runs runs/cifar --baked runs/baked

writes `results/cifar/`: `stripes.json`, `bake.json`, `README.md` and the pictures. Without `--runs` what is known of
the stripes stays as it is: the baked networks may be others than the observed ones, and the page says how each were
trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cifar_figures
from benchmarks.common import RESULTS

FOLDER = RESULTS / "cifar"
QUANTITIES = ("stripe_index", "within_over_mean", "first_difference", "share_of_class")
Runs = dict[str, list[dict[str, Any]]]


def spread(values: Iterable[float | None]) -> list[float] | None:
    """[mean, sample standard deviation] over the seeds, or None where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return [round(statistics.fmean(known), 5), round(statistics.stdev(known) if len(known) > 1 else 0.0, 5)]


def load_runs(folder: Path, pattern: str) -> Runs:
    """Model -> its runs, by seed."""
    found: Runs = defaultdict(list)
    for path in sorted(folder.glob(pattern)):
        run = json.loads(path.read_text(encoding="utf-8"))
        found[run["model"]].append(run)
    return dict(found)


def stripes(trained: Runs) -> dict[str, Any]:
    """Per model: what was measured at every epoch at every gate, and the accuracies."""
    return {model: _stripes_of(runs) for model, runs in trained.items()}


def _stripes_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    with_gates = [run for run in runs if run["attention"] != "bare"]
    bare = [run for run in runs if run["attention"] == "bare"]
    epochs = list(zip(*(run["epochs"] for run in with_gates), strict=True))
    sites = [row["site"] for row in epochs[0][0]["stripes"]]
    series = {
        name: [[spread(run["stripes"][k][name] for run in epoch) for epoch in epochs] for k in range(len(sites))]
        for name in QUANTITIES
    }
    return {
        "recipe": runs[0]["recipe"],
        "environment": runs[0]["environment"],
        "seeds": [run["seed"] for run in with_gates],
        "epochs": [rows[0]["epoch"] for rows in epochs],
        "sites": sites,
        "series": series,
        "test_accuracy": {
            "SE": spread(run["epochs"][-1]["test"] for run in with_gates),
            "bare": spread(run["epochs"][-1]["test"] for run in bare),
        },
    }


def baked(results: Runs) -> dict[str, Any]:
    """Per model: each gate alone, the curves, and everything that was done with all gates baked."""
    return {model: _baked_of(runs) for model, runs in results.items()}


def _baked_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = [site["name"] for site in runs[0]["sites"]]
    return {
        "trained": runs[0]["trained"],
        "device": runs[0]["device"],
        "torch": runs[0]["torch"],
        "stripefold": runs[0]["stripefold"],
        "images": runs[0]["images"],
        "seeds": [run["seed"] for run in runs],
        "test_accuracy": spread(run["before"]["test"] for run in runs),
        "sites": [_site(name, [run["sites"][k] for run in runs], runs) for k, name in enumerate(names)],
        "rank_correlation": {
            name: spread(_rank_correlation(run, name) for run in runs)
            for name in ("prior", "within_over_mean", "stripe_index")
        },
        "curves": {
            order: [spread(changes) for changes in zip(*(_changes(run["curves"][order]) for run in runs), strict=True)]
            for order in runs[0]["curves"]
        },
        "repaired": _repaired_of([run for run in runs if run.get("repaired")]),
        **_all_of([run["all"] for run in runs if run["all"]]),
    }


def _repaired_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per repair: (gates baked, change of the accuracy and its spread, number of runs), cheapest gates first."""
    made: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in run["repaired"]):
        have = [run for run in runs if name in run["repaired"]]
        points = zip(*(run["repaired"][name] for run in have), strict=True)
        befores = [run["before"]["test"] for run in have]
        made[name] = [
            [point[0][0], *spread(value - before for (_, value), before in zip(point, befores, strict=True)), len(have)]
            for point in points
        ]
    return made


def _all_of(found: list[dict[str, float]]) -> dict[str, Any]:
    """What was done with all gates baked: accuracy, its change run by run, and in how many runs it was measured."""
    keys = list(dict.fromkeys(key for values in found for key in values))
    have = {key: [values for values in found if key in values] for key in keys}
    return {
        "all": {key: spread(values[key] for values in have[key]) for key in keys},
        "all_change": {key: spread(values[key] - values["dynamic"] for values in have[key]) for key in keys},
        "all_runs": {key: len(have[key]) for key in keys},
    }


def _changes(values: Sequence[float]) -> list[float]:
    """Against the network as it was given, run by run: what the seeds differ in from the start cancels."""
    return [value - values[0] for value in values]


def _site(name: str, rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    changes = [row["alone_test"] - run["before"]["test"] for row, run in zip(rows, runs, strict=True)]
    short = name.partition(".gates.")[0]
    numbers = {key: spread(row[key] for row in rows) for key in ("stripe_index", "within_over_mean", "prior")}
    return {"name": short, "channels": rows[0]["channels"], **numbers, "change_alone": spread(changes)}


def _rank_correlation(run: dict[str, Any], name: str) -> float | None:
    """Spearman's, between a number known beforehand and what the gate costs alone; None where that never varies."""
    known = [site[name] for site in run["sites"]]
    cost = [run["before"]["test"] - site["alone_test"] for site in run["sites"]]
    if len(set(known)) == 1 or len(set(cost)) == 1:
        return None
    return statistics.correlation(_ranks(known), _ranks(cost))


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def page(observed: dict[str, Any], cost: dict[str, Any]) -> str:
    """Everything as tables in Markdown."""
    lines = ["# SE-ResNets on CIFAR-10: stripes, and what baking costs", ""]
    lines += ["Generated by `python -m benchmarks.cifar_results`. Mean ± standard deviation over the seeds.", ""]
    for model, found in observed.items():
        lines += [f"## {model}", "", _observed_on(found), ""]
        if model in cost:
            lines += [_baked_on(cost[model]), "", *_all_table(cost[model]), "", *_site_table(cost[model]), ""]
            lines += [*_repaired_table(cost[model]), ""]
    pictures = ("stripes_over_epochs", "stripe_images", "bake_sites", "bake_curves")
    lines += [f"![{name.replace('_', ' ')}]({name}.png)\n" for name in pictures if (FOLDER / f"{name}.png").exists()]
    return "\n".join(lines).rstrip() + "\n"


def _observed_on(found: dict[str, Any]) -> str:
    accuracy = found["test_accuracy"]
    return (
        f"Stripes: {_training(found['epochs'][-1], found['seeds'], found['environment'])} Test accuracy: with SE "
        f"{_pm(accuracy['SE'])} %, the bare backbone {_pm(accuracy['bare'])} %."
    )


def _baked_on(cost: dict[str, Any]) -> str:
    ranks = ", ".join(f"{key.replace('_', ' ')} {_pm(value)}" for key, value in cost["rank_correlation"].items())
    images = cost["images"]
    return (
        f"Baking: {_training(cost['trained']['epochs'], cost['seeds'], cost['trained'])} Baked on {cost['device']}, "
        f"torch {cost['torch']}: constants from {images['calibration']} training images, gates ordered by "
        f"{images['validation']} held-out ones, figures of {images['test']} test images. Rank correlation with the "
        f"cost of a gate alone: {ranks}."
    )


def _training(epochs: int, seeds: Sequence[int], environment: dict[str, Any]) -> str:
    return (
        f"{epochs} epochs, seeds {', '.join(map(str, seeds))}; trained on {environment['device']}, torch "
        f"{environment['torch']}, {environment['precision']}."
    )


def _all_table(cost: dict[str, Any]) -> list[str]:
    lines = ["| all gates | test accuracy, % | change | networks |", "|---|---|---|---|"]
    for key, value in cost["all"].items():
        runs, change = cost["all_runs"][key], cost["all_change"][key]
        lines.append(f"| {key} | {_pm(value, runs=runs)} | {_pm(change, sign=True, runs=runs)} | {runs} |")
    return lines


def _repaired_table(cost: dict[str, Any]) -> list[str]:
    """Change of test accuracy by number of gates baked, the cheapest first; a repair is made anew at every point."""
    curve = cost["curves"]["cheapest first"]
    repairs = {name: {point[0]: point[1:] for point in points} for name, points in cost["repaired"].items()}
    if not repairs:
        return []
    runs = {name: next(iter(points.values()))[2] for name, points in repairs.items()}
    titles = [f"{name} ({runs[name]} networks)" for name in repairs]
    lines = ["| gates baked, cheapest first | change | " + " | ".join(titles) + " |", "|---" * (2 + len(repairs)) + "|"]
    for count in next(iter(repairs.values())):
        cells = [_pm(points[count][:2], sign=True, runs=points[count][2]) for points in repairs.values()]
        lines.append(f"| {count} | {_pm(curve[count], sign=True)} | {' | '.join(cells)} |")
    return lines


def _site_table(cost: dict[str, Any]) -> list[str]:
    lines = [
        "| gate | C | stripe index | std / mean of v | prior | change when baked alone |",
        "|---|---|---|---|---|---|",
    ]
    for site in cost["sites"]:
        numbers = [_pm(site["stripe_index"], 3), _pm(site["within_over_mean"], 3), f"{site['prior'][0]:.1e}"]
        lines.append(
            f"| {site['name']} | {site['channels']} | {' | '.join(numbers)} | {_pm(site['change_alone'], sign=True)} |"
        )
    return lines


def _pm(value: list[float] | None, digits: int = 2, *, sign: bool = False, runs: int = 2) -> str:
    if value is None:
        return "-"
    if runs == 1:
        return f"{value[0]:{'+' if sign else ''}.{digits}f}"
    return f"{value[0]:{'+' if sign else ''}.{digits}f} ± {value[1]:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder that stripes_cifar wrote; without it the stripes stay")
    parser.add_argument("--baked", type=Path, required=True, help="folder that bake_cifar wrote")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = FOLDER / "stripes.json"
    if options.runs is None:
        observed = json.loads(kept.read_text(encoding="utf-8"))
    else:
        observed = stripes(load_runs(options.runs, "*/metrics.json"))
        kept.write_text(json.dumps(observed) + "\n", encoding="utf-8")
    cost = baked(load_runs(options.baked, "*.json"))
    (FOLDER / "bake.json").write_text(json.dumps(cost) + "\n", encoding="utf-8")
    cifar_figures.draw(observed, cost, options.runs, FOLDER)
    (FOLDER / "README.md").write_text(page(observed, cost), encoding="utf-8")


if __name__ == "__main__":
    main()
