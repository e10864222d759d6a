"""Bake the text networks that people deploy: gate by gate, under each constant, under a budget; size and time.

    pip download --no-deps rapidocr-onnxruntime==1.4.4 rapidocr==3.10 -d FOLDER        # and unpack the wheels there
    python -m benchmarks.onnx_ocr FILES.onnx ... --output benchmarks/results/ocr

Files are told apart by their names: ``det`` finds text, ``cls`` tells its direction, ``rec`` reads it. Constants come
from one set of pictures, a budget is judged on a second, and the figures are of a third. Time is the median of
interleaved rounds on one thread beside an identical copy, so it can be read on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from scipy import ndimage

import stripefold.onnx as so
from benchmarks.text_pictures import Writer, fitted_line, prepared
from stripefold.atomic import write_text
from stripefold.onnx.session import Session

HERE = Path(__file__).parent / "results" / "ocr"
CONSTANTS = ("mean", "least-squares")
BUDGET = 1.0
BATCH = 8
Metric = Callable[[Any], float]


@dataclass(frozen=True)
class Set:
    """Pictures as batches, and what is right for each."""

    batches: list[np.ndarray]
    truth: list[Any]


def directions(seed: int, count: int) -> Set:
    """Lines, every second one upside down."""
    writer, pictures, truth = Writer(seed), [], []
    for index in range(count):
        picture, _ = writer.line()
        pictures.append(fitted_line(picture.rotate(180 * (index % 2)), 48, 192))
        truth.append(index % 2)
    return Set(_batched(pictures), truth)


def lines(seed: int, count: int) -> Set:
    """Lines with their text."""
    writer, pictures, truth = Writer(seed), [], []
    for _ in range(count):
        picture, text = writer.line()
        pictures.append(fitted_line(picture, 48, 320))
        truth.append(text if picture.width <= 320 else None)
    return Set(_batched(pictures), truth)


def scenes(seed: int, count: int) -> Set:
    """Scenes with the boxes of their lines."""
    writer = Writer(seed)
    made = [writer.scene() for _ in range(count)]
    return Set([prepared(scene.pixels)[None] for scene in made], [scene.boxes for scene in made])


def _batched(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.stack(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]


def direction_accuracy(given: Set) -> Metric:
    """Percent of lines whose direction is right."""

    def metric(run: Any) -> float:
        found = np.concatenate([run(batch)[0].argmax(1) for batch in given.batches])
        return 100 * float((found == np.asarray(given.truth)).mean())

    return metric


def character_accuracy(given: Set, characters: Sequence[str]) -> Metric:
    """100 (1 - edit distance / length), over all lines that fit into the frame."""

    def metric(run: Any) -> float:
        wrong = total = 0
        texts = iter(given.truth)
        for batch in given.batches:
            for scores in run(batch)[0]:
                text = next(texts)
                if text is not None:
                    wrong += edits(_read(scores, characters), text)
                    total += len(text)
        return 100 * (1 - wrong / total)

    return metric


def _read(scores: np.ndarray, characters: Sequence[str]) -> str:
    best = scores.argmax(-1)
    kept = [index for place, index in enumerate(best) if index and (place == 0 or best[place - 1] != index)]
    return "".join(characters[index - 1] for index in kept)


def edits(first: str, second: str) -> int:
    """Edit distance."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def box_score(given: Set) -> Metric:
    """F1 in percent of boxes around what is above 0.3, matched at half overlap (intersection over union)."""

    def metric(run: Any) -> float:
        hits = found = wanted = 0
        for batch, truth in zip(given.batches, given.truth, strict=True):
            boxes = _boxes(run(batch)[0][0, 0])
            hits += _matched(boxes, truth)
            found, wanted = found + len(boxes), wanted + len(truth)
        return 200 * hits / max(1, found + wanted)

    return metric


def _boxes(probability: np.ndarray) -> list[tuple[float, ...]]:
    """Boxes of connected regions, widened as these networks need it (they are trained on shrunken ones)."""
    labels, _ = ndimage.label(probability > 0.3)
    boxes = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) < 3 or probability[rows, columns][labels[rows, columns] == index].mean() < 0.5:
            continue
        grow = 1.6 * height * width / (2 * (height + width))
        boxes.append((columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow))
    return boxes


def _matched(boxes: Sequence[tuple[float, ...]], truth: np.ndarray) -> int:
    left = list(range(len(truth)))
    hits = 0
    for box in boxes:
        overlaps = {index: _overlap(box, truth[index]) for index in left}
        best = max(overlaps, key=lambda index: overlaps[index], default=None)
        if best is not None and overlaps[best] >= 0.5:
            left.remove(best)
            hits += 1
    return hits


def _overlap(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(both / (sum(areas) - both))


@dataclass(frozen=True)
class Task:
    """What a kind of network is measured by: sets for the constants, the budget, and the figures."""

    name: str
    metric: Callable[[Set], Metric]
    calibration: Set
    judged: Set
    test: Set


def task_of(path: Path, scale: float) -> Task:
    """The task that a file's name tells."""
    name = path.name.lower()

    def count(number: int) -> int:
        return max(2, round(scale * number))

    if "cls" in name:
        sets = [directions(seed, count(n)) for seed, n in enumerate((128, 400, 800))]
        return Task("text direction, accuracy %", direction_accuracy, *sets)
    if "det" in name:
        sets = [scenes(seed, count(n)) for seed, n in enumerate((16, 24, 48))]
        return Task("text detection, F1 %", box_score, *sets)
    properties = {each.key: each.value for each in onnx.load(path).metadata_props}
    characters = [*properties["character"].split("\n"), " "]
    sets = [lines(seed, count(n)) for seed, n in enumerate((64, 96, 192))]
    return Task("text recognition, characters %", lambda given: character_accuracy(given, characters), *sets)


def measure(path: Path, scale: float, rounds: int) -> dict[str, Any]:
    """Everything about one file."""
    task = task_of(path, scale)
    judged, tested = task.metric(task.judged), task.metric(task.test)
    data = task.calibration.batches
    options: dict[str, Any] = {"threads": 1}
    proto, priced = so.bake(path, data, metric=tested, constants="mean", **options)
    all_gates = {"mean": priced.after}
    for kind in CONSTANTS[1:]:
        all_gates[kind] = so.bake(path, data, metric=tested, constants=kind, price=False, **options)[1].after
    within, chosen = so.bake(path, data, metric=judged, constants="least-squares", max_drop=BUDGET, **options)
    session = Session(within, path.name, threads=1)
    found = {
        "task": task.name,
        "operations": [priced.operations_before, priced.operations_after],
        "bytes": [priced.bytes_before, priced.bytes_after],
        "gates": [site.__dict__ for site in priced.sites],
        "before": priced.before,
        "all": all_gates,
        "budget": {
            "max_drop": BUDGET,
            "baked": len(chosen.baked),
            "after": tested(lambda batch: session.run({_input(within): batch})),
            "bytes": chosen.bytes_after,
        },
        "error": priced.error,
        "rms_error": priced.rms_error,
        "tolerance": priced.tolerance,
        "images": priced.images,
        "time": timed(
            {"original": onnx.load(path), "copy": onnx.load(path), "baked": proto, "budget": within},
            data[0][:1],
            rounds,
        ),
        "versions": dict(priced.versions),
    }
    return json.loads(json.dumps(found))


def _input(proto: onnx.ModelProto) -> str:
    weights = {tensor.name for tensor in proto.graph.initializer}
    return next(each.name for each in proto.graph.input if each.name not in weights)


def timed(models: dict[str, onnx.ModelProto], feed: np.ndarray, rounds: int) -> dict[str, Any]:
    """Median ratio to the original within a round, and its quartiles; one sample, one thread, in turns."""
    sessions = {name: Session(proto, name, threads=1) for name, proto in models.items()}
    inputs = {_input(models["original"]): feed}
    ratios: dict[str, list[float]] = {name: [] for name in models}
    seconds: list[float] = []
    names = list(models)
    for turn in range(rounds + 2):
        taken = {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            sessions[name].run(inputs)
            taken[name] = time.perf_counter() - start
        if turn >= 2:
            seconds.append(taken["original"])
            for name in names:
                ratios[name].append(taken[name] / taken["original"])
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in ratios.items() if name != "original"}
    return {"milliseconds": 1e3 * statistics.median(seconds), "ratio": quartiles, "rounds": rounds}


def render(results: Sequence[dict[str, Any]]) -> str:
    """The tables, as a page."""
    parts = [
        _HEAD,
        *map(_scores, results),
        "",
        "All gates baked, constants the mean:",
        "",
        _SIZES,
        *map(_sizes, results),
    ]
    for each in results:
        parts += ["", f"## {each['files'][0]}", "", _GATES, *(_gate(gate, each["before"]) for gate in each["gates"])]
    return "\n".join(parts) + "\n"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(*cells: str) -> str:
    return _row(*cells) + "\n" + "|---" * len(cells) + "|"


def _scores(each: dict[str, Any]) -> str:
    budget, title = each["budget"], f"{', '.join(dict.fromkeys(each['files']))}: {each['task']}"
    scores = [f"{each['all'][kind]:.1f}" for kind in CONSTANTS]
    return _row(title, len(each["gates"]), f"{each['before']:.1f}", *scores, budget["baked"], f"{budget['after']:.1f}")


def _sizes(each: dict[str, Any]) -> str:
    (first, second), (fewer, rest) = each["bytes"], each["operations"]
    ratio, copy = each["time"]["ratio"]["baked"], each["time"]["ratio"]["copy"]
    return _row(
        each["files"][0],
        f"{first} -> {second} ({second / first - 1:+.1%})",
        f"{fewer} -> {rest}",
        f"{each['time']['milliseconds']:.1f}",
        f"{ratio[1]:.3f} ({ratio[0]:.2f} to {ratio[2]:.2f})",
        f"{copy[1]:.3f} ({copy[0]:.2f} to {copy[2]:.2f})",
        f"{each['error']:.1e} ({each['tolerance']:.1e})",
        f"{each['rms_error']:.1e}",
    )


def _gate(gate: dict[str, Any], before: float) -> str:
    figures = (f"{gate['stripe_index']:.3f}", f"{gate['within_over_mean']:.3f}", f"{gate['moving_channels']:.1f}")
    cost = f"{gate['alone'] - before:+.1f}"
    place = f"{gate['outcome']}: {gate['place']}"
    return _row(gate["name"], gate["channels"], *figures, f"{gate['largest_share']:.2f}", cost, place)


_HEAD = f"""# Text networks, baked

Written by `python -m benchmarks.onnx_ocr`: rendered lines and scenes, so the scores are of this text, not of photos;
one or two points are noise. Constants come from one set, a budget is judged on a second, the figures are of a third.
All gates constant, with each kind of constant; then what a budget of {BUDGET:g} keeps (least squares), and its score.

{_head("network", "gates", "as given", *CONSTANTS, "baked within the budget", "score")}"""
_SIZES = _head(
    "network", "bytes", "operations", "ms, one thread", "time, baked / given (quartiles)", "time of an identical copy",
    "largest difference (allowed)", "root mean square",
)  # fmt: skip
_GATES = _head("gate", "C", "index", "std/mean", "moving channels", "share of the largest", "alone", "result")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sets: 0.1 to see whether it runs")
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--keep", action="store_true", help="go on from the results that are there")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    if options.keep and (options.output / "ocr.json").is_file():
        found = json.loads((options.output / "ocr.json").read_text(encoding="utf-8"))
        results = {each["key"]: {**each, "files": []} for each in found}
    for path in options.files:
        key = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        if key not in results:
            results[key] = {"key": key, "files": [], **measure(path, options.scale, options.rounds)}
            print(path.name, results[key]["before"], results[key]["all"], results[key]["time"], flush=True)
        results[key]["files"].append(path.name)
        write_text(options.output / "ocr.json", json.dumps(list(results.values()), indent=1) + "\n")
        write_text(options.output / "README.md", render([each for each in results.values() if each["files"]]))


if __name__ == "__main__":
    main()
