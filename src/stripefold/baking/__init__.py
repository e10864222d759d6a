"""Baking: the dynamic channel attention of a *trained* network becomes constants, and the constants fold away.

Stripe Observation says that the vector v(x) of an attention module hardly depends on the image. So a trained network
keeps most of what it knows when v(x) is replaced by a constant v, and a constant per-channel scale is no work at all:
it goes into the layer before (backward) or into the layers behind (forward), exactly, wherever the trace allows it.

- ``sites``: per gate, which module goes and where its constant may go (the algebra is ``graph.propagate``).
- ``hold``: constants in place of gates by hooks, to measure before anything is changed.
- ``constants``: v from what was observed. ``apply``: the surgery. ``warm``: trainable gates instead of constants.
- ``bake``: the judge that decides what is worth baking.

Source: Huang, Z. et al., *ASR: Attention-alike Structural Re-parameterization*, 2024, section 3 (Stripe Observation).
"""
