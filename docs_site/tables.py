"""Reference tables that are written from the code: options, recipes, attentions, branch blocks, the command line."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def options() -> str:
    """Every option of a training run with its default, its choices and its meaning."""
    from stripefold_lab.training.config import CHOICES, TrainConfig

    meaning = attributes(TrainConfig)
    rows = []
    for field in dataclasses.fields(TrainConfig):
        words, choices = meaning[field.name], CHOICES.get(field.name, ())
        if not all(f"`{choice}`" in words for choice in choices):
            words += " Choices: " + ", ".join(f"`{choice}`" for choice in choices) + "."
        rows.append((f"`{field.name}`", f"`{default_of(field)}`", words))
    return table(("option", "default", "meaning"), rows)


def default_of(field: dataclasses.Field[Any]) -> str:
    """A field's default as a YAML file would show it."""
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    shown = {None: "null", True: "true", False: "false", (): "[]"}
    return str(shown.get(value, value)) if value.__hash__ else str(value)


def attributes(cls: type) -> dict[str, str]:
    """The `Attributes` of a class's docstring: name -> text on one line."""
    body = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    for line in inspect.cleandoc(body).splitlines():
        name, colon, text = line.partition(": ")
        if colon and name.isidentifier():
            found[name] = text.strip()
        elif found:
            found[list(found)[-1]] += " " + line.strip()
    return {name: text.replace("``", "`") for name, text in found.items()}


def recipes() -> str:
    """Every recipe of `stripefold train`."""
    from stripefold_lab.training.recipe import recipe_names

    folder = resources.files("stripefold_lab.training") / "recipes"
    texts = {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in recipe_names()}
    return "\n".join(yaml_section(name, text, f"stripefold train --config {name}") for name, text in texts.items())


def ablations() -> str:
    """Every sweep that comes with `stripefold sweep`."""
    folder = resources.files("stripefold_lab.sweep") / "ablations"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    return "\n".join(
        yaml_section(file.name[:-5], file.read_text(encoding="utf-8"), f"stripefold sweep {file.name[:-5]}")
        for file in files
    )


def yaml_section(name: str, text: str, command: str) -> str:
    """One recipe: what its first comment says, the command that runs it, its text."""
    lead = re.match(r"((?:#.*\n)+)", text)
    words = " ".join(line.lstrip("# ") for line in lead[1].splitlines()) if lead else ""
    rest = text[lead.end() :] if lead else text
    return f"### {name}\n\n{words}\n\n```console\n{command}\n```\n\n```yaml\n{rest.strip()}\n```\n"


def attentions() -> str:
    """Every attention that a gate can be made of."""
    from stripefold.attention import describe

    rows = [
        (f"`{row.name}`", row.gates, row.squeeze, row.excite, ", ".join(f"`{o}`" for o in row.options), row.source)
        for row in describe()
    ]
    return table(("name", "gates", "squeeze", "excite", "options", "source"), rows)


def branches() -> str:
    """Every kind of branch block."""
    from stripefold.branches.registry import branch_kinds

    rows = [
        (f"`{kind.name}`", kind.branches, ", ".join(f"`{o}`" for o in kind.options), kind.source)
        for kind in branch_kinds()
    ]
    return table(("name", "branches", "options", "source"), rows)


def command() -> str:
    """Every command with its arguments and options."""
    return "\n".join(command_section(name, each) for name, each in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """The commands by name."""
    import typer

    from stripefold_lab.cli.app import app

    yield from sorted(typer.main.get_command(app).commands.items())  # type: ignore[attr-defined]


def command_section(name: str, each: Any) -> str:
    """One command: what it does, its arguments, its options."""
    arguments = [each_one for each_one in each.params if each_one.param_type_name == "argument"]
    given = [each_one for each_one in each.params if each_one.param_type_name == "option" and each_one.name != "help"]
    usage = " ".join(["stripefold", name, *(usage_of(argument) for argument in arguments)])
    parts = [f"## {name}", cell_free(each.help), f"```console\n{usage}{' [OPTIONS]' if given else ''}\n```"]
    rows = [(f"`{argument.name}`", getattr(argument, "help", None) or "") for argument in arguments]
    rows += [(option_names(option), getattr(option, "help", None) or "") for option in given]
    return "\n\n".join(parts + ([table(("argument or option", "meaning"), rows)] if rows else [])) + "\n"


def usage_of(argument: Any) -> str:
    """An argument as a usage line writes it."""
    name = (argument.metavar or argument.name).upper()
    many = "..." if argument.nargs == -1 else ""
    return f"{name}{many}" if argument.required else f"[{name}{many}]"


def option_names(option: Any) -> str:
    """An option's names and its default."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    plain = isinstance(option.default, str | int | float) and not isinstance(option.default, bool)
    return f"{names} (`{option.default}`)" if plain and option.default != "" else names


def changelog() -> str:
    """The changelog without its title."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


def figures() -> str:
    """The README's table of what was measured, with its links as `docs/index.md` writes them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = text[text.index("| question | measured | where |") :].partition("\n\n")[0]
    return re.sub(r"\]\((?!https?:)", "](../", rows).replace("](../docs/", "](")


def integrations() -> str:
    """The pages of `docs/integrations`, each with its title."""
    pages = sorted(path for path in (ROOT / "docs" / "integrations").glob("*.md") if path.stem != "index")
    titles = [page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for page in pages]
    return "\n".join(f"- [{title}]({page.name})" for title, page in zip(titles, pages, strict=True))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def cell(value: object) -> str:
    """A value on one line, with nothing that ends a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def cell_free(text: str | None) -> str:
    r"""A help text without the marks of the terminal (`\b`)."""
    return (text or "").replace("\b\n", "").replace("\b", "").strip()


PARTS: dict[str, Callable[[], str]] = {
    "options": options,
    "recipes": recipes,
    "ablations": ablations,
    "attentions": attentions,
    "branches": branches,
    "command": command,
    "changelog": changelog,
    "figures": figures,
    "integrations": integrations,
}
