"""The tables of a sweep: for the terminal, and as CSV and Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold.atomic import atomic_path
from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.sweep.statistics import LEVEL, Estimate
from stripefold_lab.training.unused_options import unused_options

if TYPE_CHECKING:
    from stripefold_lab.sweep.result import SettingRow, SweepResult
    from stripefold_lab.training.config import TrainConfig

TEXT = ("control", "error")


def columns(result: SweepResult) -> tuple[str, str, str, str]:
    """The head of the terminal's table.

    Args:
        result: What the sweep found.
    """
    return "setting", "runs", result.measure.name, f"difference to {result.control_word}"


def shown_rows(result: SweepResult) -> list[tuple[str, str, str, str]]:
    """The cells below ``columns``, scores in per cent.

    Args:
        result: What the sweep found.
    """
    seeds = len(result.sweep.seeds)
    return [
        (row.setting.label, _count(len(row.scores), seeds), _score(row.score), _difference(row)) for row in result.rows
    ]


def caption(result: SweepResult) -> str:
    """What the table's numbers are; sentences.

    Args:
        result: What the sweep found.
    """
    measure, number = result.measure.word, result.comparisons
    first = f"{measure} on the test images after the last epoch, in per cent"
    if len(result.sweep.seeds) == 1:
        return f"{first}. One seed: there is no spread and no interval, and nothing can be said about chance."
    parts = [f"{first}: mean over seeds ± standard deviation."]
    if number:
        parts.append(
            f"Differences in points, paired by seed, all else equal, [{LEVEL:.0%} interval of each, Student's t]."
        )
    if number > 1:
        parts.append(
            f"{number} comparisons: * where the wider interval, which holds for all {number} together (Bonferroni), "
            "leaves out 0."
        )
    return " ".join(parts)


def _count(runs: int, seeds: int) -> str:
    return str(runs) if runs == seeds else f"{runs} of {seeds}"


def _score(found: Estimate | None) -> str:
    if found is None:
        return "none"
    return f"{100 * found.mean:.2f}" + ("" if found.spread is None else f" ± {100 * found.spread:.2f}")


def _difference(row: SettingRow) -> str:
    found = row.difference
    if found is None:
        return "" if row.setting.control is None else "no pair of runs"
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.2f} ({_why(found)}: no interval)"
    star = " *" if row.stands_out else ""
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]{star}"


def _why(found: Estimate) -> str:
    return "one pair" if len(found.values) == 1 else "all pairs alike"


def write_tables(result: SweepResult) -> list[Path]:
    """Write ``results`` (a row per setting) and ``runs`` (a row per run), each as CSV and as Parquet.

    Args:
        result: What the sweep found.

    Raises:
        ConfigError: If pyarrow is not installed.
        TrainingError: If a file cannot be written.
    """
    files = []
    for name, rows in (("results", result_records(result)), ("runs", run_records(result))):
        files += _write(result.folder / name, rows)
    return files


def result_records(result: SweepResult) -> list[dict[str, Any]]:
    """One mapping per setting: its options, and every number of its row; scores and differences in 0 to 1.

    Args:
        result: What the sweep found.
    """
    records = []
    for row in result.rows:
        records.append({
            "setting": row.setting.label,
            **_options(result, row.setting.config),
            "measure": result.measure.name,
            "runs": len(row.scores),
            **_numbers("", row.score),
            "control": row.setting.control,
            "pairs": 0 if row.difference is None else len(row.difference.values),
            **_numbers("difference_", row.difference),
            "joint_low": None if row.joint is None else row.joint.low,
            "joint_high": None if row.joint is None else row.joint.high,
            "comparisons": result.comparisons,
        })  # fmt: skip
    return records


def run_records(result: SweepResult) -> list[dict[str, Any]]:
    """One mapping per run: what it was, its score (None if it is not finished), and why it failed.

    Args:
        result: What the sweep found.
    """
    records = []
    for trial in result.trials:
        outcome = result.outcomes.get(trial.name)
        records.append({
            "run": trial.name,
            "setting": trial.setting,
            **_options(result, trial.config),
            "seed": trial.config.seed,
            "measure": result.measure.name,
            "score": None if outcome is None else outcome.score,
            "test_images": None if outcome is None else outcome.images,
            "parameters": None if outcome is None else outcome.parameters,
            "seconds": None if outcome is None else outcome.seconds,
            "error": result.failed.get(trial.name),
        })  # fmt: skip
    return records


def _options(result: SweepResult, config: TrainConfig) -> dict[str, Any]:
    """What varies, and what makes the control; None where an option does nothing."""
    values, idle = config.to_dict(), unused_options(config)
    names = dict.fromkeys([*(result.sweep.control or {}), *result.sweep.varying])
    return {name: None if name in idle else values[name] for name in names}


def _numbers(prefix: str, found: Estimate | None) -> dict[str, float | None]:
    return {f"{prefix}{name}": getattr(found, name, None) for name in ("mean", "spread", "low", "high")}


def import_arrow() -> Any:
    """Pyarrow with its writers.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"the tables need pyarrow ({error}): pip install 'stripefold[sweep]'") from error
    return pyarrow


def _write(stem: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    arrow = import_arrow()
    table = arrow.table({name: _column(arrow, name, [row[name] for row in rows]) for name in rows[0]})
    writers = {".csv": arrow.csv.write_csv, ".parquet": arrow.parquet.write_table}
    files = [stem.with_suffix(suffix) for suffix in writers]
    try:
        for file, write in zip(files, writers.values(), strict=True):
            with atomic_path(file) as temporary:
                write(table, str(temporary))
    except OSError as error:
        raise TrainingError(f"cannot write {stem}: {error.strerror or error}; the same command goes on") from error
    return files


def _column(arrow: Any, name: str, values: Sequence[Any]) -> Any:
    """Numbers as numbers, columns without a value too; lists, mappings and mixtures as text."""
    kinds = {type(value) for value in values if value is not None}
    if name not in TEXT and kinds <= {int, float} and kinds != {int}:
        return arrow.array(values, type=arrow.float64())
    if kinds in ({int}, {bool}):
        return arrow.array(values)
    words = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return arrow.array(words, type=arrow.string())
