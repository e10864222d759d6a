"""Module trees: find, replace, copy and restore modules, hooks, flags, sharing, example inputs, true float64.

Nothing here knows what folding is. ``structural_copy`` copies a model and shares its weights, ``preserve_state`` runs
such a copy in the user's modes, ``all_or_nothing`` changes a model completely or not at all.
"""
