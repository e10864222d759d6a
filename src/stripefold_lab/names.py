"""Names of models and data sets, and checks of them that load neither torch nor timm: a slip is told at once."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
from pathlib import Path

from stripefold.errors import ConfigError

# 56 and 110 are both 6n+2 and 9n+2: the bare name is the basic form, as in He et al. 2016.
OWN_MODELS: dict[str, tuple[int, str]] = {
    **{f"resnet{depth}": (depth, "basic") for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}": (depth, "bottleneck") for depth in (29, 47, 65, 83, 164)},
    **{f"resnet{depth}_bottleneck": (depth, "bottleneck") for depth in (56, 110)},
}
# Those of the library, for help that loads no torch; tests/cli/test_users_attention.py holds them.
ATTENTIONS = (
    "cbam", "dia", "eca", "ese", "fca", "gc", "gct", "ge", "ie", "position", "scale", "se", "shift", "spa", "spatial",
    "srm",
)  # fmt: skip
TORCHVISION_DATA = ("cifar10", "cifar100", "stl10", "fashion_mnist", "imagenet")
_LIBRARIES = ("timm", "torchvision")
_REGISTERED = re.compile(r"@register_model(?:\([^)]*\))?\s*\n(?:@[^\n]*\n)*def (\w+)\(")


def check_model_name(name: str) -> None:
    """Refuse a classifier's name that stands nowhere in the libraries' sources; what passes may still be refused.

    Args:
        name: As ``create_model`` takes it.

    Raises:
        ConfigError: Nobody knows it; the nearest names are told.
    """
    library, _, rest = name.partition("/")
    libraries = (library,) if library in _LIBRARIES and rest else _LIBRARIES
    wanted = (rest if libraries == (library,) else name).partition(".")[0]
    if name in OWN_MODELS or ":" in name or not wanted:
        return
    texts = [text for each in libraries if (text := _sources(each)) is not None]
    if len(texts) < len(libraries) or any(re.search(rf"\b{re.escape(wanted)}\b", text) for text in texts):
        return
    known = list(dict.fromkeys(found for text in texts for found in _REGISTERED.findall(text)))
    if libraries == (library,):
        raise ConfigError(
            f"{library} knows no classifier {rest!r}; {_close(rest, known, f'see {library}.list_models')}"
        )
    raise ConfigError(unknown_name(name, known))


def unknown_name(name: str, known: list[str]) -> str:
    """The message for a name that nobody knows, with the nearest names that somebody knows.

    Args:
        name: What was asked for.
        known: Names of timm and torchvision.
    """
    names = list(dict.fromkeys([*OWN_MODELS, *known]))  # timm and torchvision share many
    return f"unknown model {name!r}; {_close(name, names, 'own names: ' + ', '.join(OWN_MODELS))}"


@functools.cache
def _sources(library: str) -> str | None:
    """The text of a library's models, some five megabytes; None where it is not installed or lies in no files."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*.py")) or None


def _close(name: str, known: list[str], otherwise: str) -> str:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.6)
    return f"close: {', '.join(close)}" if close else otherwise
