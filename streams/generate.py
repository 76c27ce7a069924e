"""Corrupted sets as files, in the layout of the official arrays, marked as generated.

``<corruption>.npy`` holds ``(5 N, H, W, 3)`` uint8, severity ``s`` in the rows from ``(s - 1) N``
to ``s N``; ``labels.npy`` repeats the ``N`` labels five times (Hendrycks, Dietterich: Benchmarking
neural network robustness to common corruptions and perturbations, 2019, arXiv:1903.12261).
``clean.npy`` holds the ``N`` images themselves. The pixels are those that a stream makes on the
fly from the same images.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams import corruptions as engine
from streams.clean import CleanImages, GeneratedSource, digest_arrays
from streams.errors import StreamError
from streams.fetch import Progress, alone, hashes
from streams.jsonfiles import read_json, write_json
from streams.provenance import MARKER, read_marker
from streams.transfer import check_space, out_of_space
from streams.types import CLEAN, Domain

SEVERITIES = 5
_BATCH = 500
CLEAN_SETS = ("fashion-mnist", "cifar10", "cifar100")


def generate(
    clean_name: str,
    folder: Path,
    *,
    data_dir: Path = Path("data"),
    corruptions: Sequence[str] = engine.CORRUPTIONS,
    num_examples: int | None = None,
    seed: int = 0,
    watch: Callable[[str], Progress] | None = None,
) -> dict[str, Any]:
    """Write a corrupted set; the same call after a kill goes on with the next corruption.

    Args:
        clean_name: One of ``CLEAN_SETS``; ``fashion-mnist`` is embedded, the others are the
            test split, as parquet or python batches, below ``data_dir``.
        folder: Where to; new, empty, or an unfinished set of the same images, seed and generator.
        data_dir: Folder of all data.
        corruptions: Names.
        num_examples: First images; all by default.
        seed: Seed of the corruptions (0 is what streams use).
        watch: Gets a title, gives back the function to tell the progress to.

    Returns:
        The content of ``provenance.json``.

    Raises:
        StreamError: For a wrong name or number, missing images, a folder that holds something
            else, or a full disk.
    """
    from streams.corruptions.registry import find

    for name in corruptions:
        find(name)
    if not corruptions:
        raise StreamError("no corruption is named: name at least one")
    if seed < 0:
        raise StreamError(f"seed={seed} must be 0 or more")
    source = GeneratedSource(clean=_open_clean(clean_name, data_dir), corruption_seed=seed)
    total = len(source.labels)
    count = total if num_examples is None else num_examples
    if not 1 <= count <= total:
        raise StreamError(f"num_examples={count} is out of range: {clean_name} has {total} images")
    facts = _facts(source, count)
    marker = folder / MARKER
    _check_folder(folder, facts)
    watch = watch or (lambda title: lambda done, total: None)
    try:
        with alone(marker, 12 * 3600.0):
            _check_folder(folder, facts)  # again: another process may have begun meanwhile
            if not marker.is_file():
                # Before the first array: an unfinished set is marked too.
                write_json(marker, {**facts, "files": {}})
            files = dict(read_json(marker).get("files", {}))
            for name, parts in _files(source, count, corruptions):
                if name in files and (folder / name).is_file():
                    continue
                files[name] = _write(folder / name, parts(), watch(name))
                write_json(marker, {**facts, "files": files})
    except OSError as error:
        raise out_of_space(error, folder) from error
    return read_json(marker)


Arrays = Iterator[tuple[NDArray[np.uint8], int]]


def _files(
    source: GeneratedSource, count: int, corruptions: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    """Each file with the function that yields its pieces and the rows of the whole."""
    labels = source.labels[:count].astype(np.uint8)  # as the official file stores them

    def repeated() -> Arrays:
        yield np.tile(labels, SEVERITIES), SEVERITIES * count

    def images(domains: list[Domain]) -> Arrays:
        for domain in domains:
            for first in range(0, count, _BATCH):
                positions = np.arange(first, min(first + _BATCH, count))
                pixels = source.images(positions, domain).permute(0, 2, 3, 1).contiguous()
                yield pixels.numpy(), len(domains) * count

    yield "labels.npy", repeated
    yield "clean.npy", lambda: images([CLEAN])
    for name in dict.fromkeys(corruptions):
        domains = [
            Domain(name=name, corruption=name, severity=severity)
            for severity in range(1, SEVERITIES + 1)
        ]
        yield f"{name}.npy", lambda domains=domains: images(domains)  # type: ignore[misc]


def _write(path: Path, parts: Arrays, progress: Progress) -> str:
    """Write one array atomically; its SHA-256.

    Plain writes, as a memory map on a full disk kills the process.
    """
    # One name, as the folder is locked: what a killed run left is overwritten.
    temporary = path.with_name(f".{path.name}.unfinished")
    done = 0
    try:
        with temporary.open("wb") as file:
            for part, rows in parts:
                if not done:
                    check_space(path.parent, rows * part[0].nbytes)
                    shape = (rows, *part.shape[1:])
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(part.tobytes())
                done += len(part)
                progress(done, rows)
            file.flush()
            os.fsync(file.fileno())
        digest = hashes(temporary)[1]
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def _facts(source: GeneratedSource, count: int) -> dict[str, Any]:
    labels = source.labels[:count]
    return {
        "kind": "generated",
        "note": "made by tta-bench, not the official archive: keep the results apart",
        **source.provenance.detail,
        "frost_sha256": engine.frost_digest(),
        "clean_digest": source.clean.digest,
        "labels_digest": digest_arrays(labels),
        "classes": source.num_classes,
        "images": count,
        "severities": SEVERITIES,
    }


def _check_folder(folder: Path, facts: dict[str, Any]) -> None:
    """Refuse a folder that holds anything but an unfinished set of the same facts."""
    if read_marker(folder) is None:
        held = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        if set(held) - {f".{MARKER}.lock"}:
            raise StreamError(f"{folder} is not empty and not a generated set: name another --out")
        return
    there = read_json(folder / MARKER)
    for key, value in facts.items():
        if there.get(key) != value:
            raise StreamError(
                f"{folder} holds another set: {key} is {there.get(key)!r} there and {value!r} "
                "here; name another --out"
            )


def _open_clean(name: str, data_dir: Path) -> CleanImages:
    if name == "fashion-mnist":
        from streams.sources.fashion_mnist_c import open_source

        return open_source().clean
    if name not in CLEAN_SETS:
        near = difflib.get_close_matches(name, CLEAN_SETS, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise StreamError(
            f"cannot generate from {name!r}{hint}; clean images are {', '.join(CLEAN_SETS)}"
        )
    from streams.cifar import CIFAR10, CIFAR100

    clean = (CIFAR10 if name == "cifar10" else CIFAR100).find_clean(data_dir)
    if clean is None:
        raise StreamError(
            f"no {name} in {data_dir}: fetch it with 'tta-bench data fetch {name}', or --data-dir "
            "names another folder"
        )
    return clean
