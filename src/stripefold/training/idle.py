"""Which options of a run do nothing, so that runs that compute the same can be known for it."""

from __future__ import annotations

from stripefold.training.config import TrainConfig

IDLE: dict[str, tuple[str, ...]] = {
    "none": ("attention", "where", "repeats", "psi", "freeze", "attention_options", "gate_weight_decay"),
    "dynamic": ("repeats", "psi", "freeze"),
}
"""Options that do nothing under a form."""
DEFAULTS = TrainConfig().to_dict()


def canonical(config: TrainConfig) -> TrainConfig:
    """The configuration with every option that does nothing there at its default: equal runs become one run.

    Args:
        config: Any.

    >>> canonical(TrainConfig(form="none", repeats=3)) == TrainConfig(form="none")
    True
    """
    idle = list(IDLE.get(config.form, ()))
    if config.branch is None:
        # ``init`` is of static gates and of blocks.
        idle += ["branch_where", "branch_options", *(["init"] if config.form in IDLE else [])]
    return config.with_overrides(**{name: DEFAULTS[name] for name in idle})
