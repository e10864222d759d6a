"""Files of the user's own, which are run: what they define, and what they register (attentions, rules, blocks)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from stripefold.errors import ConfigError

_imported: dict[str, ModuleType] = {}


def import_files(paths: Sequence[str | Path]) -> None:
    """Run files for what they register, each once in a process.

    Raises:
        ConfigError: A file does not exist, or cannot be run.
    """
    for path in map(Path, paths):
        key = str(path.resolve())
        if key not in _imported:
            _imported[key] = _run(path)


def imported_files() -> tuple[str, ...]:
    """The absolute paths of the files that were run for what they register, in order: what another process needs."""
    return tuple(_imported)


def users_function(path: Path, name: str) -> Callable[[], Any]:
    """A function from a file of the user's, which is run unless it was already, for what it registers.

    Raises:
        ConfigError: no such file, no such function, or the file cannot be run.
    """
    module = _imported.get(str(path.resolve())) or _run(path)
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{path} has no function {name!r}")
    return found


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    sys.stderr.write(f"stripefold: running {path}\n")
    spec = importlib.util.spec_from_file_location(f"users_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up
    sys.path.insert(0, str(path.resolve().parent))  # as for a script: its neighbours can be imported
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        raise ConfigError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return module
