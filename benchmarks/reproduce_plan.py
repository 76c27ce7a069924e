"""From a published figure to the runs that make it again, and to what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tta.published import Published

Constants = tuple[tuple[float, float, float], tuple[float, float, float]]
_IMAGENET: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: Constants = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_INSIDE: Constants = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_FASHION: Constants = ((0.286, 0.286, 0.286), (0.353, 0.353, 0.353))


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of the literature under our name.

    Attributes:
        spec: Name for ``tta.backbones.load``.
        weights: What its weights are, in words.
        constants: Mean and deviation of the figures' input normalisation.
        chosen: Whether these are not the model's own and have to be named.
        file: Pattern of the weight file, looked for in the data folder and its ``weights``.
        large: Whether a pass over a whole stream is work for a GPU.
    """

    spec: str
    weights: str
    constants: Constants
    chosen: bool = False
    file: str | None = None
    large: bool = True

    @property
    def normalisation(self) -> str:
        """What the rows of its runs say."""
        mean, std = self.constants
        return f"mean={mean} std={std}, inside the model"


_ZOO = "RobustBench's zoo (corruptions), {}"
_TIMM = "timm {}"
_VIT = "vit_base_patch16_224.{}_in21k_ft_in1k"
NETWORKS: dict[str, Network] = {
    "wrn-28-10": Network(
        spec="robustbench:Standard@cifar10",
        weights=_ZOO.format("Standard for CIFAR-10"),
        constants=_INSIDE,
        file="Standard.pt",
    ),
    "wrn-40-2-augmix": Network(
        spec="robustbench:Hendrycks2020AugMix_WRN@cifar10",
        weights=_ZOO.format("Hendrycks2020AugMix_WRN for CIFAR-10"),
        constants=_INSIDE,
        file="Hendrycks2020AugMix_WRN.pt",
    ),
    "resnext-29": Network(
        spec="robustbench:Hendrycks2020AugMix_ResNeXt@cifar100",
        weights=_ZOO.format("Hendrycks2020AugMix_ResNeXt for CIFAR-100"),
        constants=_INSIDE,
        file="Hendrycks2020AugMix_ResNeXt.pt",
    ),
    "resnet50": Network(
        spec="torchvision:resnet50@IMAGENET1K_V1",
        weights="torchvision's ResNet-50, IMAGENET1K_V1",
        constants=_IMAGENET,
        file="resnet50-*.pth",
    ),
    "resnet50-gn": Network(
        spec="timm:resnet50_gn.a1h_in1k",
        weights=_TIMM.format("resnet50_gn.a1h_in1k"),
        constants=_IMAGENET,
        file="resnet50_gn*",
    ),
    "vit-b-16-augreg": Network(
        spec=f"timm:{_VIT.format('augreg')}",
        weights=_TIMM.format(_VIT.format("augreg")),
        constants=_HALF,
        file="*augreg_in21k_ft_in1k*",
    ),
    "vit-b-16-augreg-imagenet": Network(
        spec=f"timm:{_VIT.format('augreg')}",
        weights=_TIMM.format(_VIT.format("augreg")),
        constants=_IMAGENET,
        chosen=True,
        file="*augreg_in21k_ft_in1k*",
    ),
    "vit-b-16-augreg2": Network(
        spec=f"timm:{_VIT.format('augreg2')}",
        weights=_TIMM.format(_VIT.format("augreg2")),
        constants=_HALF,
        file="*augreg2_in21k_ft_in1k*",
    ),
    "vit-b-16-augreg2-imagenet": Network(
        spec=f"timm:{_VIT.format('augreg2')}",
        weights=_TIMM.format(_VIT.format("augreg2")),
        constants=_IMAGENET,
        chosen=True,
        file="*augreg2_in21k_ft_in1k*",
    ),
    **{
        f"cifar-resnet{depth}": Network(
            spec=f"cifar-resnet{depth}",
            weights=f"{file} of akamaster/pytorch_resnet_cifar10",
            constants=_IMAGENET,
            file=file,
            large=False,
        )
        for depth, file in (
            (20, "resnet20-12fca82f.th"),
            (32, "resnet32-d509ac18.th"),
            (44, "resnet44-014dd654.th"),
        )
    },
    **{
        name: Network(spec=name, weights="shipped", constants=_FASHION, large=False)
        for name in ("fashion-resnet", "fashion-resnet-gn")
    },
}
_TEN = tuple({"order": f"cotta-{number}"} for number in range(10))
_FIVE_THOUSAND = {"source_options": {"subset": "robustbench-5k"}}
_ROUNDS = {"base": "practical", "visits": 20}
_VISITS = {
    "setting": "recurring",
    "order": "rotta",
    "batch_size": 64,
    "setting_options": _ROUNDS,
}
# Arguments of ``resolve``; several are runs whose mean the figure is.
PROTOCOLS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "clean": ({},),
    "continual": ({"setting": "continual"},),
    "continual-1000": ({"setting": "continual", "num_examples": 1000},),
    "continual-5k": ({"protocol": "imagenet-c-continual-5k-v1"},),
    "continual-5k-10-orders": tuple({"protocol": "imagenet-c-continual-5k-v1"} | o for o in _TEN),
    "gradual-10-orders": tuple(
        {"setting": "gradual", "setting_options": {"form": "cotta"}} | o for o in _TEN
    ),
    "label-shift-50k": ({"setting": "label-shift"},),
    "mixed": ({"setting": "mixed"},),
    "mixed-5k": ({"setting": "mixed"} | _FIVE_THOUSAND,),
    "practical": ({"setting": "practical"},),
    "recurring-20-visits": (_VISITS,),
    "reset": ({"setting": "reset"},),
    "reset-50k": ({"protocol": "imagenet-c-reset-50k-v1"},),
}
# What keeps a figure from being run here at all.
_IMPOSSIBLE = {
    "lifelong-50k": "a stream with the clean images after every corruption: there is none here",
    "resnet18-iabn": "NOTE's own ResNet-18, trained with IABN: no such network here",
}


def impossible(figure: Published) -> str | None:
    """What no machine has, so that the figure cannot be run."""
    return _IMPOSSIBLE.get(figure.protocol) or _IMPOSSIBLE.get(figure.backbone)


def arguments(method: str, figure: Published, *, seed: int = 0) -> list[dict[str, Any]]:
    """Arguments of ``benchmarks.resolve`` for each run that a figure takes; none if impossible."""
    if impossible(figure):
        return []
    network = NETWORKS[figure.backbone]
    made = []
    for given in PROTOCOLS[figure.protocol]:
        fields: dict[str, Any] = {"method": method, "stream": figure.stream, **given}
        if figure.protocol == "recurring-20-visits":
            fields |= _recurring(figure.stream)
        fields["backbone"] = network.spec
        if network.chosen:
            fields["mean"], fields["std"] = network.constants
        if figure.options:
            fields["options"] = dict(figure.options)
        if seed:
            fields["seed"] = seed
        made.append(fields)
    return made


def images(figure: Published) -> int:
    """Images a corruption that the figure was made with."""
    if figure.protocol == "continual-1000":
        return 1000
    if figure.stream != "imagenet-c":
        return 10_000
    return 5000 if "5k" in figure.protocol or figure.protocol.startswith("recurring") else 50_000


def _recurring(stream: str) -> dict[str, Any]:
    """PeTTA's: stronger correlation on CIFAR-100, 5,000 images of ImageNet."""
    if stream == "cifar100-c":
        return {"setting_options": {**_ROUNDS, "gamma": 0.01}}
    return dict(_FIVE_THOUSAND) if stream == "imagenet-c" else {}


def command(fields: Mapping[str, Any], data_dir: Path | None = None) -> str:
    """The command line that makes a run, with the weight file that the data folder holds."""
    words = ["tta-bench run", "-m", fields["method"], "-s", fields["stream"]]
    plain = {
        "protocol": "--protocol",
        "setting": "--setting",
        "order": "--order",
        "corruptions": "--corruptions",
        "num_examples": "--num-examples",
        "batch_size": "--batch-size",
        "backbone": "--backbone",
        "mean": "--mean",
        "std": "--std",
        "seed": "--seed",
    }
    for key, option in plain.items():
        if key in fields:
            value = fields[key]
            words += [option, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    pairs = {
        "options": "--set",
        "setting_options": "--setting-set",
        "source_options": "--source-set",
    }
    for key, option in pairs.items():
        for name, value in fields.get(key, {}).items():
            words += [
                option,
                f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}",
            ]
    if not fields["stream"].startswith("fashion"):
        words += ["--data-dir", str(data_dir or "DATA")]
    network = next(n for n in NETWORKS.values() if n.spec == fields["backbone"])
    file = weight_file(network, data_dir)
    if file is None and network.spec.startswith("cifar-"):
        file = Path("DATA", "weights", str(network.file))
    return " ".join([*words, *(["--checkpoint", str(file)] if file else [])])


def weight_file(network: Network, data_dir: Path | None) -> Path | None:
    """The weight file in the data folder or its ``weights``, where there is one."""
    if network.file is None or data_dir is None:
        return None
    found = (
        path for folder in (data_dir, data_dir / "weights") for path in folder.glob(network.file)
    )
    return min(found, default=None)


def missing(figure: Published, data_dir: Path | None, *, device: str | None = None) -> list[str]:
    """What this machine lacks for a figure; nothing is downloaded, and no image is read.

    Args:
        figure: The figure.
        data_dir: Folder of data and weight files.
        device: Device that was asked for; ``None`` asks for a GPU where the work is large.
    """
    if reason := impossible(figure):
        return [reason]
    network = NETWORKS[figure.backbone]
    lacking = []
    if not (weight_file(network, data_dir) or cached(network)):
        lacking.append(f"weights: {network.weights}")
    if problem := _data_problem(figure, data_dir):
        lacking.append(f"data: {problem}")
    if network.large and device is None and not _has_gpu():
        lacking.append("a GPU (--device cpu tries without)")
    return lacking


def cached(network: Network) -> bool:
    """Whether the weights are shipped, or lie where their library keeps what it fetched."""
    import torch

    kind, _, name = network.spec.partition(":")
    hub = Path(torch.hub.get_dir())
    if kind == "robustbench":
        zoo, _, dataset = name.partition("@")
        return (hub / "robustbench" / dataset / "corruptions" / f"{zoo}.pt").is_file()
    if kind == "torchvision":
        return network.file is not None and any((hub / "checkpoints").glob(network.file))
    if kind == "timm":
        from huggingface_hub import try_to_load_from_cache

        files = ("model.safetensors", "pytorch_model.bin")
        return any(isinstance(try_to_load_from_cache(f"timm/{name}", file), str) for file in files)
    return network.file is None


def _data_problem(figure: Published, data_dir: Path | None) -> str:
    from benchmarks.protocols import protocols
    from streams.errors import StreamError
    from streams.factory import open_stream_source

    given = PROTOCOLS[figure.protocol][0]
    frozen = protocols().get(given.get("protocol", ""))
    options = frozen.source_options if frozen else given.get("source_options", {})
    try:
        held = len(open_stream_source(figure.stream, data_dir, options).labels)
    except StreamError as error:
        return str(error).partition("; --data-dir")[0]
    asked = images(figure)
    return "" if held >= asked else f"{held:,} of {asked:,} images are there"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
