"""ImageNet-C: the official folders ImageNet-C/<corruption>/<severity>/<wnid>/*.JPEG.

Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and
perturbations, 2019, arXiv:1903.12261. Labels come from RobustBench's map of the 1,000 classes, not
from the folders that happen to exist.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streams.errors import StreamError
from streams.types import Domain, Ints, Provenance

if TYPE_CHECKING:
    from torch import Tensor

NUM_CLASSES = 1000
SIDE = 224


@dataclass(frozen=True, kw_only=True)
class ImageNetC:
    """Official images, 224x224, read as they are.

    Attributes:
        root: The folder of corruptions.
        files: ``<wnid>/<file>`` of each image, sorted by file name, hence mixed in class.
        labels: Class of each image.
    """

    root: Path
    files: tuple[str, ...]
    labels: Ints
    name: str = "ImageNet-C"
    num_classes: int = NUM_CLASSES

    @property
    def provenance(self) -> Provenance:
        """The official archive, identified by its list of files."""
        detail = {"files": f"{self.root.name}, {len(self.files)} an image set"}
        return Provenance(kind="official", detail=detail | {"list": self.digest[:16]})

    @cached_property
    def digest(self) -> str:
        """Hash of the list of files."""
        return hashlib.sha256("\n".join(self.files).encode()).hexdigest()

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for a corruption and severity without a folder."""
        folder = self._folder(domain)
        if not folder.is_dir():
            raise StreamError(f"{folder} is missing: ImageNet-C has no {domain.name} there")

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, 3, 224, 224)`` uint8.

        Raises:
            StreamError: For an image that is missing, does not decode or has another size.
        """
        import torch
        from PIL import Image, UnidentifiedImageError

        out = np.empty((len(positions), SIDE, SIDE, 3), dtype=np.uint8)
        for row, position in enumerate(positions):
            path = self._folder(domain) / self.files[position]
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
                raise StreamError(f"{path} does not decode ({error}); unpack it again") from error
            if pixels.shape != (SIDE, SIDE, 3):
                raise StreamError(f"{path} is {pixels.shape[:2]}, expected {SIDE}x{SIDE}")
            out[row] = pixels
        return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()

    def _folder(self, domain: Domain) -> Path:
        return self.root / domain.corruption / str(domain.severity)


def open_source(data_dir: Path | None = None) -> ImageNetC:
    """Open ImageNet-C below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If it is not there (says what is expected, from where, how large), or holds a
            class folder that is not one of the 1,000.
    """
    from streams.robustbench_bridge import imagenet_class_to_id

    base = data_dir or Path("data")
    root = base / "ImageNet-C" if (base / "ImageNet-C").is_dir() else base
    lists = sorted(root.glob("*/[1-5]"))
    if not lists:
        raise StreamError(
            f"no ImageNet-C in {base}: put there ImageNet-C/<corruption>/<severity>/<wnid>/*.JPEG "
            "(Zenodo record 2235448: noise.tar, blur.tar, weather.tar, digital.tar, 48 GB; unpack "
            "them into one folder); --data-dir names another folder"
        )
    classes = imagenet_class_to_id()
    found: list[tuple[str, str]] = []
    for folder in sorted(path for path in lists[0].iterdir() if path.is_dir()):
        if folder.name not in classes:
            raise StreamError(f"{folder} is not one of ImageNet's 1,000 classes")
        names = sorted(path.name for path in folder.iterdir())
        if not names:
            raise StreamError(f"{folder} is empty; unpack the archive again")
        found += [(name, folder.name) for name in names]
    if not found:
        raise StreamError(f"{lists[0]} holds no class folder; unpack the archive again")
    found.sort()
    return ImageNetC(
        root=root,
        files=tuple(f"{wnid}/{name}" for name, wnid in found),
        labels=np.array([classes[wnid] for _, wnid in found], dtype=np.int64),
    )
