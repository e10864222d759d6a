"""Promises of the project as a whole: public names, imports, layering, sizes."""

from __future__ import annotations

import ast
import graphlib
import importlib
import importlib.metadata
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import stripefold

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
LIBRARY, LAB = SOURCE / "stripefold", SOURCE / "stripefold_lab"
FILES = sorted((*LIBRARY.rglob("*.py"), *LAB.rglob("*.py")))
USUAL_LINES, MAXIMUM_LINES, MAXIMUM_FUNCTION_LINES, MAXIMUM_POSITIONAL = 250, 400, 40, 5

# Imports go one way: a package may import packages of a lower number only.
LIBRARY_LEVEL = {
    "errors": 0,
    "atomic": 0,
    "progress": 0,
    "inputs": 1,
    "own_files": 1,
    "documents": 1,
    "records": 2,
    "distributed": 1,
    "algebra": 1,
    "modules": 2,
    "graph": 3,
    "attention": 3,
    "layers": 4,
    "folding": 5,
    "asr": 6,
    "branches": 6,
    "stripe": 6,
    "baking": 7,
    "export": 7,
    "html_report": 8,
    "onnx": 8,
    "integrations": 9,
}
LAB_LEVEL = {
    "names": 0,
    "stdout": 0,
    "processes": 0,
    "yaml_documents": 0,
    "users_files": 0,
    "models": 1,
    "datasets": 1,
    "training": 2,
    "bench": 2,
    "robustness": 3,
    "sweep": 3,
    "cli": 4,
}
CORE = {package for package in LIBRARY_LEVEL if package not in ("export", "html_report", "integrations", "onnx")}


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
    assert run_python("import sys, stripefold_lab.cli.app; print('torch' in sys.modules)") == "False"


def test_core_needs_no_extra_and_touches_no_accelerator() -> None:
    code = (
        "import sys, torch, stripefold\n"
        "[getattr(stripefold, name) for name in stripefold.__all__]\n"
        "extras = ('timm', 'torchvision', 'pytorch_lightning', 'transformers', 'matplotlib', 'sklearn', 'yaml')\n"
        "print([m for m in extras if m in sys.modules], torch.cuda.is_initialized())"
    )
    assert run_python(code) == "[] False"


def test_attach_loads_what_it_needs() -> None:
    """Its import is paid at every start; a wall clock would flake, the list of modules does not."""
    loaded = set(ast.literal_eval(run_python("import sys, stripefold as sf; sf.attach; print(list(sys.modules))")))
    own = {name.removeprefix("stripefold.") for name in loaded if name.startswith("stripefold.")}
    packages = {"algebra", "asr", "attention", "documents", "errors", "folding", "graph", "layers", "modules"}
    assert {name.partition(".")[0] for name in own} <= packages
    assert {name for name in own if name.startswith("folding.")} == {"folding.attached_steps"}
    assert 60 < len(own) <= 100
    assert not {"stripefold_lab", "torchvision", "safetensors", "jinja2"} & loaded


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


def test_most_files_are_shorter_than_the_rule() -> None:
    longer = [path for path in FILES if path.read_text(encoding="utf-8").count("\n") > USUAL_LINES]
    assert len(longer) <= len(FILES) // 10, [str(path.relative_to(SOURCE)) for path in longer]


def imported_packages(path: Path) -> set[tuple[str, str]]:
    """What a file imports of the project: (distribution package, package in it)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
    parts = [name.split(".") for name in names if name.split(".")[0] in ("stripefold", "stripefold_lab")]
    return {(p[0], p[1]) for p in parts if len(p) > 1 and (SOURCE / p[0] / p[1]).with_suffix("").exists()} | {
        (p[0], p[1]) for p in parts if len(p) > 1 and (SOURCE / p[0] / f"{p[1]}.py").exists()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    """Downwards in the library, downwards in the lab, from the lab to the library, never back."""
    owner, *parts = path.relative_to(SOURCE).with_suffix("").parts
    if parts in (["__init__"], ["__main__"]):
        return  # the public names come from everywhere, lazily; ``python -m stripefold`` is the lab's command
    level = LIBRARY_LEVEL if owner == "stripefold" else LAB_LEVEL
    for other_owner, other in imported_packages(path):
        if (other_owner, other) == (owner, parts[0]):
            continue
        if other_owner == owner:
            assert level[other] < level[parts[0]], f"{parts[0]} must not import {other}"
        else:
            assert owner == "stripefold_lab", f"the library must not import {other_owner}.{other}"


def test_every_package_has_a_level() -> None:
    for root, level in ((LIBRARY, LIBRARY_LEVEL), (LAB, LAB_LEVEL)):
        found = {path.stem for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
        assert found - {"__init__", "__main__"} == set(level)


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if LIBRARY in p.parents and p.relative_to(LIBRARY).with_suffix("").parts[0] in CORE],
    ids=lambda path: path.name,
)
def test_core_imports_torch_numpy_safetensors_only(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"torch", "numpy", "safetensors", "stripefold"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.parametrize(
    "package",
    sorted(path for root in (LIBRARY, LAB) for path in root.glob("*/__init__.py")),
    ids=lambda p: p.parent.name,
)
def test_a_package_says_what_it_is(package: Path) -> None:
    assert ast.get_docstring(ast.parse(package.read_text(encoding="utf-8")))


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


def test_ci_runs_nothing_twice_and_nothing_that_is_not_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        runs = [step["run"] for job in jobs.values() for step in job.get("steps", ()) if "run" in step]
        assert len(runs) == len(set(runs)), path.name
        assert not {"make check", "make test"} & set(runs), f"{path.name}: `.ci/run` and `make lint` are these"
        for target in [run.removeprefix("make ") for run in runs if run.startswith("make ")]:
            assert f"\n{target}: " in makefile, f"{path.name}: {target}"
        assert all(os.access(ROOT / run, os.X_OK) for run in runs if run.startswith("."))
        assert all((ROOT / job["uses"]).is_file() for job in jobs.values() if "uses" in job)


def test_ruff_ignores_no_rule_that_it_selects() -> None:
    lint = re.findall(r'^ {4}"([A-Z]+[0-9]*)",', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lint) == len(set(lint))


def test_no_leftovers() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for word in ("TODO", "FIXME", "XXX", "raise NotImplementedError"):
            assert word not in text, f"{path.name}: {word}"


def names_of_types(path: Path) -> list[str]:
    """Classes anywhere in a file, and aliases and type variables of its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if name.strip("_")[:1].isupper() and not name.isupper()]


def test_a_type_name_has_one_meaning() -> None:
    homes: dict[str, set[str]] = {}
    for path in FILES:
        for name in names_of_types(path):
            homes.setdefault(name, set()).add(str(path.relative_to(SOURCE)))
    several = {name: sorted(where) for name, where in homes.items() if len(where) > 1}
    assert not several


_TWIN = "the same for ONNX files and for models of torch"
# Function -> why several files of the library have one of that name.
FUNCTIONS_OF_ONE_NAME = {
    **dict.fromkeys(("axis_downstream", "axis_upstream", "bake", "compact", "extents", "measured", "observe"), _TWIN),
    **dict.fromkeys(("relative_error", "side_by_side", "site_results", "tensors_of"), _TWIN),
    **dict.fromkeys(("build", "why_unsupported"), "what every kind of branch block defines"),
    **dict.fromkeys(("sentence", "tiles"), "the head of each page"),
    "as_text": "each report as text",
    "describe": "the table of attentions, which users call; and the shapes of an example, for messages",
    "select": "where= for sites, and for branch blocks",
}


def test_a_function_name_has_one_meaning() -> None:
    """In the library, of functions that other files can import; methods are their class's own."""
    homes: dict[str, set[str]] = {}
    for path in FILES:
        if LIBRARY in path.parents:
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    homes.setdefault(node.name, set()).add(str(path.relative_to(LIBRARY)))
    several = {name: sorted(where) for name, where in homes.items() if len(where) > 1}
    assert not {name: where for name, where in several.items() if name not in FUNCTIONS_OF_ONE_NAME}
    assert set(several) == set(FUNCTIONS_OF_ONE_NAME), "an exception that nothing needs"


def names_defined(path: Path) -> set[str]:
    """What a file defines at any level, or in a script of a page by ``const`` and ``function``."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return set(re.findall(r"(?:const|function) (\w+)", text))
    nodes = list(ast.walk(ast.parse(text)))
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    given = {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}
    made = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return assigned | used | given | made


def attributes_of(path: Path) -> set[str]:
    """What a file defines, with what it assigns to attributes."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    stored = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return stored | names_defined(path)


def docstrings_of(path: Path) -> str:
    """Docstrings of a file, and texts below what they describe."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    values = (node.value for node in nodes if isinstance(node, ast.Expr))
    return "\n".join(v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))


def homes_of_classes() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name] = path
    return found


CLASSES = homes_of_classes()
_FILES = (".py", ".md", ".json", ".csv", ".yaml", ".html", ".pt")


def home_of(name: str, path: Path) -> tuple[Path, list[str]] | None:
    """The package, module or class that a dotted name begins with, if it is ours, and what it says is in there."""
    first, *rest = name.split(".")
    if first in CLASSES:
        return CLASSES[first], rest
    if first in ("stripefold", "stripefold_lab") and rest:
        return home_of(".".join(rest), SOURCE / first / "__init__.py") if len(rest) > 1 else None
    own = LIBRARY if LIBRARY in path.parents else LAB
    for place in (path.parent, own, LIBRARY):
        if (place / f"{first}.py").is_file():
            return place / f"{first}.py", rest
        if (place / first / "__init__.py").is_file():
            return place / first, rest
    return None


def is_there(place: Path, names: list[str]) -> bool:
    if place.is_dir():
        module = place / f"{names[0]}.py"
        if module.is_file():
            return is_there(module, names[1:])
        return any(names[0] in attributes_of(file) for file in place.glob("*.py"))  # a name that the package hands on
    known = attributes_of(place)
    return all(name in known or (name in CLASSES and CLASSES[name] == place) for name in names)


def stale_names(path: Path, text: str) -> list[str]:
    """Dotted names in double backticks that begin with a place of ours, and are not in it."""
    found = re.findall(r"``([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\([^`]*\))?``", text)
    homes = {name: home_of(name, path) for name in found if not name.endswith(_FILES)}
    return [name for name, home in homes.items() if home is not None and not is_there(*home)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_names_in_docstrings_exist(path: Path) -> None:
    assert not stale_names(path, docstrings_of(path))


@pytest.mark.parametrize(
    ("name", "is_stale"),
    [
        ("graph.propagate.Accept", True),
        ("graph.absorption.Accept", False),
        ("layers.probes", True),
        ("layers.probe", False),
        ("stripefold.layers.probes.probe", True),
        ("Graph.dead_ends", True),
        ("Graph.dead", False),
        ("static_constants.is_step", False),
        ("static_constants.is_stepp", True),
        ("torch.nothing.of.ours", False),
    ],
)
def test_a_stale_name_is_found(name: str, is_stale: bool) -> None:
    assert bool(stale_names(LIBRARY / "folding" / "fold.py", f"See ``{name}``.")) == is_stale


def symptom_rows() -> list[tuple[str, str, str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## What you see, and where it comes from")[1].split("### Twins")[0]
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in section.splitlines() if "`" in line]
    return [row for row in rows if len(row) == 3]  # type: ignore[misc]


def files_named(text: str) -> list[Path]:
    names = re.findall(r"`([\w/]+\.(?:py|js\.jinja))`", text)
    return [(SOURCE if name.startswith("stripefold_lab/") else LIBRARY) / name for name in names]


def test_there_are_rows_for_what_one_sees() -> None:
    assert len(symptom_rows()) >= 25


@pytest.mark.parametrize("row", symptom_rows(), ids=lambda row: row[0][:40])
def test_every_file_and_function_of_the_symptom_map_exists(row: tuple[str, str, str]) -> None:
    files = files_named(row[1])
    assert files
    known = set().union(*(names_defined(path) for path in files))
    names = re.findall(r"`(\w+)`", row[2])
    assert names
    assert set(names) <= known


def test_every_twin_exists() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("### Twins")[1].split("\n## ")[0]
    assert len(files_named(section)) > 20
    assert all(path.is_file() for path in files_named(section))


def imported_when_loaded(path: Path, modules: set[str]) -> set[str]:
    """The project's modules that a file imports as soon as it is imported itself."""
    found: set[str] = set()
    nodes: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return found & modules


def test_no_import_circle() -> None:
    """But through an ``__init__``, whose names are its package's own."""
    paths = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in FILES if path.stem != "__init__"
    }
    graph = {name: imported_when_loaded(path, set(paths)) for name, path in paths.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
