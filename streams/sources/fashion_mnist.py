"""Fashion-MNIST test images (embedded, 10,000), clean, one domain.

Xiao, Rasul, Vollgraf: Fashion-MNIST, 2017, arXiv:1708.07747 (MIT licence, beside the data).
"""

from __future__ import annotations

from pathlib import Path

from streams.single import CleanSource
from streams.sources import fashion_mnist_c

training_images = fashion_mnist_c.training_images


def open_source(data_dir: Path | None = None) -> CleanSource:
    """The embedded images; ``data_dir`` is not needed and not read."""
    return CleanSource(clean=fashion_mnist_c.open_source().clean)
