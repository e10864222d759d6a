"""The whole zoo (`-m zoo`): hours the first time, resumable, afterwards only what has not passed yet."""

from __future__ import annotations

import pytest

from tests.zoo.run import LIBRARIES, sweep


@pytest.mark.zoo
@pytest.mark.timeout(0)
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_model_folds(library: str) -> None:
    failures = sweep(library).failures()
    assert not failures, "\n".join(f"{line['name']}: {line['failure']}" for line in failures)
