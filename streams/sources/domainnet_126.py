"""DomainNet-126: real photographs, clipart, paintings and sketches of 126 objects.

Peng et al.: Moment matching for multi-source domain adaptation, 2018, arXiv:1812.01754; the 126
classes are those of Saito et al.: Semi-supervised domain adaptation via minimax entropy, 2019,
arXiv:1904.06487.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streams.errors import StreamError
from streams.folders import FolderImages
from streams.readers.class_folders import interleaved
from streams.readers.label_list import read_pairs

NUM_CLASSES = 126
DOMAINS = ("real", "clipart", "painting", "sketch")
_NAMES = ("domainnet-126", "DomainNet-126", "domainnet126", "domainnet")


def open_source(data_dir: Path | None = None) -> FolderImages:
    """Open the domains and lists below ``data_dir`` (``data`` by default).

    Domains that have no list are left out.

    Raises:
        StreamError: If no list is there, or a list is damaged, contradicts another one, or names
            files of a domain that has no folder.
    """
    base = data_dir or Path("data")
    root = next((r for r in (*(base / n for n in _NAMES), base) if _lists(r)), None)
    if root is None:
        raise StreamError(
            f"no domainnet-126 in {base}: put there domainnet-126/<domain>/<class>/*.jpg (real.zip "
            "5.6 GB, clipart.zip 1.2 GB, painting.zip 3.4 GB, sketch.zip 2.5 GB of "
            "ai.bu.edu/M3SDA, cleaned version) and domainnet-126/<domain>_list.txt with lines "
            "'path label' (the lists of the 126 classes, 145,145 images, come with AdaContrast's "
            "code); --data-dir names another folder"
        )
    files: list[str] = []
    labels: list[int] = []
    parts = {}
    seen: dict[str, tuple[int, str]] = {}
    for domain, path in _lists(root).items():
        pairs = read_pairs(path, NUM_CLASSES)
        _check(root, path, pairs, seen)
        pairs = interleaved(pairs)
        parts[domain] = np.arange(len(files), len(files) + len(pairs))
        files += [name for name, _ in pairs]
        labels += [label for _, label in pairs]
    return FolderImages(
        name="domainnet-126",
        root=root,
        files=tuple(files),
        labels=np.array(labels, dtype=np.int64),
        num_classes=NUM_CLASSES,
        parts=parts,
    )


def _lists(root: Path) -> dict[str, Path]:
    paths = {domain: root / f"{domain}_list.txt" for domain in DOMAINS}
    return {domain: path for domain, path in paths.items() if path.is_file()}


def _check(
    root: Path, path: Path, pairs: list[tuple[str, int]], seen: dict[str, tuple[int, str]]
) -> None:
    """One class name, one label, in all lists; and the first file is where the list says."""
    for name, label in pairs:
        folder = Path(name).parent.name
        before, where = seen.setdefault(folder, (label, path.name))
        if before != label:
            raise StreamError(
                f"{path}: class {folder} has label {label}, but {before} in {where}; "
                "the lists do not belong together, fetch them again"
            )
    first = root / pairs[0][0]
    if not first.is_file():
        raise StreamError(
            f"{first} is missing, the first image of {path.name}; unpack the domain's archive "
            f"into {root}"
        )
