"""A random search's samples, drawn from Ray Tune's own distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stripefold.documents import shown
from stripefold.errors import ConfigError
from stripefold_lab.training.seeding import derive_seed

DISTRIBUTIONS = (
    "uniform", "quniform", "loguniform", "qloguniform", "randn", "qrandn",
    "randint", "qrandint", "lograndint", "qlograndint", "choice",
)  # fmt: skip


def draw(random: Mapping[str, Mapping[str, Any]], samples: int, seed: int) -> list[dict[str, Any]]:
    """One mapping of options to values per sample.

    A value follows from (seed, option, number of the sample): more samples or another option leave it alone.

    Args:
        random: Option -> ``{distribution: its arguments}``.
        samples: How many.
        seed: All values derive from it.

    Raises:
        ConfigError: If a distribution is unknown, or Ray refuses its arguments.
    """
    return [{name: _value(name, given, (seed, index)) for name, given in random.items()} for index in range(samples)]


def _value(option: str, given: Any, place: tuple[int, int]) -> Any:
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ConfigError(f"random, {option} is {shown(given)}; give one distribution, such as {{uniform: [0, 1]}}")
    ((kind, arguments),) = given.items()
    if kind not in DISTRIBUTIONS:
        raise ConfigError(f"random, {option}: no distribution {shown(kind)}; Ray Tune's are {', '.join(DISTRIBUTIONS)}")
    if not isinstance(arguments, Sequence) or isinstance(arguments, str) or not arguments:
        example = "{uniform: [0, 1]}"
        raise ConfigError(f"random, {option}: {kind} is given {shown(arguments)}; give a list, such as {example}")
    state = derive_seed(place[0], f"draw {option}", place[1]) % 2**32
    if kind == "choice":  # by its place in the list: numpy would take lists apart
        return arguments[_sample(option, "randint", [0, len(arguments)], state)]
    return _sample(option, kind, arguments, state)


def _sample(option: str, kind: str, arguments: Sequence[Any], state: int) -> Any:
    from stripefold_lab.sweep.session import import_ray

    tune = import_ray().tune
    try:
        value = getattr(tune, kind)(*arguments).sample(random_state=state)
    except (TypeError, ValueError, AssertionError, OverflowError) as error:
        raise ConfigError(f"random, {option}: Ray Tune refuses {kind} of {shown(list(arguments))} ({error})") from error
    return value.item() if hasattr(value, "item") else value
