"""The figures as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy.plan import Study, list_runs
from benchmarks.accuracy.results import Comparison, Records, compare, scores
from stripefold_lab.sweep.statistics import Estimate, estimate


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; without rows, its head alone.

    Args:
        head: Its columns.
        rows: Cells.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def study_section(study: Study, records: Records) -> str:
    """Title, accuracies and comparisons of one study; where nothing is there, that it was not run.

    Args:
        study: The study.
        records: What is there.
    """
    parts = [f"### {study.title}"]
    if not any(name == study.name for name, _, _ in records):
        asked = f"{len(study.configurations)} configurations, {len(study.seeds)} seeds each"
        place = "; planned for a GPU only" if study.needs_gpu else ""
        return "\n\n".join([*parts, f"Not run yet ({asked}{place})."])
    parts += [accuracy_table(study, records), comparison_table(study, records)]
    if study.judged == "noise_on":
        parts.append("Judged with the noise left on; the third column has the same networks without it.")
    return "\n\n".join(parts)


def accuracy_table(study: Study, records: Records) -> str:
    """A row per configuration.

    Args:
        study: The study.
        records: What is there.
    """
    noisy = study.judged == "noise_on"
    head = ["configuration", "accuracy, last epoch", *(["noise off"] if noisy else []), "seeds", "parameters"]
    rows = []
    for label in study.configurations:
        found = scores(study, label, records)
        own = [record for (name, other, _), record in records.items() if (name, other) == (study.name, label)]
        off = [shown(estimate(list(scores(study, label, records, "trained").values())))] if noisy else []
        rows.append([label, shown(estimate(list(found.values()))), *off, _of(len(found), study), _parameters(own)])
    return markdown(head, rows)


def _parameters(records: Sequence[Mapping[str, Any]]) -> str:
    """While training, and folded."""
    if not records:
        return "-"
    trained, folded = records[0]["parameters"], records[0].get("folded_parameters")
    return f"{trained:,}" if folded is None else f"{trained:,}, folded {folded:,}"


def comparison_table(study: Study, records: Records) -> str:
    """A row per comparison.

    Args:
        study: The study.
        records: What is there.
    """
    head = ["comparison", "difference [95 %]", "[95 % of all together]", "ahead : behind (sign test)", "verdict"]
    return markdown(head, [comparison_row(found) for found in compare(study, records)])


def comparison_row(found: Comparison) -> list[str]:
    """The cells of one comparison.

    Args:
        found: The comparison.
    """
    name = f"{found.first} - {found.second}"
    signs = "-" if found.sign is None else f"{found.ahead} : {found.behind} (p = {found.sign:.2g})"
    return [
        f"**{name}**" if found.primary else name,
        difference(found.difference),
        interval(found.joint) if found.primary else "-",
        signs,
        found.verdict,
    ]


def shown(found: Estimate | None) -> str:
    """Mean and standard deviation, in per cent.

    >>> shown(estimate([70.0, 72.0])), shown(estimate([70.0])), shown(None)
    ('71.00 ± 1.41', '70.00', '-')
    """
    if found is None:
        return "-"
    return f"{found.mean:.2f}" + ("" if found.spread is None else f" ± {found.spread:.2f}")


def difference(found: Estimate | None) -> str:
    """A mean with its interval, in points.

    >>> difference(estimate([1.0, 2.0, 3.0])), difference(estimate([1.0])), difference(None)
    ('+2.00 [-0.48, +4.48]', '+1.00', '-')
    """
    if found is None:
        return "-"
    return f"{found.mean:+.2f} {interval(found)}".strip() if found.low is not None else f"{found.mean:+.2f}"


def interval(found: Estimate | None) -> str:
    """The interval alone; ``-`` where there is none."""
    return "-" if found is None or found.low is None else f"[{found.low:+.2f}, {found.high:+.2f}]"


def not_run(studies: Mapping[str, Study], records: Records) -> str:
    """What the plan asks for and is not there, a row per study.

    Args:
        studies: The plan.
        records: What is there.
    """
    rows = []
    for study in studies.values():
        planned = list(list_runs({"": study}, gpu=True))
        missing = [run for run in planned if (run.study, run.configuration, run.seed) not in records]
        if missing:
            what = ", ".join(dict.fromkeys(run.configuration for run in missing))
            where = "GPU" if study.needs_gpu else "CPU or GPU"
            rows.append([study.title, f"{len(missing)} of {len(planned)}", what, where])
    return markdown(["study", "runs that are missing", "of", "needs"], rows) if rows else "Everything was run."


def cost(records: Records) -> str:
    """How long it took, by device; the commits.

    Args:
        records: What is there.
    """
    hours: dict[str, list[float]] = {}
    commits: dict[str, None] = {}
    for record in records.values():
        for session in record["sessions"]:
            commits[session["commit"][:7]] = None
        device = record["sessions"][-1]["device"]
        known = record["total_cpu_seconds"] / max(1, len(record["cpu_seconds"])) * len(record["seconds"])
        hours.setdefault(device, []).append((record["total_seconds"] if "NVIDIA" in device else known) / 3600)
    rows = [[device, str(len(each)), f"{sum(each):.1f}"] for device, each in hours.items()]
    table = markdown(["device", "runs", "hours of one core, or of the GPU"], rows)
    made = ", ".join(f"`{commit}`" for commit in commits) or "none"
    return f"{table}\n\nCommits that made them (each raw file names its own): {made}."


def _of(count: int, study: Study) -> str:
    return str(count) if count == len(study.seeds) else f"{count} of {len(study.seeds)}"
