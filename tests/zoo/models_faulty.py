"""Subjects that go wrong, for the tests of the sweep."""

from __future__ import annotations

import os
import time

from torch import nn

from tests.zoo.subject import Subject, images


def _crash() -> nn.Module:
    os._exit(3)


def _hang() -> nn.Module:
    time.sleep(60)
    return nn.Linear(1, 1)


def _no_layer() -> nn.Module:
    return nn.ReLU()


def names() -> list[str]:
    """One for each way to fail."""
    return ["crash", "hang", "no_layer"]


def subjects(name: str) -> list[Subject]:
    """A subject that fails in the way its name says."""
    build = {"crash": _crash, "hang": _hang, "no_layer": _no_layer}[name]
    return [Subject(name=name, build=build, inputs=lambda seed: images(seed, 3, 8, 8))]
