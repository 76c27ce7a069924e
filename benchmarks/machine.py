"""What a result records of the machine and the packages: clock, device, memory, versions."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.errors import UsageError

_PACKAGES = {"tta_bench": "tta-bench", "torch": "torch", "timm": "timm", "numpy": "numpy"}


def check_device(device: str) -> None:
    """Raise ``UsageError`` if torch has no such device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} is not available on this machine") from error


def package_version(package: str) -> str:
    """Version of an installed distribution; ``unknown`` where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """``version_*`` columns of a result."""
    made = {f"version_{name}": package_version(package) for name, package in _PACKAGES.items()}
    return {**made, "version_python": platform.python_version()}


@contextmanager
def threads_kept() -> Iterator[None]:
    """Give torch its number of threads back: a run that goes on sets the one that it began with."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def now(device: str) -> float:
    """Seconds, once the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name(device: str) -> str:
    """The device, by its product name on CUDA."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def peak_memory(device: str) -> float:
    """Peak memory in MiB: the allocator's on CUDA, else the process's resident size."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
