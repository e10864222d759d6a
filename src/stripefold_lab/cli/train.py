"""`stripefold train`: a recipe or a file, some options changed, one run."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.documents import DocumentError, shown
from stripefold.errors import ConfigError
from stripefold_lab.cli.arguments import ATTENTION_HELP, AsJson
from stripefold_lab.cli.output import print_json, print_line
from stripefold_lab.cli.users_code import Imports, check_attention_name
from stripefold_lab.yaml_documents import parse_yaml

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig


def train(
    *,
    config: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--config",
            help="A recipe (digits, small, cifar, imagenet, shapes-segmentation ...), a YAML file, or a run; digits, "
            "or the run to resume, if not given.",
        ),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any option; may be given again.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, folder:PATH, cifar10 ...; shapes, voc:PATH, ade20k:PATH, coco:PATH.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model's name.")] = None,
    attention: Annotated[str | None, typer.Option(help=ATTENTION_HELP)] = None,
    form: Annotated[str | None, typer.Option(help="static (ASR), dynamic, both or none.")] = None,
    branch: Annotated[str | None, typer.Option(help="Which branch block; `stripefold branches` lists them.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; with --resume more, or less, than it had.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="All randomness derives from it.")] = None,
    observe_every: Annotated[
        int | None, typer.Option(help="Observe the gates after every so many epochs; the report lies in stripes/.")
    ] = None,
    logger: Annotated[
        str | None, typer.Option(help="csv, tensorboard, wandb or mlflow; TensorBoard, where installed, if not given.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="Processes of one machine, as torchrun or srun starts them.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines.")] = None,
    strategy: Annotated[str | None, typer.Option(help="ddp, ddp-unused or fsdp, with several processes.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run; a new one under runs/ if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --run-dir.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration, as YAML for --config, and train nothing.")
    ] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Train a model with attention, fold it, and leave one folder with everything."""
    flags = {
        "data": data,
        "model": model,
        "attention": attention,
        "form": form,
        "branch": branch,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "observe_every": observe_every,
        "logger": logger,
        "devices": devices,
        "nodes": nodes,
        "strategy": strategy,
        "run_dir": None if run_dir is None else str(run_dir),
        "resume": resume or None,
    }
    config, overrides = _said(config, flags, change or [], run_dir if resume else None)
    from stripefold_lab.training import load_config

    resolved = load_config(
        config or "digits", **overrides
    )  # what is wrong here is told before anything heavy is loaded
    if print_config:
        print_line(_as_yaml(resolved))
        return
    _run(resolved, as_json)


def _run(config: TrainConfig, as_json: bool) -> None:
    """Train, and let the first process say what came out."""
    from stripefold_lab.training.tasks import get_task

    get_task(config.task).check_names(config)
    check_attention_name(config)
    from stripefold_lab.training import train as run_training
    from stripefold_lab.training.launch import place_of

    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # the lines of the epochs
        result = run_training(config)
    if not place_of(config).first:
        return
    if as_json:
        print_json(result.to_dict())
        return
    print_line(result.summary_file.read_text(encoding="utf-8").rstrip())
    print_line(f"\nrun: {result.run_dir}")


def _said(
    config: str | None, flags: dict[str, Any], changes: list[str], resumed: Path | None
) -> tuple[str | None, dict[str, Any]]:
    """The configuration that is meant, and what the command line changes of it."""
    if resumed is not None:
        config = config or _run_to_resume(resumed)
    given = {name: value for name, value in flags.items() if value is not None}
    overrides = {**parse_changes(changes), **given}
    if given.get("resume") and "epochs" in overrides:
        overrides = {"extend": True, **overrides}
    return config, overrides


def _as_yaml(config: TrainConfig) -> str:
    import yaml

    return str(yaml.safe_dump(config.to_dict(), sort_keys=False)).rstrip()


def _run_to_resume(run_dir: Path) -> str:
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir} holds no run to resume (no config.yaml); leave out --resume to start one there")
    return str(run_dir)


def parse_changes(changes: list[str]) -> dict[str, Any]:
    """Read `key=value` words; values are YAML, so numbers, lists and mappings come out as such.

    Raises:
        ConfigError: A word without a key, or of no option, or a value that is no YAML.

    >>> parse_changes(["epochs=3", "milestones=[1, 2]", "model=resnet20"])
    {'epochs': 3, 'milestones': [1, 2], 'model': 'resnet20'}
    """
    from stripefold_lab.training.config import check_known

    values: dict[str, Any] = {}
    for word in changes:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {word!r}: give KEY=VALUE, such as --set epochs=3")
        try:
            values[key.strip().replace("-", "_")] = parse_yaml(text)
        except DocumentError as error:
            raise ConfigError(f"--set {shown(word)}: the value is no YAML that can be used ({error})") from error
    check_known(values, where="--set")
    return values
