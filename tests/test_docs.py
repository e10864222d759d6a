"""Every Python block of the README and the docs runs, page by page; links, names, options and messages are there."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import stripefold
import stripefold.errors
import stripefold.export
import stripefold.onnx
from docs_site import drawings, tables
from docs_site.navigation import expand, named
from stripefold_lab.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RUN_ELSEWHERE = {DOCS / "integrations" / "ultralytics.md"}  # trains on images: tests/integrations/test_ultralytics.py
LIBRARY_OF = {DOCS / "integrations" / "segmentation-models-pytorch.md": "segmentation_models_pytorch"}
BLOCK = re.compile(r"^(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#([^)\s]+))?\)")
PICTURE = re.compile(r"(?:src|srcset)=\"([^\"]+)\"")
IDENTIFIER = re.compile(r"^::: (stripefold[\w.]*)$", re.MULTILINE)
# What a page loads by itself; a link (`<a>`, `rel="canonical"`) is not followed before a reader clicks.
OTHER_HOST = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\b(?:src|srcset)=\"?https?:[^>]*>|<link rel=\"?stylesheet[^>]*https?:[^>]*>"
)
MESSAGE = re.compile(r"^### `(.+)`$", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pages write into an empty folder, and what they register ends with them."""
    from stripefold.attention import registry
    from stripefold.branches import registry as blocks
    from stripefold.layers import rule

    monkeypatch.setattr(registry, "_ATTENTIONS", dict(registry._ATTENTIONS))
    monkeypatch.setattr(blocks, "_KINDS", dict(blocks._KINDS))
    monkeypatch.setattr(rule, "_rules", dict(rule.known_rules()))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|smaller than the logging|LeafSpec)")
@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE], ids=name_of)
def test_blocks_run(page: Path) -> None:
    if page in LIBRARY_OF:
        pytest.importorskip(LIBRARY_OF[page])
    scope: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    for package, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if not package or find_spec(package):  # what a page says of a runtime that the tests do not install
            exec(compile(block, str(page), "exec"), scope)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub both write them for plain words."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


OUTSIDE = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md")]


@pytest.mark.parametrize("page", [*PAGES, *OUTSIDE], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in [*LINK.findall(text), *((target, "") for target in PICTURE.findall(text))]:
        path = page.parent / target
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{target}#{anchor}"


def commands() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += re.findall(r"^ {4}(stripefold .*)$", text, re.MULTILINE)
        found += re.findall(r"`(stripefold [a-z]+ [^`]*)`", text)
    return [line for line in found if not line.startswith("stripefold COMMAND")]


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_pages_parse(line: str) -> None:
    import typer

    words = [word for word in shlex.split(line.partition("#")[0])[1:] if word not in ("--debug", "...")]
    group: Any = typer.main.get_command(app)
    context = group.make_context("stripefold", words, resilient_parsing=False)
    name, command, rest = group.resolve_command(context, [*getattr(context, "_protected_args", []), *context.args])
    assert name in group.commands
    if "--help" not in rest:
        command.make_context(name, list(rest))


def navigation() -> set[str]:
    return named(expand(entries := yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"], DOCS, named(entries)))


def test_the_navigation_has_every_page_once_and_no_other() -> None:
    assert navigation() == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_an_entry_for_a_folder_takes_what_nothing_else_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("index", "sub/c", "sub/d"):
        (tmp_path / f"{name}.md").touch()
    entries = [{"Here": ["sub/c.md", "sub/*.md"]}, "index.md"]
    assert expand(entries, tmp_path, named(entries)) == [{"Here": ["sub/c.md", "sub/d.md"]}, "index.md"]


def test_every_public_name_is_in_the_reference() -> None:
    told = {name for page in (DOCS / "reference").glob("*.md") for name in IDENTIFIER.findall(page.read_text())}
    public = {f"stripefold.{name}" for name in stripefold.__all__ if name != "errors"} | {"stripefold.errors"}
    public |= {f"stripefold.export.{name}" for name in stripefold.export.__all__}
    public |= {f"stripefold.onnx.{name}" for name in stripefold.onnx.__all__}
    assert {name for name in told if not name.startswith("stripefold_lab.")} == public


def test_the_reference_of_the_workbench_names_what_it_exports() -> None:
    import stripefold_lab.sweep
    import stripefold_lab.training

    told = set(IDENTIFIER.findall((DOCS / "reference" / "workbench.md").read_text()))
    assert {f"stripefold_lab.sweep.{name}" for name in stripefold_lab.sweep.__all__} <= told
    training = {f"stripefold_lab.training.{name}" for name in stripefold_lab.training.__all__}
    assert training - told == {"stripefold_lab.training.TrainConfig"}  # its options are a page of their own


def test_every_option_has_a_default_and_a_meaning() -> None:
    from stripefold_lab.training import TrainConfig

    text = tables.options()
    for field in dataclasses.fields(TrainConfig):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{field.name}` |"))
        assert len(row.rstrip("| ").rpartition(" | ")[2]) > 5, row


def test_generated_parts_name_everything() -> None:
    from stripefold import attention_names, branch_names
    from stripefold_lab.training import recipe_names

    assert all(f"### {name}\n" in tables.recipes() for name in recipe_names())
    assert all(f"| `{name}` |" in tables.attentions() for name in attention_names())
    assert all(f"| `{name}` |" in tables.branches() for name in branch_names())
    assert all(f"## {name}\n" in tables.command() for name, _ in tables.commands())
    assert "--max-drop" in tables.command()
    assert "### delta\n" in tables.ablations()
    assert "## [Unreleased]" in tables.changelog()
    assert len(tables.figures().splitlines()) == 5
    assert "](../tests/zoo/results/SUMMARY.md)" in tables.figures()
    assert "](guides/baking.md)" in tables.figures()


def test_every_generated_part_is_shown_by_a_page() -> None:
    shown = {name for page in DOCS.rglob("*.md") for name in re.findall(r"<!-- generated: (\S+) -->", page.read_text())}
    assert shown == set(tables.PARTS)


def test_a_table_keeps_its_columns() -> None:
    assert tables.table(("a", "b"), [("x|y", "two\nlines")]).splitlines()[-1] == "| x\\|y | two lines |"


def test_drawings_are_those_of_the_script() -> None:
    assert drawings.main(["--check"]) == 0, "run: python -m docs_site.drawings"


def literals() -> list[str]:
    """Every text of the source, with … for what is filled in."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def says(text: str, message: str) -> bool:
    """Whether a message, with … for what is filled in, is part of a text of the source."""
    pattern = ".*?".join(re.escape(part) for part in message.split("…"))
    return re.search(pattern, text, re.DOTALL) is not None


def test_messages_of_the_troubleshooting_page_are_those_of_the_source() -> None:
    messages = MESSAGE.findall((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(messages) >= 40
    texts = literals()
    missing = [message for message in messages if not any(says(text, message) for text in texts)]
    assert missing == []
    assert not any(says(text, "no such … message is there") for text in texts)


def test_the_site_builds(tmp_path: Path) -> None:
    build = pytest.importorskip("mkdocs.commands.build", reason="needs the extra docs; CI runs make docs")
    from mkdocs.config import load_config

    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert (tmp_path / "site" / "index.html").is_file()
    reference = [page.read_text(encoding="utf-8") for page in (tmp_path / "site" / "reference").glob("*.html")]
    assert reference
    assert not any("<blockquote>" in page or "<!-- generated" in page for page in reference)
    pages = [page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")]
    assert {tag for page in pages for tag in OTHER_HOST.findall(page)} == set()
    assert OTHER_HOST.findall('<script src="https://a.b/c.js">')
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert '"provider": "mike"' in home
    assert "assets/iframe-worker.js" in home  # search in a page that is opened from a folder
    assert 'data-md-component="source"' not in home  # this would ask the repository's host for its stars
