"""Options with no effect, used to detect identical runs."""

from __future__ import annotations

from stripefold_lab.training.config import TrainConfig

UNUSED: dict[str, tuple[str, ...]] = {
    "none": ("attention", "where", "repeats", "psi", "freeze", "start", "attention_options", "gate_weight_decay"),
    "dynamic": ("repeats", "psi", "freeze", "start"),
}
"""Options that do nothing under a form."""
OF_THE_OPTIMIZER = {"sgd": ("momentum", "nesterov")}
OF_THE_SCHEDULE = {"step": ("milestones", "decay")}
"""Options that do something under one optimiser, or one schedule, alone."""
DEFAULTS = TrainConfig().to_dict()


def canonical(config: TrainConfig) -> TrainConfig:
    """The configuration with every option that does nothing there at its default: equal runs become one run.

    Args:
        config: Any.

    >>> canonical(TrainConfig(form="none", repeats=3)) == TrainConfig(form="none")
    True
    """
    return config.with_overrides(**{name: DEFAULTS[name] for name in unused_options(config)})


def unused_options(config: TrainConfig) -> tuple[str, ...]:
    """The options that do nothing in a run, whatever they say.

    >>> idle_options(TrainConfig(optimizer="adamw", schedule="step", branch="acnet"))
    ('momentum', 'nesterov')
    """
    idle = list(UNUSED.get(config.form, ()))
    if config.branch is None:
        # ``init`` is of static gates and of blocks.
        idle += ["branch_where", "branch_options", *(["init"] if config.form in UNUSED else [])]
    for own, chosen in ((OF_THE_OPTIMIZER, config.optimizer), (OF_THE_SCHEDULE, config.schedule)):
        idle += [name for owner, names in own.items() if owner != chosen for name in names]
    return tuple(idle)
