"""Reads weight files without running code from them, and says plainly why one does not fit.

A pickled checkpoint is a program. Only tensors and plain containers are accepted
(``torch.load(weights_only=True)``); a file that wants more is refused, never loaded in full.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from tta.errors import BackboneError

_PICKLED = (".pt", ".pth", ".th", ".bin", ".tar")
_ENVELOPES = ("state_dict", "model", "model_state_dict")
# DataParallel and torch.compile put these in front of every key.
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 3
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file onto the CPU.

    Args:
        path: A ``.safetensors`` file, or a torch file (``.pt``, ``.pth``, ``.th``, ``.bin``,
            ``.tar``). The tensors may lie under ``state_dict``, ``model`` or
            ``model_state_dict``, with the prefixes ``module.`` or ``_orig_mod.``.

    Returns:
        Parameter name -> tensor, in the order of the file.

    Raises:
        BackboneError: If the file is missing, empty, damaged, of another kind, holds no tensors,
            or could only be read by running code from it.
    """
    path = Path(path)
    head = check_file(path)
    if path.suffix == ".safetensors":
        return _strip_prefixes(_read_safetensors(path))
    if path.suffix not in _PICKLED:
        raise BackboneError(
            f"{path}: cannot tell what {path.suffix or 'a file without extension'} holds; "
            f"weights end in .safetensors or one of {', '.join(_PICKLED)}"
        )
    return _strip_prefixes(_unwrap(_read_pickled(path, head), path))


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], *, model_name: str, file_name: str
) -> None:
    """Copy ``state`` into ``model``; every tensor must have its place.

    Only BatchNorm's ``num_batches_tracked`` may be absent: old checkpoints do not have it, and
    nothing computes with it at inference.

    Args:
        model: The model to fill.
        state: Parameter name -> tensor.
        model_name: Name of the model in messages.
        file_name: Name of the file in messages.

    Raises:
        BackboneError: If names or shapes differ, or a weight is NaN or infinite.
    """
    problems = mismatches(model, state)
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise BackboneError(
            f"{file_name} does not fit {model_name}: {shown}{more}; "
            "check that the file belongs to this model and number of classes"
        )
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BackboneError(
                f"{file_name}: {name!r} holds NaN or infinite values; use an intact checkpoint"
            )
    model.load_state_dict(dict(state), strict=False)


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``state`` from fitting ``model``, one phrase a key; empty if it fits."""
    own = model.state_dict()
    shapes = [
        f"{name!r} is {tuple(state[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    missing = [
        f"{name!r} {tuple(value.shape)} is missing"
        for name, value in own.items()
        if name not in state and not name.endswith("num_batches_tracked")
    ]
    unknown = [
        f"{name!r} {tuple(value.shape)} is not in the model"
        for name, value in state.items()
        if name not in own
    ]
    return shapes + missing + unknown


def check_file(path: Path) -> bytes:
    """The first bytes of a weight file.

    Raises:
        BackboneError: If it is missing, empty, or a web page or pointer in its place.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise BackboneError(f"{path}: {kind}; give the path of a weight file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise BackboneError(f"{path}: the file is empty; download it again")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise BackboneError(
            f"{path}: this is a web page saved as weights (an error or consent page of the "
            "download site); download the file itself in a browser and place it here"
        )
    if text.startswith(b"version https://git-lfs"):
        raise BackboneError(f"{path}: this is a Git LFS pointer; run 'git lfs pull' to fetch it")
    return head


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise BackboneError(
            f"{path}: truncated or not a safetensors file ({_first_line(error)}); download it again"
        ) from None
    return state


def _read_pickled(path: Path, head: bytes) -> object:
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols that it then reads or refuses; the outcome says it.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse(path, head, error)
    except Exception as error:  # a damaged zip archive or pickle raises nearly anything
        _damaged(path, error)


def _refuse(path: Path, head: bytes, error: Exception) -> NoReturn:
    wanted = _REFUSED.search(str(error))
    if wanted is None and not head.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        _damaged(path, ValueError(f"it starts with {head[:8]!r}"))
    what = f"object {wanted.group(1)!r}" if wanted else "objects other than tensors"
    raise BackboneError(
        f"{path}: refused, reading {what} would run code from the file; save its state_dict alone "
        "(tensors only), best as .safetensors"
    ) from None


def _damaged(path: Path, error: Exception) -> NoReturn:
    raise BackboneError(
        f"{path}: truncated or not a torch weight file ({_first_line(error)}); download it again"
    ) from None


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 100 else f"{line[:97]}..."


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    for _ in _ENVELOPES:
        if not isinstance(content, Mapping):
            break
        inner = next(
            (content[key] for key in _ENVELOPES if isinstance(content.get(key), Mapping)), None
        )
        if inner is None:
            break
        content = inner
    items: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
    tensors = {str(key): value for key, value in items.items() if isinstance(value, Tensor)}
    if not tensors:
        found = ", ".join(repr(str(key)) for key in list(items)[:_SHOWN])
        raise BackboneError(
            f"{path}: holds no tensors ({found or type(content).__name__}); expected a state_dict, "
            f"plain or under one of {', '.join(_ENVELOPES)}"
        )
    return tensors


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while state:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
