"""Stripe Observation: see what a network's channel attention does with each image.

The paper's discovery as an instrument (ASR, Huang et al. 2024, section 2): over many inputs, the vector that a channel
attention gives stays nearly the same in every channel. ``discover`` finds the gates of any model by what it computes,
``observe`` records them over a data set. Nothing here changes a model, so it stands beside ``asr``, which does.
"""
