"""Every Python block of the README and the docs runs, page by page, block after block."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from stripefold_lab.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pages write into an empty folder, and what they register ends with them."""
    from stripefold.attention import registry
    from stripefold.layers import (
        rule,
        rules,  # noqa: F401 - the rules that are there before a page adds its own
    )

    monkeypatch.setattr(registry, "_ATTENTIONS", dict(registry._ATTENTIONS))
    monkeypatch.setattr(rule, "_rules", dict(rule._rules))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|smaller than the logging|LeafSpec)")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_run(page: Path) -> None:
    scope: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), scope)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def commands() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += re.findall(r"^ {4}(stripefold .*)$", text, re.MULTILINE)
        found += re.findall(r"`(stripefold [a-z]+ [^`]*)`", text)
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_pages_parse(line: str) -> None:
    import typer

    words = [word for word in shlex.split(line.partition("#")[0])[1:] if word != "--debug"]
    group: Any = typer.main.get_command(app)
    context = group.make_context("stripefold", words, resilient_parsing=False)
    name, command, rest = group.resolve_command(context, [*getattr(context, "_protected_args", []), *context.args])
    assert name in group.commands
    if "--help" not in rest:
        command.make_context(name, list(rest))
