"""Damaged files of every kind, thousands of them: read as what they hold, or refused in one line of ours."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stripefold.errors import AttachError, BranchError, StripefoldError
from tests.fuzz.readers import READERS

pytestmark = pytest.mark.slow
FEW, MANY = 25, int(os.environ.get("STRIPEFOLD_FUZZ", "400"))
SECONDS = 20.0


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def check(name: str, random: Random, folder: Path) -> str:
    """Damage a valid file of a reader and read it; what it ended in. A reader may give None for what it refuses."""
    reader = READERS[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = reader.make(folder)
    random.choice(reader.rewrites)(random, path)
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if reader.read(path) is None:
                return "refused"
    except (AttachError, BranchError):  # which layers cannot be sites or blocks is a list, one a line
        return "refused"
    except StripefoldError as error:
        text = str(error)
        assert text.strip(), name
        assert "\n" not in text, text
        assert len(text) < 20_000, name
        return "refused"
    finally:
        assert time.perf_counter() - started < SECONDS
    return "read"


def test_the_files_are_valid_before_they_are_damaged(name: str, tmp_path: Path) -> None:
    """The control: without damage nothing is refused."""
    READERS[name].read(READERS[name].make(tmp_path))


def run(name: str, folder: Path, count: int, *, seed: bool) -> None:
    ends: dict[str, int] = {"read": 0, "refused": 0}

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=seed, suppress_health_check=list(HealthCheck)
    )
    @given(random=st.randoms(use_true_random=False))
    def damaged(random: Random) -> None:
        ends[check(name, random, folder / "f")] += 1

    damaged()
    assert ends["refused"] > count // 20, ends
    print(f"{name}: {ends}")


def test_a_few_damaged_files(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, FEW, seed=True)


@pytest.mark.stress
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, MANY, seed=False)
