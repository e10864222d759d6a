"""What a measurement belongs to: device, versions, threads."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import stripefold


def describe_environment(device: torch.device) -> dict[str, str | int]:
    """Return device, versions and threads as plain values for a result file."""
    return {
        "device": _device_name(device),
        "torch": torch.__version__,
        "stripefold": stripefold.__version__,  # also where it runs from its source folder
        "timm": _version("timm"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if device.type == "cpu" and information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or device.type
