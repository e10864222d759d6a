"""Pure functions on tensors: how a per-channel scale enters an affine map, and how affine maps merge.

For an affine map ``B(x) = W x + b`` with one output feature per channel, ``v (.) B(x)`` is the map with
``v (.) W`` and ``v (.) b``; ``B(v (.) x)`` is the map with ``W diag(v)`` (ASR, Huang et al. 2024, section 3).
Nothing here knows about modules, so that every identity can be checked on plain tensors.
"""
