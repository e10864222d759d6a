"""Attention-alike structural re-parameterization: gates on sites, from attaching to the bare backbone.

A *site* is an affine layer B whose output is scaled per channel by gates ``v = E_theta(psi)``: psi is learnable, E is
the excitation of a channel attention, v does not depend on the network's input (ASR, Huang et al. 2024, eq. 4-6).
"""
