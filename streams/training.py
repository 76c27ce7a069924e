"""The training images of a stream's source model, where a folder holds them."""

from __future__ import annotations

from pathlib import Path

from streams.clean import CleanImages
from streams.scan import scan


def find_training_images(stream: str, folder: Path) -> CleanImages | None:
    """The training images that belong to a stream's test images.

    Args:
        stream: A name of ``streams.list_streams()``.
        folder: Where to look: the layouts in which the test images are read.

    Returns:
        The images; ``None`` if they are not below the folder, or this kind of stream has none.

    Raises:
        StreamError: If they are damaged, or there is no such stream.
    """
    find = getattr(scan("streams.sources", "stream").load(stream), "training_images", None)
    made: CleanImages | None = None if find is None else find(folder)
    return made
