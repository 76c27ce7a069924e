"""The 1,000 classes of ImageNet and the subsets that published test sets have."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from streams.errors import StreamError
from streams.folders import FolderImages, find_folder, open_class_folders
from streams.robustbench_bridge import imagenet_class_to_id

WHAT = "ImageNet's 1,000 classes"


def subset(list_name: str) -> dict[str, int]:
    """Class folders of a published subset, each with its index among the 1,000.

    The lists are read from timm's data files, not from the folders that happen to exist: a part of
    an archive must not number the classes anew.

    Args:
        list_name: ``"imagenet_r"`` or ``"imagenet_a"``.

    Raises:
        StreamError: If timm is not installed or has no such list.
    """
    # Finding a top-level package runs none of its code.
    spec = importlib.util.find_spec("timm")
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        path = Path(folder) / "data" / "_info" / f"{list_name}_synsets.txt"
        if path.is_file():
            ids = imagenet_class_to_id()
            return {wnid: ids[wnid] for wnid in path.read_text("utf-8").split()}
    raise StreamError(f"timm has no class list {list_name}; install it with 'pip install timm'")


def open_subset(
    name: str, base: Path, folders: tuple[str, ...], *, list_name: str | None, wanted: str
) -> FolderImages:
    """Open a test set of wnid folders below ``base``.

    Args:
        name: Name of the stream.
        base: The data folder.
        folders: Names that the archive's folder may have.
        list_name: The subset's list of classes; ``None`` for all 1,000.
        wanted: Files, origin and size, for the message where it is missing.

    Raises:
        StreamError: If the folders are missing or damaged.
    """
    ids = imagenet_class_to_id()
    chosen = ids if list_name is None else subset(list_name)
    root = find_folder(base, folders, ids)
    if root is None:
        raise StreamError(
            f"no {name} in {base}: put there {wanted}; --data-dir names another folder"
        )
    class_ids = tuple(sorted(chosen.values()))
    labels = {wnid: class_ids.index(index) for wnid, index in chosen.items()}
    what = WHAT if list_name is None else f"the {len(chosen)} classes of {name}"
    return open_class_folders(name, root, labels, what, class_ids=class_ids)
