"""Speed of the corruptions at 224x224 beside public packages, interleaved in one process.

Run ``python -m benchmarks.corruption_speed --json OUT``. Of the packages ``corrupt-tta``,
``imgcorr`` and ``imagecorruptions`` (or ``imagecorruptions-imaug``) those that are installed take
part; none is needed. The original generator is not installable, so its time is the recorded one.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.files import write_json
from streams.corruptions import CORRUPTIONS, corrupt, frost_source

SIDE = 224
ORIGINAL_MS: Mapping[str, float] = {
    "gaussian_noise": 3.352,
    "shot_noise": 8.082,
    "impulse_noise": 1.558,
    "defocus_blur": 1.934,
    "glass_blur": 600.694,
    "motion_blur": 59.804,
    "zoom_blur": 67.416,
    "snow": 35.128,
    "frost": 7.766,
    "fog": 1.714,
    "brightness": 12.780,
    "contrast": 1.548,
    "elastic_transform": 29.488,
    "pixelate": 0.464,
    "jpeg_compression": 0.398,
}
"""Processor milliseconds an image of the original generator, mean over the severities."""

_Peer = Callable[[NDArray[np.uint8], str, int], Any]
# Distribution, module. Two distributions install the third module; the last installed wins.
_PEERS = (
    ("corrupt-tta", "corrupt_tta"),
    ("imgcorr", "imgcorr"),
    ("imagecorruptions-imaug", "imagecorruptions"),
    ("imagecorruptions", "imagecorruptions"),
)


def pictures(count: int) -> NDArray[np.uint8]:
    """Images uint8 ``(N, 224, 224, 3)`` with the falling spectrum of photographs."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(generator.standard_normal((count, 3, SIDE, SIDE)))
    shared = noise + 2 * noise[:, :1]  # the channels of a photograph go together
    values = np.fft.irfft2(shared * frequency**-1.2, (SIDE, SIDE))
    values *= 60 / values.std(axis=(1, 2, 3), keepdims=True)
    levels = np.clip(values + 115, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def find_peers() -> dict[str, _Peer]:
    """The installed packages by name and version."""
    found: dict[str, _Peer] = {}
    modules: set[str] = set()
    for distribution, module in _PEERS:
        try:
            version = metadata.version(distribution)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pkg_resources, which they import
                function = import_module(module).corrupt
        except (metadata.PackageNotFoundError, ImportError, AttributeError):
            continue
        if module not in modules:
            modules.add(module)
            found[f"{distribution} {version}"] = _peer(function)
    return found


def _peer(function: Callable[..., Any]) -> _Peer:
    def call(image: NDArray[np.uint8], name: str, severity: int) -> Any:
        return function(image, severity=severity, corruption_name=name)

    return call


def time_ours(images: Tensor, name: str, severity: int, threads: int | None) -> float:
    """Milliseconds an image."""
    start = time.perf_counter()
    corrupt(images, name, severity, ids=range(len(images)), profile="imagenet", threads=threads)
    return 1000 * (time.perf_counter() - start) / len(images)


def time_peer(peer: _Peer, images: NDArray[np.uint8], name: str, severity: int) -> float | None:
    """Milliseconds an image, None where the package fails."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for image in images:
                peer(image, name, severity)
    except Exception:
        return None
    return 1000 * (time.perf_counter() - start) / len(images)


def measure(
    name: str, severities: Sequence[int], peers: Mapping[str, _Peer], options: argparse.Namespace
) -> dict[str, Any]:
    """Medians of one corruption: ours, each package, and the ratios to the fastest."""
    images = pictures(options.batch)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    ours: dict[int, float] = {}
    others: dict[str, dict[int, float | None]] = {peer: {} for peer in peers}
    for severity in severities:
        for key, peer in peers.items():  # warm-up, which also finds what fails
            others[key][severity] = time_peer(peer, images[:1], name, severity)
        time_ours(tensor[:2], name, severity, options.threads)
        times: dict[str, list[float]] = {"": []}
        for _ in range(options.repeats):
            times[""].append(time_ours(tensor, name, severity, options.threads))
            for key, peer in peers.items():
                if others[key][severity] is not None:
                    value = time_peer(peer, images[: options.peer_images], name, severity)
                    times.setdefault(key, []).append(value or 0.0)
        ours[severity] = median(times.pop(""))
        for key, values in times.items():
            others[key][severity] = median(values)
    fastest = [
        min((value[s] or np.inf for value in others.values()), default=np.inf) for s in severities
    ]
    mean_ours = sum(ours.values()) / len(ours)
    ratio = sum(fastest) / sum(ours.values())
    return {
        "corruption": name,
        "ours_ms": mean_ours,
        "packages_ms": {key: _mean(value.values()) for key, value in others.items()},
        "ratio_to_fastest": ratio if np.isfinite(ratio) else None,
        "original_ms": ORIGINAL_MS[name],
        "ratio_to_original": ORIGINAL_MS[name] / mean_ours,
    }


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of positive values."""
    return exp(sum(log(value) for value in values) / len(values))


def extra_memory_mib(name: str, batch: int, threads: int | None) -> float | None:
    """Growth of the peak memory of the process by one batch; None where nobody counts it."""
    try:
        import resource
    except ImportError:
        return None
    tensor = torch.from_numpy(pictures(8).transpose(0, 3, 1, 2).copy()).repeat(batch // 8, 1, 1, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    corrupt(tensor, name, 5, ids=range(len(tensor)), profile="imagenet", threads=threads)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--batch", type=int, default=32, help="images a call, ours")
    parser.add_argument("--peer-images", type=int, default=4, help="images a round, the packages")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--threads", type=int, default=2, help="threads, ours")
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5], choices=range(1, 6))
    parser.add_argument("--corruptions", nargs="+", default=list(CORRUPTIONS), choices=CORRUPTIONS)
    options = parser.parse_args(arguments)
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"--json must name a file in a folder that exists, got {options.json}")
    torch.set_num_threads(1)

    memory = [extra_memory_mib(name, 64, options.threads) for name in options.corruptions]
    counted = [value for value in memory if value is not None]
    peers = find_peers()
    _say(f"packages: {', '.join(peers) or 'none installed'}; frost: {frost_source()}")
    _say(f"ms an image at {SIDE}x{SIDE}, batch {options.batch}, {options.threads} threads")
    _say(f"{'corruption':<20}{'ours':>8}{'fastest':>10}{'ratio':>8}{'original':>10}{'ratio':>8}")
    rows = []
    for name in options.corruptions:
        row = measure(name, options.severities, peers, options)
        rows.append(row)
        ratio = row["ratio_to_fastest"]
        known = f"{row['ours_ms'] * ratio:>10.2f}{ratio:>8.2f}" if ratio else f"{'-':>10}{'-':>8}"
        _say(
            f"{name:<20}{row['ours_ms']:>8.2f}{known}"
            f"{row['original_ms']:>10.2f}{row['ratio_to_original']:>8.2f}"
        )
    ratios = [row["ratio_to_fastest"] for row in rows if row["ratio_to_fastest"]]
    originals = [row["ratio_to_original"] for row in rows]
    summary = {
        "packages": list(peers),
        "threads": options.threads,
        "batch": options.batch,
        "severities": options.severities,
        "geometric_mean_to_fastest": geometric_mean(ratios) if ratios else None,
        "lowest_ratio_to_fastest": min(ratios, default=None),
        "geometric_mean_to_original": geometric_mean(originals),
        "extra_memory_mib_batch_64": max(counted, default=None),
        "rows": rows,
    }
    if ratios:
        _say(f"geometric mean to the fastest package {geometric_mean(ratios):.2f}, ", end="")
        _say(f"lowest {min(ratios):.2f}")
    _say(f"geometric mean to the original's recorded time {geometric_mean(originals):.2f}")
    if counted:
        _say(f"extra memory of a batch of 64: {max(counted):.0f} MiB")
    if options.json:
        write_json(options.json, summary)
    return 0


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
