"""`stripefold sweep`: many runs side by side, one table, one picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.documents import DocumentError, shown
from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.cli.arguments import AsJson
from stripefold_lab.cli.output import print_json, print_line, print_table
from stripefold_lab.cli.train import parse_changes
from stripefold_lab.cli.users_code import Imports, check_attention_name
from stripefold_lab.yaml_documents import parse_yaml

if TYPE_CHECKING:
    from stripefold_lab.sweep import SweepResult


def sweep(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP",
            help="attention, delta, psi0, place, control, frozen, beside, digits, or a YAML file.",
        ),
    ],
    *,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change any option of the base; may be given again."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="A recipe, a YAML file or a run instead of the sweep's own base.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="How many seeds, or a list such as [3, 4].")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", "--output", help="The sweep's folder; sweeps/SWEEP if not given.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(help="Runs side by side; as many as there is room for if not given.")
    ] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs of one run; its threads if not given.")] = None,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs of one run, such as 0.5; 1 where there are any if not given.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Join the Ray cluster at auto or HOST:PORT; its machines share the folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and train nothing.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Show what is finished so far and train nothing.")] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="FORM", help="How the table is printed: text, markdown or latex.")
    ] = "text",
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Train every setting of a sweep under every seed, compare each with the backbone; go on where it was stopped."""
    from stripefold_lab.sweep import Machines, load_sweep, plan_sweep, run_sweep

    _check_form(form)
    asked = load_sweep(source, base=base, seeds=_yaml("--seeds", seeds), **parse_changes(change or []))
    folder = out or Path("sweeps") / asked.name
    if dry_run or table:
        result = plan_sweep(asked, folder)
        if as_json:
            _print_json(result)
        else:
            print_runs(result) if dry_run else print_result(result, form)
        return
    for trial in plan_sweep(asked, folder).trials:
        check_attention_name(trial.config)
    machines = Machines(address=address, parallel=parallel, cpus=cpus, gpus=gpus)
    result = run_sweep(asked, folder, machines=machines, progress=partial(print_line, aside=as_json))
    _print_json(result) if as_json else print_result(result, form)
    for name, error in result.failed.items():
        print_line(f"failed: {name}: {error}", aside=as_json)
    if result.failed:
        raise TrainingError(
            f"{len(result.failed)} of {len(result.trials)} runs failed, see {result.folder / 'errors'}; the same "
            "command tries them again"
        )


def _yaml(option: str, text: str | None) -> Any:
    try:
        return None if text is None else parse_yaml(text)
    except DocumentError as error:
        advice = "give a number, or a list such as [3, 4]"
        raise ConfigError(f"{option} {shown(text)} is no YAML; {advice} ({error})") from error


def _print_json(result: SweepResult) -> None:
    """Every number of the table, scores in 0 to 1, and the runs with their states."""
    from stripefold_lab.sweep.table import result_records, run_records

    runs = [{**record, "state": result.state(record["run"])} for record in run_records(result)]
    print_json({"folder": result.folder, "results": result_records(result), "runs": runs})


def _check_form(form: str) -> None:
    from stripefold_lab.sweep.text import FORMS

    if form not in ("text", *FORMS):
        raise ConfigError(f"--format is {form!r}; choose one of {', '.join(('text', *FORMS))}")


def print_result(result: SweepResult, form: str = "text") -> None:
    """Print the table of a sweep; as text also what its numbers are, and where its files are."""
    from stripefold_lab.sweep.table import caption, columns, shown_rows
    from stripefold_lab.sweep.text import FORMS

    if form != "text":
        print_line(FORMS[form][1](result))
        return
    print_table(result.sweep.title, columns(result), shown_rows(result))
    print_line(caption(result))
    print_line()
    for file in result.files:
        print_line(file)


def print_runs(result: SweepResult) -> None:
    """Print the runs of a sweep, and which of them are finished."""
    rows = [(trial.name, trial.setting, trial.config.seed, result.state(trial.name)) for trial in result.trials]
    print_table(f"{result.sweep.title}: {len(rows)} runs", ("run", "setting", "seed", "state"), rows)
    print_line(f"in {result.folder}")
