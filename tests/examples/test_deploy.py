"""The deploy example runs, small."""

from __future__ import annotations

import pytest

from examples import deploy


@pytest.mark.slow
def test_deploy(capsys: pytest.CaptureFixture[str]) -> None:
    deploy.main(epochs=1, limit=128)
    printed = capsys.readouterr().out
    for words in ("onnx, fused", "calibrated on 128 images", "times as coarsely", "int8 "):
        assert words in printed
