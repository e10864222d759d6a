"""Promises of the project as a whole: public names, imports, layering, sizes."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import stripefold

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "stripefold"
FILES = sorted(SOURCE.rglob("*.py"))
MAXIMUM_LINES, MAXIMUM_FUNCTION_LINES, MAXIMUM_POSITIONAL = 400, 40, 5

# Imports go one way: a room may import rooms of its own row above it, never below.
ROOM_LEVEL = {
    "errors": 0,
    "atomic": 0,
    "stdout": 0,
    "processes": 1,
    "together": 1,
    "algebra": 1,
    "surgery": 2,
    "attention": 3,
    "folding": 3,
    "asr": 4,
    "branches": 4,
    "stripe": 4,
    "baking": 4,
    "nets": 5,
    "scenes": 5,
    "figures": 5,
    "training": 6,
    "bench": 6,
    "export": 6,
    "onnx": 6,
    "robustness": 6,
    "sweep": 7,
    "cli": 8,
    "__main__": 9,
}
CORE = {room for room, level in ROOM_LEVEL.items() if level < 5}
# baking builds on the observation of stripe and on the gates of asr, bench times what export runs, robustness compares
# training's runs; everything else on its row stands alone.
ALLOWED_ASIDE = {("baking", "stripe"), ("baking", "asr"), ("bench", "export"), ("robustness", "training")}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT / "src")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names_are_those_of_the_file() -> None:
    listed = (Path(__file__).parent / "api_surface.txt").read_text(encoding="utf-8").split()
    assert sorted(stripefold.__all__) == listed, "the public interface changed: update tests/api_surface.txt knowingly"
    for name in listed:
        assert getattr(stripefold, name) is not None
        assert name in dir(stripefold)


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        stripefold.no_such_name  # noqa: B018


def test_version_agrees_with_the_metadata() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{stripefold.__version__}"' in declared


def test_import_loads_no_torch() -> None:
    heavy = run_python(
        "import sys, stripefold; print([m for m in ('torch', 'numpy', 'rich', 'typer') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_command_loads_no_torch_before_it_runs() -> None:
    assert run_python("import sys, stripefold.cli.app; print('torch' in sys.modules)") == "False"


def test_core_needs_no_extra_and_touches_no_accelerator() -> None:
    code = (
        "import sys, torch, stripefold\n"
        "[getattr(stripefold, name) for name in stripefold.__all__]\n"
        "extras = ('timm', 'torchvision', 'pytorch_lightning', 'transformers', 'matplotlib', 'sklearn', 'yaml')\n"
        "print([m for m in extras if m in sys.modules], torch.cuda.is_initialized())"
    )
    assert run_python(code) == "[] False"


def test_all_modules_import() -> None:
    names = [module.name for module in pkgutil.walk_packages(stripefold.__path__, "stripefold.")]
    assert len(names) > 10
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAXIMUM_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= MAXIMUM_FUNCTION_LINES, node.name
            positional = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            given = [name for name in positional if name not in ("self", "cls")]
            assert len(given) <= MAXIMUM_POSITIONAL or node.name.startswith("_load_from_state"), node.name


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stripefold."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {name.name.split(".")[1] for name in node.names if name.name.startswith("stripefold.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    if parts == ("__init__",):
        return  # the public names come from everywhere, lazily
    room = parts[0]
    for other in imported_rooms(path) - {room}:
        below = ROOM_LEVEL[other] < ROOM_LEVEL[room]
        aside = ROOM_LEVEL[other] == ROOM_LEVEL[room] and (room, other) in ALLOWED_ASIDE
        assert below or aside, f"{room} must not import {other}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(SOURCE).parts[0] in CORE], ids=lambda path: path.name
)
def test_core_imports_torch_numpy_safetensors_only(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"torch", "numpy", "safetensors", "stripefold"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.parametrize(
    "room", [path for path in sorted(SOURCE.iterdir()) if (path / "__init__.py").exists()], ids=lambda p: p.name
)
def test_a_room_says_what_it_is_at_its_door(room: Path) -> None:
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))


def test_readme_shows_code_early() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("```python") for line in lines[:25])


def test_readme_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in ("demo", "test", "check", "zoo", "bench", "venv"):
        assert f"\n{target}: " in makefile
    for target in ("make demo", "make test"):
        assert target in readme


def test_no_leftovers() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for word in ("TODO", "FIXME", "XXX", "raise NotImplementedError"):
            assert word not in text, f"{path.name}: {word}"
