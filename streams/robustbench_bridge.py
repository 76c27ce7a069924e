"""The one module that touches robustbench: its data files, and its models on demand.

RobustBench (Croce et al.: RobustBench: a standardized adversarial robustness benchmark, 2020,
arXiv:2010.09670) publishes the class map and the list of 5,000 ImageNet images that many results
refer to. Both are read as files, without importing its code. Its ImageNet loaders are not used:
they number the classes by the folders that happen to exist, and the 5,000 images cover only 997
of the 1,000 classes, so a folder with just these images gives shifted labels.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import types
import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.errors import StreamError

if TYPE_CHECKING:
    from torch import nn

CLASS_MAP_SHA256 = "b1c9c3a901b0910ac844cabe252e7fe4b29b2660a4fbc448cb82f4e7e122b2d5"
IMAGE_LIST_SHA256 = "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_THREAT_MODEL = "corruptions"


@contextlib.contextmanager
def robustbench_environment() -> Iterator[None]:
    """Let ``import robustbench`` succeed inside the block, and leave no trace in ``sys.modules``.

    robustbench 1.1.1 imports ``autoattack``, whose only release on the package index is called
    ``pyautoattack``, and ``pkg_resources``, which setuptools 82 dropped. Both names are lent for
    the duration of the block where they do not exist.

    Raises:
        StreamError: If robustbench is not installed.
    """
    _package_folder()
    lent: list[str] = []

    def lend(name: str, module: types.ModuleType) -> None:
        sys.modules[name] = module
        lent.append(name)

    if _absent("autoattack") and not _absent("pyautoattack"):
        lend("autoattack", importlib.import_module("pyautoattack"))
        lend("autoattack.state", importlib.import_module("pyautoattack.state"))
    if _absent("pkg_resources"):
        lend("pkg_resources", _resource_stub())
    try:
        with warnings.catch_warnings():
            # Its model files import timm under old names, which warn.
            warnings.filterwarnings("ignore", message=".*timm.*")
            warnings.filterwarnings("ignore", message=".*deprecated.*")
            yield
    finally:
        for name in lent:
            sys.modules.pop(name, None)


def imagenet_class_to_id() -> dict[str, int]:
    """Class index of every ImageNet wnid (``"n01440764"`` -> 0), all 1,000 of them.

    Raises:
        StreamError: If robustbench is not installed or its file is not the published one.
    """
    text = _read_helper("imagenet_class_to_id_map.json", CLASS_MAP_SHA256)
    content: dict[str, Any] = json.loads(text)
    return {wnid: int(index) for wnid, index in content.items()}


def imagenet_5k_list() -> list[str]:
    """RobustBench's 5,000 ImageNet validation images, ``"<wnid>/ILSVRC2012_val_<n>.JPEG"``.

    Returns:
        The paths in the published (random) order.

    Raises:
        StreamError: If robustbench is not installed or its file is not the published one.
    """
    return _read_helper("imagenet_test_image_ids.txt", IMAGE_LIST_SHA256).split()


def list_zoo_models(dataset: str) -> list[str]:
    """Names of the zoo's models against corruptions, sorted; imports robustbench.

    Args:
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.

    Raises:
        StreamError: If robustbench is not installed or has no such data set.
    """
    return sorted(_zoo(dataset))


def build_zoo_model(name: str, dataset: str) -> nn.Module:
    """Build a zoo architecture without downloading weights.

    Args:
        name: Name in the zoo, e.g. ``"Standard"``.
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.

    Returns:
        The model with its own normalisation inside; takes images in [0, 1].

    Raises:
        StreamError: If robustbench or the model does not exist, or building needs a download.
    """
    entry = _entry(name, dataset)
    try:
        with robustbench_environment():
            model: nn.Module = entry["model"]()
    except Exception as error:  # torchvision models of the zoo download inside their builder
        raise StreamError(
            f"robustbench:{name}@{dataset} cannot be built ({_one_line(error)}); "
            "its builder downloads weights: use it with a network, or a timm: or torchvision: name"
        ) from None
    return model


def load_zoo_model(name: str, dataset: str, model_dir: Path) -> nn.Module:
    """Load a zoo model for corruptions, downloading its weights unless they are there.

    Args:
        name: Name in the zoo, e.g. ``"Standard"``.
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.
        model_dir: Folder of ``<dataset>/corruptions/<name>.pt``.

    Returns:
        The model in eval mode with its own normalisation inside; takes images in [0, 1].

    Raises:
        StreamError: If robustbench or the model does not exist, or the weights can be neither
            found, downloaded nor read.
    """
    _entry(name, dataset)
    file = Path(model_dir) / dataset / _THREAT_MODEL / f"{name}.pt"
    present = file.is_file()
    try:
        with robustbench_environment(), _quiet():
            utils = importlib.import_module("robustbench.utils")
            model: nn.Module = utils.load_model(
                name, model_dir=str(model_dir), dataset=dataset, threat_model=_THREAT_MODEL
            )
    except Exception as error:  # gdown, requests, pickle and torch each have their own
        problem = "cannot be read" if present else "cannot be downloaded"
        raise StreamError(
            f"robustbench:{name}@{dataset}: {file.name} {problem} ({_one_line(error)}); fetch it "
            "from RobustBench's model zoo in a browser (a web page saved as .pt is the usual "
            "fault) and give the file as the checkpoint"
        ) from None
    return model.eval()


def _entry(name: str, dataset: str) -> dict[str, Any]:
    zoo = _zoo(dataset)
    if name not in zoo:
        near = get_close_matches(name, list(zoo), n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise StreamError(
            f"robustbench has no model {name!r} against corruptions on {dataset}{hint}; "
            f"it has: {', '.join(sorted(zoo))}"
        )
    entry: dict[str, Any] = zoo[name]
    return entry


def _zoo(dataset: str) -> dict[str, Any]:
    if dataset not in NUM_CLASSES:
        near = get_close_matches(dataset, list(NUM_CLASSES), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise StreamError(
            f"robustbench has no data set {dataset!r}{hint}; write one of {', '.join(NUM_CLASSES)}"
        )
    try:
        with robustbench_environment():
            models = importlib.import_module("robustbench.model_zoo").model_dicts
            data = importlib.import_module("robustbench.model_zoo.enums")
    except ImportError as error:
        raise StreamError(
            f"robustbench cannot be imported ({_one_line(error)}); "
            "install its requirements with 'pip install robustbench'"
        ) from None
    zoo: dict[str, Any] = dict(
        models[data.BenchmarkDataset(dataset)][data.ThreatModel(_THREAT_MODEL)]
    )
    return zoo


def _read_helper(name: str, sha256: str) -> str:
    path = _package_folder() / "helper_files" / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StreamError(
            f"robustbench has no file {name} ({error.strerror}); install robustbench 1.1.1 again"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise StreamError(
            f"robustbench's {name} is not the published file (sha256 {found[:16]}, expected "
            f"{sha256[:16]}); install robustbench 1.1.1 again"
        )
    return data.decode("utf-8")


def _package_folder() -> Path:
    # Finding a top-level package runs none of its code.
    spec = importlib.util.find_spec("robustbench")
    if spec is None or not spec.submodule_search_locations:
        raise StreamError("robustbench is not installed; install it with 'pip install robustbench'")
    return Path(next(iter(spec.submodule_search_locations)))


def _absent(name: str) -> bool:
    return name not in sys.modules and importlib.util.find_spec(name) is None


def _resource_stub() -> types.ModuleType:
    """The one function of ``pkg_resources`` that robustbench calls."""

    def resource_filename(module: str, relative: str) -> str:
        return str(Path(str(sys.modules[module].__file__)).parent / relative)

    stub = types.ModuleType("pkg_resources")
    vars(stub)["resource_filename"] = resource_filename
    return stub


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the download notes that robustbench prints off standard output."""
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
        yield


def _one_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0][:120]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
